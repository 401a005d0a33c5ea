"""Originals, reconstructions and residuals, side by side: what the model keeps and what it loses."""

import numpy as np
from matplotlib.figure import Figure

from llgae_cli.figures import cells
from llgae_cli.figures.style import DPI, Theme, new_figure, styled
from llgae_cli.figures.subject import Subject

MAX_CLASSES = 12
TITLE_CHARACTER = 9  # pixels that a character of a title takes, at most on average


def ranked(residual: np.ndarray, columns: int) -> dict[str, np.ndarray]:
    """Rows of the test samples to show: those nearest the median residual, the least and the largest, (columns,)."""
    order = np.argsort(residual, kind="stable")
    n = len(order)
    columns = min(columns, n)
    middle = max(0, (n - columns) // 2)
    return {"typical": order[middle : middle + columns], "best": order[:columns], "worst": order[::-1][:columns]}


def by_class(residual: np.ndarray, labels: np.ndarray) -> dict[int, int]:
    """For each label, the row whose residual is its class's median."""
    chosen = {}
    for label in np.unique(labels)[:MAX_CLASSES]:
        own = np.flatnonzero(labels == label)
        chosen[int(label)] = int(own[np.argsort(residual[own], kind="stable")[len(own) // 2]])
    return chosen


@styled
def reconstructions(subject: Subject, columns: int = 10, *, theme: Theme = "light") -> Figure:
    """Test samples as they are, as the model draws them, and the difference, each with its mean L2 above it."""
    columns = columns if subject.looks.is_image else min(columns, 6)
    groups = {name: (rows, [""] * len(rows)) for name, rows in ranked(subject.residual, columns).items()}
    if subject.labels is not None:
        chosen = by_class(subject.residual, subject.labels)
        names = [class_name(subject, label) for label in chosen]
        rows = np.array(list(chosen.values()))
        groups["by class"] = (rows[:columns], names[:columns])
    return _rows(subject, groups, theme)


def _rows(subject: Subject, groups: dict[str, tuple[np.ndarray, list[str]]], theme: Theme) -> Figure:
    rows: list[cells.Row] = []
    for name, (indices, captions) in groups.items():
        v, v_hat, _ = subject.originals(indices)
        numbers = [f"{subject.residual[i]:.0f}" if subject.residual[i] >= 10 else f"{subject.residual[i]:.2g}"
                   for i in indices]  # fmt: skip
        above = [f"{c}\n{x}" if c else x for c, x in zip(captions, numbers, strict=True)]
        two_lines = any(captions)
        rows.append(cells.Row(v, f"{name}\noriginal", captions=above, gap_before=bool(rows) or two_lines))
        rows.append(cells.Row(v_hat, "reconstruction"))
        rows.append(cells.Row(v - v_hat, "residual", residual=True))
    return sheet(
        rows,
        subject.looks,
        "Test samples; above each its mean L2 (grey levels² per pixel)",
        theme,
    )


def sheet(rows: list[cells.Row], looks: cells.Looks, title: str, theme: Theme, margin: int = 110) -> Figure:
    """A figure that holds rows of cells at their own size in pixels, with room for labels at the left."""
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


def class_name(subject: Subject, label: int) -> str:
    """What a class is called above a cell, cut to fit."""
    classes = subject.task.classes
    text = classes[label] if classes and label < len(classes) else str(label)
    # matplotlib reads $...$ as mathematics; a class may be called anything
    return (text if len(text) <= 11 else text[:10] + "…").replace("$", r"\$")
