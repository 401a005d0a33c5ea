"""Sweeps: grids of runs, each cell a process of its own, that finish, resume and say what was learnt."""

from llgae_cli.sweep.folder import SweepFolder
from llgae_cli.sweep.leaderboard import Board
from llgae_cli.sweep.plan import Cell, Plan, read_plan
from llgae_cli.sweep.run import Engine, Watcher, run_sweep

__all__ = ["Board", "Cell", "Engine", "Plan", "SweepFolder", "Watcher", "read_plan", "run_sweep"]
