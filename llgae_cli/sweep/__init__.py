"""Sweeps: many runs of one plan, each cell in a process of its own, that can be resumed and end in a leaderboard."""

from llgae_cli.sweep.folder import SweepFolder
from llgae_cli.sweep.leaderboard import Leaderboard
from llgae_cli.sweep.plan import Cell, Plan, read_plan
from llgae_cli.sweep.progress import SweepProgress
from llgae_cli.sweep.run import Engine, run_sweep
from llgae_cli.sweep.schema import sweep_schema

__all__ = [
    "Cell",
    "Engine",
    "Leaderboard",
    "Plan",
    "SweepFolder",
    "SweepProgress",
    "read_plan",
    "run_sweep",
    "sweep_schema",
]
