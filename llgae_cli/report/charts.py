"""Charts of tables for the page: bars and matrices as HTML tables, points as SVG with the page's own colours.

The browser's fonts draw the names, so any script can be read; the page's style cuts long ones, and a tooltip has the
whole name. `charts.html.j2` writes what is prepared here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from llgae_cli.figures.table import Bars, Chart, Matrix, Points
from llgae_cli.figures.table.drawing import one_line

LEFT, RIGHT, TOP, BOTTOM = 46, 312, 8, 216  # the plot within its picture, in units of the SVG
TICKS = 4
TICK_GAP = 15  # from the axis to the middle of its numbers
SHADES = 8  # strengths of a cell's colour


@dataclass(frozen=True)
class Tick:
    """A number at an axis: its place in the SVG and its text."""

    at: float
    text: str


def prepare_charts(charts: Mapping[str, Chart]) -> list[dict[str, Any]]:
    """Return what the template needs of each chart: its texts, and its panels with a kind each."""
    return [
        {
            "title": chart.title,
            "note": chart.note,
            "legend": [one_line(name) for name in chart.legend],
            "ordered": any(isinstance(panel, Points) and panel.ordered for panel in chart.panels),
            "single": len(chart.panels) == 1,
            "panels": [_prepare(panel) for panel in chart.panels],
        }
        for chart in charts.values()
    ]


def _prepare(panel: Bars | Points | Matrix) -> dict[str, Any]:
    if isinstance(panel, Bars):
        return _prepare_bars(panel)
    return _prepare_points(panel) if isinstance(panel, Points) else _prepare_matrix(panel)


def _prepare_bars(bars: Bars) -> dict[str, Any]:
    """Return a row for each bar: name, left end and width in -100 to 100, text, and whether it is below zero."""
    rows = []
    for name, value, text in zip(bars.names, bars.values, bars.texts, strict=True):
        length = round(100 * float(value) / bars.limit, 2)
        rows.append((one_line(name), min(0.0, length), abs(length), text, length < 0))
    return {"kind": "bars", "title": bars.title, "rows": rows}


def _prepare_matrix(matrix: Matrix) -> dict[str, Any]:
    """Return rows of (name, cells), a cell being its text and the class of its colour."""
    levels = np.rint(np.nan_to_num(matrix.shades) * SHADES).astype(int)
    rows = [
        (one_line(name), [(text, _shade(level)) for text, level in zip(texts, row, strict=True)])
        for name, texts, row in zip(matrix.rows, matrix.texts, levels, strict=True)
    ]
    columns = [one_line(name) for name in matrix.columns]
    return {"kind": "matrix", "title": matrix.title, "corner": matrix.corner, "columns": columns, "rows": rows}


def _shade(level: int) -> str:
    return "" if level == 0 else f"{'above' if level > 0 else 'below'}{abs(level)}"


def _prepare_points(points: Points) -> dict[str, Any]:
    """Return one path a group, with the ticks of both axes."""
    x = _place(points.x, points.x_range, LEFT, RIGHT)
    y = _place(points.y, points.y_range, BOTTOM, TOP)
    paths = []
    for g in range(len(points.groups)):
        own = points.group == g
        marks = "".join(f"M{left:.1f} {top:.1f}h0" for left, top in zip(x[own], y[own], strict=True))
        paths.append(marks)
    names = one_line(points.x_name), one_line(points.y_name)
    return {
        "kind": "points",
        "title": points.title,
        "label": f"{points.title}: {len(points.x)} points, {names[1] or 'nothing'} against {names[0]}".lstrip(": "),
        "x_name": names[0],
        "y_name": names[1],
        "paths": paths,
        "ordered": points.ordered,
        "diagonal": points.diagonal,
        "x_ticks": _ticks(points.x_range, LEFT, RIGHT),
        "y_ticks": _ticks(points.y_range, BOTTOM, TOP),
        "frame": {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM, "gap": TICK_GAP},
    }


def _place(values: np.ndarray, ends: tuple[float, float], first: float, last: float) -> np.ndarray:
    return first + (np.asarray(values, np.float64) - ends[0]) / (ends[1] - ends[0]) * (last - first)


def _ticks(ends: tuple[float, float], first: float, last: float) -> list[Tick]:
    inside = [t for t in MaxNLocator(TICKS).tick_values(*ends) if ends[0] <= t <= ends[1]]
    step = inside[1] - inside[0] if len(inside) > 1 else 1.0
    return [Tick(round(float(_place(np.array(t), ends, first, last)), 1), _tick_text(t, step)) for t in inside]


def _tick_text(value: float, step: float) -> str:
    """Return the number with the decimals that tell it from the next tick."""
    if abs(value) < 1e-9 * abs(step):
        return "0"
    decimals = max(0, 1 - int(np.floor(np.log10(abs(step)))))
    if decimals > 6 or abs(value) >= 1e6:
        text = f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-")
    else:
        text = f"{value:.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if decimals else text
    return text.replace("-", "−")
