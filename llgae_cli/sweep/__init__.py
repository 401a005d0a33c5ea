"""Sweeps: grids of runs, each cell a process of its own, that finish, resume and say what was learnt."""

from llgae_cli.sweep.board import Board
from llgae_cli.sweep.conduct import Engine, Watcher, conduct
from llgae_cli.sweep.folder import SweepFolder
from llgae_cli.sweep.plan import Cell, Plan, read_plan

__all__ = ["Board", "Cell", "Engine", "Plan", "SweepFolder", "Watcher", "conduct", "read_plan"]
