"""A chart drawn with matplotlib, for files; the report's page writes charts as HTML and SVG."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from llgae_cli.figures.style import BLUE, CYCLE, INKS, MARKERS, RED, Theme, label, new_figure, styled
from llgae_cli.figures.table.charts import Bars, Chart, Matrix, Points

WIDTH = 9.2  # inches
LINE = 0.23  # inches that a bar or a row of a matrix takes
NAME = 26  # characters of a name
ORDERED: dict[Theme, tuple[str, str]] = {"light": ("#bcd3ea", "#12365c"), "dark": ("#2b4a6b", "#d6e8fa")}


@styled
def draw_chart(chart: Chart, *, theme: Theme = "light") -> Figure:
    """Draw all panels of a chart, in as many columns as their names leave room for, below its title."""
    panels = chart.panels
    columns = min(len(panels), _count_columns(panels))
    rows = math.ceil(len(panels) / columns)
    heights = [max(map(_height, panels[i * columns : (i + 1) * columns])) for i in range(rows)]
    figure = new_figure(WIDTH, sum(heights) + 0.6 + (0.3 if chart.legend else 0))
    figure.suptitle(label(one_line(chart.title)), x=0.01, ha="left", fontsize=12, fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.set_title(_name(panel.title, round(96 / columns)), fontsize=9, fontweight="normal", pad=6)
        if isinstance(panel, Bars):
            _draw_bars(axes, panel)
        elif isinstance(panel, Points):
            _draw_points(axes, panel, theme)
        else:
            _draw_matrix(axes, panel, theme)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    if chart.legend:
        handles, names = _legend(chart.panels[0], theme)
        figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), fontsize=8)
    return figure


def one_line(text: str) -> str:
    """Return the text with line breaks and tabs as spaces."""
    return " ".join(text.split())


def _name(text: str, limit: int = NAME) -> str:
    return label(one_line(text), limit)


def _count_columns(panels: Sequence[Bars | Points | Matrix]) -> int:
    first = panels[0]
    if isinstance(first, Points):
        return 3
    if isinstance(first, Matrix):
        return 1 if len(first.columns) > 5 else 2
    return 3 if max(len(name) for panel in panels for name in panel.names[:99]) <= 14 else 2  # type: ignore[union-attr]


def _height(panel: Bars | Points | Matrix) -> float:
    if isinstance(panel, Points):
        return 2.9 if panel.title else 4.6
    return 0.5 + LINE * len(panel.names if isinstance(panel, Bars) else panel.rows)


def _draw_bars(axes: Axes, bars: Bars) -> None:
    at = np.arange(len(bars.names))
    axes.barh(at, bars.values, height=0.7, color=[BLUE if value >= 0 else RED for value in bars.values])
    axes.axvline(0, color="0.5", lw=0.8)
    axes.set(xlim=(-1.35 * bars.limit, 1.35 * bars.limit), ylim=(len(at) - 0.4, -0.6))
    axes.set_yticks(at, [_name(name) for name in bars.names], fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", visible=False)
    for i, value in enumerate(bars.values):
        side = 1 if value >= 0 else -1
        place, aligned = value + side * 0.03 * bars.limit, "left" if side > 0 else "right"
        axes.text(place, i, bars.texts[i], va="center", ha=aligned, fontsize=7)


def _draw_points(axes: Axes, points: Points, theme: Theme) -> None:
    if points.diagonal:
        axes.plot(points.x_range, points.x_range, color="0.5", lw=1, zorder=1)
    colours = group_colours(points, theme)
    for g, colour in enumerate(colours):
        own = points.group == g
        mark = "o" if points.ordered else MARKERS[g % len(MARKERS)]
        axes.plot(points.x[own], points.y[own], ls="", marker=mark, ms=2.6, mew=0, alpha=0.75, color=colour, zorder=2)
    axes.set(xlim=points.x_range, ylim=points.y_range)
    axes.set_xlabel(_name(points.x_name), fontsize=8)
    axes.set_ylabel(_name(points.y_name), fontsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))


def group_colours(points: Points, theme: Theme) -> list[str]:
    """Return a colour for each group: from pale to strong for intervals, of different hues for classes."""
    n = len(points.groups)
    if not points.ordered:
        return [CYCLE[g % len(CYCLE)] for g in range(n)]
    ramp = LinearSegmentedColormap.from_list("ordered", list(ORDERED[theme]))
    return ["#" + "".join(f"{round(255 * c):02x}" for c in ramp(g / max(1, n - 1))[:3]) for g in range(n)]


def _legend(panel: Bars | Points | Matrix, theme: Theme) -> tuple[list[Rectangle], list[str]]:
    assert isinstance(panel, Points)
    colours = group_colours(panel, theme)
    return [Rectangle((0, 0), 1, 1, color=colour) for colour in colours], [_name(name) for name in panel.groups]


def _draw_matrix(axes: Axes, matrix: Matrix, theme: Theme) -> None:
    page, above, below = (np.array(to_rgb(colour)) for colour in (INKS[theme].page, BLUE, RED))
    shades = np.nan_to_num(matrix.shades)[..., None]
    colours = page + 0.75 * np.abs(shades) * (np.where(shades >= 0, above, below) - page)
    axes.imshow(colours, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xticks(np.arange(len(matrix.columns)), [_name(name, 12) for name in matrix.columns], fontsize=8)
    axes.set_yticks(np.arange(len(matrix.rows)), [_name(name) for name in matrix.rows], fontsize=8)
    for i, texts in enumerate(matrix.texts):
        for j, text in enumerate(texts):
            axes.text(j, i, text, ha="center", va="center", fontsize=7)
