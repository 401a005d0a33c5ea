"""Figures of a search: how important each key was, and its trials as lines through parallel axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from llgae_cli.figures.style import CYCLE, label, new_figure, styled

LOGARITHMIC = (20, 1e4)  # largest over least value of an axis, between which its scale is logarithmic
NAMES = {
    "validation_mean_l2": "mean L2 (validation)",
    "validation_bits_coded": "bits a sample (validation)",
    "seconds": "seconds of training",
}
TICKS = 5


@styled
def importance(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the importance of each key as a bar, for each objective; `shares` of one objective add to 1."""
    keys = list(dict.fromkeys(key for of_one in shares.values() for key in of_one))
    figure = new_figure(6.4, 1.2 + 0.45 * max(2, len(keys)))
    axes = figure.subplots()
    height = 0.8 / len(shares)
    for i, (objective, of_one) in enumerate(shares.items()):
        at = np.arange(len(keys)) + (i - (len(shares) - 1) / 2) * height
        axes.barh(at, [of_one.get(key, 0.0) for key in keys], height, color=CYCLE[i], label=label(objective))
    axes.set_yticks(range(len(keys)), [label(key) for key in keys])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the importance", title="Importance of the keys")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside right upper")
    return figure


@styled
def parallel_coordinates(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], objectives: Sequence[str]) -> Figure:
    """Draw each finished trial as a line through an axis for each key and objective.

    The colour is the mean L2, the last of the columns; trials on the front (`front` of a row) are drawn bold.
    """
    columns = [*keys, *sorted(objectives, key=lambda name: name == "validation_mean_l2")]
    figure = new_figure(max(6.8, 1.9 * len(columns)), 4.2)
    axes = figure.subplots()
    heights = []
    for place, column in enumerate(columns):
        height, ticks = _scale([row.get(column) for row in rows])
        heights.append(height)
        axes.axvline(place, color="0.6", lw=0.8, zorder=1)
        for at, text in ticks:
            axes.text(place + 0.03, at, text, fontsize=8, va="center", zorder=4)
    lines = np.array(heights).T  # (trials, columns)
    colours = colormaps["viridis"](Normalize(0, 1)(lines[:, -1]))
    for row, line, colour in zip(rows, lines, colours, strict=True):
        bold = bool(row.get("front"))
        axes.plot(line, color=colour, lw=2.2 if bold else 0.9, alpha=1.0 if bold else 0.6, zorder=3 if bold else 2)
    axes.set_xticks(range(len(columns)), [label(NAMES.get(column, column.replace("_", "-")), 26) for column in columns])
    axes.set(yticks=[], xlim=(-0.1, len(columns) - 0.6), title="Trials of the search; those on the front are bold")
    axes.spines[:].set_visible(False)
    axes.grid(False)
    return figure


def _scale(values: Sequence[Any]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Return the heights of values on an axis from 0 to 1, and some of them as ticks: height and text."""
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        names = sorted({str(value) for value in values})
        at = {name: i / max(1, len(names) - 1) for i, name in enumerate(names)}
        return np.array([at[str(value)] for value in values]), [(at[name], label(name, 12)) for name in names]
    numbers = np.array(values, dtype=np.float64)
    low, high = numbers.min(), numbers.max()
    as_logs = low > 0 and LOGARITHMIC[0] * low <= high <= LOGARITHMIC[1] * low
    rise = np.log if as_logs else np.asarray
    height = (rise(numbers) - rise(low)) / ((rise(high) - rise(low)) or 1.0)
    between = np.linspace(rise(low), rise(high), TICKS if high > low else 1)
    shown = np.exp(between) if as_logs else between
    if all(isinstance(value, int) for value in values):
        shown = np.unique(shown.round())
    at = (rise(shown) - rise(low)) / ((rise(high) - rise(low)) or 1.0)
    return height, [(float(place), f"{value:.4g}") for place, value in zip(at, shown, strict=True)]
