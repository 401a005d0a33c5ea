"""Figures: arrays in, a matplotlib Figure out; `album` gets the arrays from evaluated checkpoints and writes files."""

from llgae_cli.figures.album import (
    FIGURES,
    NAMES,
    OF_IMAGES,
    choose_compared,
    draw_charts,
    write_after_training,
    write_comparison,
    write_figures,
    write_same_bits,
    write_sweep,
    write_tradeoffs,
)

__all__ = [
    "FIGURES",
    "NAMES",
    "OF_IMAGES",
    "choose_compared",
    "draw_charts",
    "write_after_training",
    "write_comparison",
    "write_figures",
    "write_same_bits",
    "write_sweep",
    "write_tradeoffs",
]
