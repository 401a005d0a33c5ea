"""Originals, reconstructions and residuals, one below the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from llgae_cli.figures import cells, style
from llgae_cli.figures.style import DPI, Theme, new_figure, styled
from llgae_cli.figures.units import GREY_LEVELS

MAX_CLASSES = 12
TITLE_CHARACTER = 9  # pixels that a character of a title takes, at most on average


@dataclass(frozen=True)
class Group:
    """Samples shown under one name: stored values and reconstructions (n, D), mean L2 of each (n,), and captions."""

    name: str
    originals: np.ndarray
    reconstructions: np.ndarray
    mean_l2: np.ndarray
    captions: Sequence[str] = ()


def rank_samples(mean_l2: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Return the rows of the n samples nearest the median mean L2 ("typical"), and with the least and the largest."""
    order = np.argsort(mean_l2, kind="stable")
    n = min(n, len(order))
    middle = max(0, (len(order) - n) // 2)
    return {"typical": order[middle : middle + n], "best": order[:n], "worst": order[::-1][:n]}


def pick_by_class(mean_l2: np.ndarray, labels: np.ndarray) -> dict[int, int]:
    """Return for each label the row whose mean L2 is the median of its class."""
    rows = {}
    for label in np.unique(labels)[:MAX_CLASSES]:
        own = np.flatnonzero(labels == label)
        rows[int(label)] = int(own[np.argsort(mean_l2[own], kind="stable")[len(own) // 2]])
    return rows


def name_class(classes: Sequence[str] | None, label: int) -> str:
    """Return what a class is called above a cell, cut to fit."""
    return style.label(classes[label] if classes and label < len(classes) else label, 11)


@styled
def reconstructions(
    groups: Sequence[Group], looks: cells.Looks, *, unit: str = GREY_LEVELS, theme: Theme = "light"
) -> Figure:
    """Draw samples, their reconstructions and the residuals, each with its mean L2, in `unit`, above it."""
    rows: list[cells.Row] = []
    for group in groups:
        numbers = [f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in group.mean_l2]
        names = group.captions or [""] * len(numbers)
        above = [f"{name}\n{number}" if name else number for name, number in zip(names, numbers, strict=True)]
        gap = bool(rows) or any(names)
        rows.append(cells.Row(group.originals, f"{group.name}\noriginal", captions=above, gap_before=gap))
        rows.append(cells.Row(group.reconstructions, "reconstruction"))
        rows.append(cells.Row(group.originals - group.reconstructions, "residual", residual=True))
    return draw_sheet(rows, looks, f"Test samples, the mean L2 of each above it ({unit})", theme)


def draw_sheet(rows: list[cells.Row], looks: cells.Looks, title: str, theme: Theme, margin: int = 110) -> Figure:
    """Draw a figure that holds rows of cells at their own size in pixels, with room for labels at the left."""
    width, height = cells.extent(rows, looks)
    left, top, edge = margin, 34 if title else 10, 12
    whole = (max(left + width + edge, TITLE_CHARACTER * len(title) + 24), top + height + edge)
    figure = new_figure(whole[0] / DPI, whole[1] / DPI)
    figure.set_layout_engine("none")
    axes = figure.add_axes((left / whole[0], edge / whole[1], width / whole[0], height / whole[1]))
    cells.draw(axes, rows, looks, theme)
    if title:
        figure.text(12 / whole[0], 1 - 10 / whole[1], title, va="top", ha="left", fontsize=11, fontweight="bold")
    return figure
