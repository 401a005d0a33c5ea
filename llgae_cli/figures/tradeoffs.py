"""Mean L2 against the bits of the code, the seconds to train and the time to encode; a mark for each checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from llgae_cli.evaluation.rate import find_pareto_front
from llgae_cli.figures.style import CYCLE, DPI, INKS, MARKERS, Theme, label, new_figure, styled
from llgae_cli.figures.units import GREY_LEVELS

LINE = 15  # pixels between two names
STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))  # ticks within a factor of ten, from few to many
MAX_TICKS = 7
NARROW = 1.6  # largest over least value, below which a linear axis reads better


@styled
def tradeoffs(rows: Sequence[Mapping[str, Any]], *, unit: str = GREY_LEVELS, theme: Theme = "light") -> Figure:
    """Test mean L2 (in `unit`) against bits, seconds to train and microseconds to encode.

    `rows` are those of `evaluation.comparison.compare`. The bits of a code are shown for b as 32-bit floats
    (hollow marks) and as coded at the model's own step (full ones, with the mean L2 of what is decoded). The lines are
    Pareto fronts: left of and below them there is nothing. Names stand at the right, at the height of their marks.
    """
    ink = INKS[theme]
    figure = new_figure(11.5, max(4.4, 1.6 + LINE * len(rows) / DPI))
    panels = figure.subplots(1, 3, sharey=True, width_ratios=(1.35, 1, 1))
    by_bits, by_training, by_encoding = panels
    height = [row["mean_l2"] for row in rows]
    costs = (
        (by_bits, "bits_float", "mean_l2", "--"),
        (by_bits, "bits_coded", "mean_l2_coded", "-"),
        (by_training, "train_seconds", "mean_l2", "-"),
        (by_encoding, "encode_seconds", "mean_l2", "-"),
    )
    for axes, cost, distortion, dashes in costs:
        factor = 1e6 if axes is by_encoding else 1.0
        points = [(factor * row[cost], row[distortion]) for row in rows]
        front = [points[i] for i in find_pareto_front(points)]
        axes.plot(*zip(*front, strict=True), ls=dashes, color=ink.text, lw=0.9, alpha=0.6, zorder=1)
        for i, (x, y) in enumerate(points):
            colour, mark = choose_mark(i)
            face = ink.page if dashes == "--" else colour
            axes.plot(x, y, ls="", marker=mark, color=colour, mfc=face, mew=1.4, ms=7, zorder=3)
    for row in rows:
        ends = (row["bits_coded"], row["bits_float"]), (row["mean_l2_coded"], row["mean_l2"])
        by_bits.plot(*ends, color=ink.faint, lw=1, zorder=0)
    for axes, xlabel in (
        (by_bits, "bits a sample"),
        (by_training, "training (seconds)"),
        (by_encoding, "encoding (µs a sample)"),
    ):
        axes.set_xlabel(xlabel)
        _set_scale(axes.xaxis, [x for line in axes.lines for x in line.get_xdata()])
    _set_scale(by_bits.yaxis, height + [row["mean_l2_coded"] for row in rows])
    by_bits.set_ylabel(f"test mean L2 ({unit})")
    by_bits.set_title("Mean L2 against bits and time")
    figure.legend(handles=_key(theme), loc="outside lower left", ncols=3, fontsize=9)
    _name(figure, by_encoding, [row["name"] for row in rows], height)
    return figure


def choose_mark(i: int) -> tuple[str, str]:
    """Return colour and mark of the i-th checkpoint: 49 pairs, neighbours differ in both."""
    return CYCLE[i % len(CYCLE)], MARKERS[(i + i // len(CYCLE)) % len(MARKERS)]


def _key(theme: Theme) -> list[Line2D]:
    ink = INKS[theme]
    marks: dict[str, Any] = {"ls": "", "marker": "o", "color": ink.text, "ms": 6, "mew": 1.4}
    return [
        Line2D([], [], label="as coded, at the model's own step (networks: an estimate)", **marks),
        Line2D([], [], label="b as 32-bit floats", mfc=ink.page, **marks),
        Line2D([], [], label="Pareto front", color=ink.text, lw=0.9, alpha=0.6),
    ]


def _name(figure: Figure, axes: Axes, names: Sequence[str], height: Sequence[float]) -> None:
    """Write names right of the panel, each near the height of its mark, joined to it by a line."""
    low, high = axes.get_ylim()
    figure.draw_without_rendering()  # fixes the panel's size
    room = axes.get_window_extent().height / LINE  # number of names that fit
    rise = np.log if axes.get_yscale() == "log" else np.asarray
    at = (rise(np.array(height)) - rise(low)) / (rise(high) - rise(low))
    for i, place in enumerate(separate(at, 1 / room)):
        colour, mark = choose_mark(i)
        line: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "color": colour}
        axes.plot([1.0, 1.06], [at[i], place], lw=0.8, **line)
        axes.plot(1.09, place, marker=mark, ms=6, **line)
        axes.annotate(
            label(names[i]), (1.09, place), (8, 0), xycoords="axes fraction",
            textcoords="offset points", va="center", fontsize=9, annotation_clip=False,
        )  # fmt: skip


def separate(at: np.ndarray, gap: float) -> np.ndarray:
    """Return the places nearest to `at` (least squares), in its order, that are at least `gap` apart.

    Isotonic regression by pooling adjacent violators.
    """
    order = np.argsort(at, kind="stable")
    blocks: list[tuple[float, int]] = []  # (place of the first member, members), from below
    for wanted in at[order]:
        place, n = float(wanted), 1
        while blocks and place < blocks[-1][0] + blocks[-1][1] * gap:
            below, m = blocks.pop()
            place, n = (m * below + n * (place - m * gap)) / (m + n), m + n
        blocks.append((place, n))
    places = np.empty(len(at))
    places[order] = [place + i * gap for place, n in blocks for i in range(n)]
    return places


def _set_scale(axis: XAxis | YAxis, values: Sequence[float]) -> None:
    """Make an axis logarithmic, with plain numbers at its ticks, where the values are positive and span enough."""
    low, high = float(min(values)), float(max(values))
    across = isinstance(axis, XAxis)
    scale, limit = (axis.axes.set_xscale, axis.axes.set_xlim) if across else (axis.axes.set_yscale, axis.axes.set_ylim)
    if low <= 0 or high < NARROW * low:
        edge = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        limit(low - edge, high + edge)
        return
    edge = (high / low) ** 0.08
    scale("log")
    limit(low / edge, high * edge)
    for steps in STEPS:
        ticks = [m * 10.0**p for p in range(-9, 13) for m in steps if low / edge <= m * 10.0**p <= high * edge]
        if len(ticks) <= MAX_TICKS:
            best = ticks
    axis.set_major_locator(FixedLocator(best))
    axis.set_major_formatter(FixedFormatter([f"{tick:,.10g}" for tick in best]))
    axis.set_minor_locator(NullLocator())
