"""Figures: arrays or a Subject in, a matplotlib Figure out; `album` names them all and writes them."""

from llgae_cli.figures.album import FIGURES, write, write_beside, write_comparison, write_tradeoffs
from llgae_cli.figures.style import save
from llgae_cli.figures.subject import Subject, look, names

__all__ = [
    "FIGURES",
    "Subject",
    "look",
    "names",
    "save",
    "write",
    "write_beside",
    "write_comparison",
    "write_tradeoffs",
]
