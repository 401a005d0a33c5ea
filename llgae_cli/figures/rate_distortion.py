"""Rate-distortion curves of several methods, and their errors relative to ours at the same rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import NDArray

from llgae_cli.figures.style import BLUE, GREEN, GREY, INKS, MARKERS, RED, Theme, label, new_figure, styled
from llgae_cli.figures.units import GREY_LEVELS

Kind = Literal["ours", "checkpoint", "baseline", "quantiser", "image codec"]

# A family has one colour, a method in it one mark: eleven colours could not be told apart.
ORANGE = "#BB6611"  # darker than Tol's yellow, which is hard to see as a thin line on white
COLOURS: dict[Kind, str] = {
    "ours": RED,
    "checkpoint": GREEN,
    "baseline": GREY,
    "quantiser": BLUE,
    "image codec": ORANGE,
}
HEADINGS: dict[Kind, str] = {
    "ours": "",
    "checkpoint": "",
    "baseline": "",
    "quantiser": "quantisers (faiss)",
    "image codec": "image codecs",
}
BITS = (20, 40, 80, 160, 320, 640)
RATIOS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6)
MOST = 4.0  # largest ratio shown


@dataclass(frozen=True)
class Curve:
    """A method's name and kind, its bits a sample (n,), rising, and its mean squared errors (n,)."""

    name: str
    kind: Kind
    bits: NDArray[np.float64]
    error: NDArray[np.float64]


@styled
def rate_distortion(curves: Sequence[Curve], *, data: str, unit: str = GREY_LEVELS, theme: Theme = "light") -> Figure:
    """Draw mean squared error against bits a sample, both logarithmic, and the ratio of each error to ours.

    The ratio is taken where both curves have a value; between two points log error is linear in the rate. Where it is
    below 1, the other method is better: that part is shaded. The title is `data`, what was coded; `unit` is that of the
    error.
    """
    ink = INKS[theme]
    figure = new_figure(11, 4.9)
    errors, ratios = figure.subplots(1, 2, width_ratios=(1.25, 1))
    ours = next((curve for curve in curves if curve.kind == "ours"), None)
    for curve, mark in zip(curves, choose_marks(curves), strict=True):
        look = _look(curve.kind, mark, theme)
        errors.plot(curve.bits, curve.error, **look)
        if ours is not None:
            ratios.plot(*divide(curve, ours), **look)
    errors.set(title=label(data), ylabel=f"mean squared error ({unit})")
    ratios.set(title="Error relative to llgae at the same rate", ylabel="mean squared error / that of llgae")
    _set_rates(errors, curves)
    _set_rates(ratios, curves)
    errors.set_yscale("log")
    _set_ticks(errors.yaxis, [m * 10.0**p for p in range(-3, 6) for m in (1, 2, 5)])
    ratios.set_yscale("log")
    low, high = _ratio_limits(ratios)
    ratios.set_ylim(low, high)
    _set_ticks(ratios.yaxis, RATIOS)
    ratios.axhspan(low, 1, color=ink.text, alpha=0.08, lw=0, zorder=0)
    ratios.text(0.98, 0.02, "below 1: the other method is better", transform=ratios.transAxes, ha="right", fontsize=9)
    key = figure.legend(handles=_key(curves, theme), loc="outside right center", fontsize=9, handlelength=2.4)
    for text in key.get_texts():
        text.set_fontweight("bold" if text.get_text() in HEADINGS.values() else "normal")
    return figure


def choose_marks(curves: Sequence[Curve]) -> list[str]:
    """Return a mark for each curve; no two of one kind share one, up to seven."""
    used: dict[Kind, int] = {}
    marks = []
    for curve in curves:
        used[curve.kind] = i = used.get(curve.kind, -1) + 1
        marks.append(MARKERS[i % len(MARKERS)])
    return marks


def divide(curve: Curve, ours: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rates that both curves reach, at the points of either, and the ratio of the curve's error to ours."""
    low, high = max(curve.bits[0], ours.bits[0]), min(curve.bits[-1], ours.bits[-1])
    bits = np.union1d(curve.bits, ours.bits)
    bits = bits[(bits >= low) & (bits <= high)]
    log_ratio = np.interp(bits, curve.bits, np.log(curve.error)) - np.interp(bits, ours.bits, np.log(ours.error))
    return bits, np.exp(log_ratio)


def _look(kind: Kind, mark: str, theme: Theme) -> dict[str, Any]:
    colour = COLOURS[kind]
    ours = kind in ("ours", "checkpoint")
    return {
        "color": colour, "marker": mark, "lw": 3 if ours else 1.3, "ms": 6 if ours else 5,
        "mfc": colour if ours else INKS[theme].page, "mew": 1.2, "zorder": 4 if ours else 3,
    }  # fmt: skip


def _set_rates(axes: Axes, curves: Sequence[Curve]) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("bits a sample")
    axes.set_xlim(min(curve.bits[0] for curve in curves) / 1.1, max(curve.bits[-1] for curve in curves) * 1.1)
    _set_ticks(axes.xaxis, BITS)


def _set_ticks(axis: Any, ticks: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([f"{tick:,g}" for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def _ratio_limits(axes: Axes) -> tuple[float, float]:
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines] or [np.ones(1)])
    return min(0.7, float(drawn.min(initial=1))) / 1.1, min(MOST, max(1.5, float(drawn.max(initial=1)) * 1.1))


def _key(curves: Sequence[Curve], theme: Theme) -> list[Line2D]:
    """Return the legend's lines: ours first, then each family under its heading."""
    handles = []
    marked = list(zip(curves, choose_marks(curves), strict=True))
    for kind, heading in HEADINGS.items():
        those = [(curve, mark) for curve, mark in marked if curve.kind == kind]
        if those and heading:
            handles.append(Line2D([], [], ls="", label=heading))
        handles += [Line2D([], [], label=label(curve.name), **_look(kind, mark, theme)) for curve, mark in those]
    return handles
