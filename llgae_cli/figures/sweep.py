"""Figures of a sweep: mean L2 over the keys it varied, and rate against distortion."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from llgae_cli.evaluation.rate import find_pareto_front
from llgae_cli.figures.style import BLUE, CYCLE, GREEN, GREY, MARKERS, RED, Theme, label, new_figure, styled
from llgae_cli.figures.units import error_unit_of_tasks

Row = Mapping[str, Any]

SPLITS = {
    "train_mean_l2": ("train", BLUE, "o"),
    "validation_mean_l2": ("validation", GREEN, "^"),
    "mean_l2": ("test", RED, "s"),
}
MAX_SERIES = len(CYCLE)
MAX_PANELS = 4
MAX_VALUES = 30
MAX_LABEL = 18
TICKS = ((1, 2, 3, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), tuple(m / 10 for m in range(10, 100)))  # in a factor of ten
MIN_TICKS, MAX_TICKS = 3, 8  # of an axis
MAX_HEAT = 400  # cells of a heat map that can still be read


def draw(rows: Sequence[Row], keys: Sequence[str], ranked_by: str) -> dict[str, Figure]:
    """Draw the figures that the rows of finished cells allow, by name. `keys`: those that the sweep varies.

    One or two varied keys are drawn as curves or heat maps, and rate against distortion where the rates differ.
    """
    keys = [key.replace("-", "_") for key in keys if key != "seed"]
    keys = [key for key in keys if len({str(row[key]) for row in rows}) > 1]
    figures: dict[str, Figure] = {}
    numeric = [key for key in keys if all(_is_number(row[key]) for row in rows)]
    if len(keys) == 1 and numeric:
        figures["mean_l2"] = curves(rows, keys[0], ranked_by)
    elif len(keys) == 2 and len(numeric) == 2 and _grid_size(rows, keys) <= MAX_HEAT:
        figures["mean_l2"] = heat_maps(rows, keys, ranked_by)
    elif len(keys) == 2 and numeric:
        other = next(key for key in keys if key != numeric[-1])
        if len({str(row[other]) for row in rows}) <= MAX_SERIES:
            figures["mean_l2"] = curves(rows, numeric[-1], ranked_by, other)
    if len(rows) > 1 and len({row["bits_float"] for row in rows}) > 1:
        figures["rate_distortion"] = rate_distortion(rows, ranked_by)
    return figures


@styled
def curves(rows: Sequence[Row], key: str, value: str, other: str | None = None) -> Figure:
    """Draw mean L2 against a numeric key, a mark for each run and lines through the means over seeds.

    A line for each split, or, of the ranking figure `value`, for each value of `other`, a second key.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    if other is None:
        for name, style in SPLITS.items():
            _line(axes, [row for row in rows if row[name] is not None], key, name, *style)
    else:
        for i, choice in enumerate(sorted({str(row[other]) for row in rows})):
            own = [row for row in rows if str(row[other]) == choice]
            _line(axes, own, key, value, f"{_dashed(other)} {choice}", CYCLE[i], MARKERS[i])
    _number_axis(axes, [row[key] for row in rows], key)
    what = "Mean L2" if other is None else f"{_split(value)} mean L2"
    axes.set(ylabel=_axis(rows), title=f"{what} against {_dashed(key)}")
    axes.legend()
    _add_caution(figure, value)
    return figure


@styled
def heat_maps(rows: Sequence[Row], keys: Sequence[str], value: str) -> Figure:
    """Draw two keys as heat maps: train mean L2 and the ranking figure, on a logarithmic colour scale."""
    across, down = (sorted({row[key] for row in rows}) for key in (keys[1], keys[0]))
    figure = new_figure(1.4 + 1.35 * max(4, len(across)), 0.95 + 0.4 * max(3, len(down)))
    panels = figure.subplots(1, 2, sharey=True)
    fields = [_tabulate(rows, keys, down, across, name) for name in ("train_mean_l2", value)]
    positive = np.concatenate([field[np.isfinite(field) & (field > 0)] for field in fields])
    low, high = np.log(positive.min()), np.log(positive.max())
    for axes, field, name in zip(panels, fields, ("train_mean_l2", value), strict=True):
        axes.imshow(np.log(np.maximum(field, 1e-30)), cmap="cividis", vmin=low, vmax=high, aspect="auto")
        for i, j in np.ndindex(*field.shape):
            if np.isfinite(field[i, j]):
                bright = np.log(max(field[i, j], 1e-30)) > (low + high) / 2
                axes.text(j, i, _figures(field[i, j]), ha="center", va="center", color="black" if bright else "white")
        axes.set_xticks(range(len(across)), [label(one) for one in across])
        axes.set_yticks(range(len(down)), [label(one) for one in down])
        axes.set(xlabel=_dashed(keys[1]), title=f"{_split(name)} mean L2")
        axes.grid(False)
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel(_dashed(keys[0]))
    _add_caution(figure, value)
    return figure


@styled
def rate_distortion(rows: Sequence[Row], value: str) -> Figure:
    """Draw test mean L2 against bits a sample, b as floats and as coded (see `evaluation.rate`), with Pareto fronts."""
    figure = new_figure(9.2, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    names = (
        ("bits_float", "mean_l2", "k and b as numbers: log2 K + 32 E"),
        ("bits_coded", "mean_l2_coded", "bits as coded, at the model's own step"),
    )
    for axes, (rate, distortion, title) in zip(panels, names, strict=True):
        points = [(row[rate], row[distortion]) for row in rows]
        front = find_pareto_front(points)
        x, y = (np.array(side) for side in zip(*points, strict=True))
        axes.plot(x, y, ls="", marker="o", color=GREY, label="a run")
        axes.plot(x[front], y[front], color=RED, marker="s", label="Pareto front")
        for i in _choose_labelled(front, x, y):
            text = name_row(rows[i], rows)
            axes.annotate(text, (x[i], y[i]), (5, 4), textcoords="offset points", fontsize=8)
        _bits_axis(axes, x)
        axes.set(xlabel="bits a sample", title=title)
        axes.set_yscale("log")
    _plain_ticks(panels[0])  # of both, when the points of both are there
    panels[0].set_ylabel(f"test {_axis(rows)}")
    _add_caution(figure, value)
    panels[1].legend(loc="upper right")
    return figure


def name_row(row: Row, rows: Sequence[Row]) -> str:
    """Return a short name of a row: its model, K and E, of which only those that differ among rows (of its model)."""
    own = [one for one in rows if one.get("model") == row.get("model")]
    parts = [str(row["model"])] if len(own) < len(rows) else []
    for key, letter in (("K", "K"), ("embed_dim", "E")):
        if len({one.get(key) for one in own}) > 1:
            parts.append(f"{letter}={row.get(key)}")
    return " ".join(parts)


@styled
def panels_by_key(
    rows: Sequence[dict[str, Any]], keys: Sequence[str], ranked_by: str = "mean_l2", *, theme: Theme = "light"
) -> Figure | None:
    """Draw a panel for each key: every run's mean L2, and the lowest at each value.

    `rows` have the keys and the figure `ranked_by`: `validation_mean_l2`, or `mean_l2`, which is of the test samples.
    Numeric keys stand on an axis of ranks, so that 1, 10, 100 are evenly spaced. None when no run was finished or
    nothing differs.
    """
    done = [row for row in rows if isinstance(row.get(ranked_by), (int, float)) and row[ranked_by] == row[ranked_by]]
    keys = [key for key in keys if 1 < len({str(row.get(key)) for row in done}) <= MAX_VALUES][:MAX_PANELS]
    if not done or not keys:
        return None
    figure = new_figure(max(4.6, 2.6 * len(keys) + 1.4), 3.4)
    panels = np.atleast_1d(figure.subplots(1, len(keys), sharey=True))
    for axes, key in zip(panels, keys, strict=True):
        values = sorted({row.get(key) for row in done}, key=_rank)
        at = {label(value, MAX_LABEL): place for place, value in enumerate(values)}
        x = np.array([at[label(row.get(key), MAX_LABEL)] for row in done])
        y = np.array([row[ranked_by] for row in done], dtype=float)
        axes.plot(x, y, ls="", marker="o", color=BLUE, alpha=0.6, label="a run")
        lowest = [y[x == place].min() for place in range(len(values))]
        axes.plot(range(len(values)), lowest, color=RED, marker="s", label="lowest at each value")
        axes.set_xticks(
            range(len(values)), [label(value, MAX_LABEL) for value in values], rotation=0 if len(values) < 6 else 60
        )
        axes.set(xlabel=key.replace("_", "-"), xlim=(-0.5, len(values) - 0.5))
    by_test = ranked_by == "mean_l2"
    panels[0].set_ylabel(f"{'test' if by_test else 'validation'} {_axis(rows)}")
    figure.suptitle("By test mean L2: no choice of a model" if by_test else "By mean L2 on validation samples")
    panels[-1].legend()
    return figure


def _choose_labelled(front: Sequence[int], x: Any, y: Any) -> list[int]:
    """Choose points of a front whose labels do not overlap: each 12 % lower than the last labelled one."""
    chosen: list[int] = []
    for i in front:
        if not chosen or y[i] < 0.88 * y[chosen[-1]]:
            chosen.append(i)
    return chosen


def _line(axes: Axes, rows: Sequence[Row], key: str, value: str, text: str, colour: str, mark: str) -> None:
    if not rows:
        return
    at = sorted({row[key] for row in rows})
    mean = [np.mean([row[value] for row in rows if row[key] == one]) for one in at]
    axes.plot(at, mean, color=colour, marker=mark, label=text)
    if len(rows) > len(at):
        x, y = zip(*((row[key], row[value]) for row in rows), strict=True)
        axes.plot(x, y, ls="", marker=mark, color=colour, alpha=0.4)


def _number_axis(axes: Axes, values: Sequence[float], key: str) -> None:
    axes.set_xlabel(_dashed(key))
    ticks = sorted(set(values))
    if ticks[0] > 0 and ticks[-1] >= 20 * ticks[0]:
        axes.set_xscale("log")
    if len(ticks) <= 12:
        axes.set_xticks(ticks, [label(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    if low > 0 and high > 10 * low:
        axes.set_yscale("log")
        _plain_ticks(axes)


def _bits_axis(axes: Axes, bits: Any) -> None:
    """Make the axis of bits fit them: linear to 8, then logarithmic, with powers of two as ticks, and 3/2 of them."""
    low, high = bits.min() / 1.3 if bits.min() > 8 else -0.5, 1.6 * max(bits.max(), 8)
    for every in ((0, *(2**p for p in range(2, 21))), [m * 2**p for p in range(2, 21) for m in (2, 3)]):
        ticks = [tick for tick in every if low <= tick <= high]
        if len(ticks) >= MIN_TICKS:
            break
    axes.set_xscale("symlog", linthresh=8)
    axes.set_xticks(ticks if len(ticks) <= MAX_TICKS else ticks[:: -(-len(ticks) // MAX_TICKS)])
    axes.set_xlim(low, high)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def _plain_ticks(axes: Axes) -> None:
    """Put round numbers at a logarithmic axis of mean L2: a few in a factor of ten, more where it spans less."""
    low, high = axes.get_ylim()
    for steps in TICKS:
        ticks = [tick for p in range(-9, 13) for m in steps if low <= (tick := m * 10.0**p) <= high]
        if len(ticks) >= MIN_TICKS:
            break
    axes.set_yticks(ticks)
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low, high)


def _tabulate(rows: Sequence[Row], keys: Sequence[str], down: Sequence[Any], across: Sequence[Any], value: str) -> Any:
    """Return the mean of `value` over seeds at each pair of keys, NaN without a finished run."""
    field = np.full((len(down), len(across)), np.nan)
    for i, a in enumerate(down):
        for j, b in enumerate(across):
            own = [row[value] for row in rows if row[keys[0]] == a and row[keys[1]] == b and row[value] is not None]
            field[i, j] = np.mean(own) if own else np.nan
    return field


def _grid_size(rows: Sequence[Row], keys: Sequence[str]) -> int:
    return len({row[keys[0]] for row in rows}) * len({row[keys[1]] for row in rows})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _add_caution(figure: Figure, value: str) -> None:
    """Add a title to a figure of a sweep that is ranked by test mean L2."""
    if value == "mean_l2":
        figure.suptitle("By test mean L2: no choice of a model", fontsize="medium")


def _axis(rows: Sequence[Row]) -> str:
    return f"mean L2 ({error_unit_of_tasks(str(row.get('task', '')) for row in rows)})"


def _split(value: str) -> str:
    return SPLITS[value][0].capitalize()


def _dashed(key: str) -> str:
    return key.replace("_", "-")


def _figures(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _rank(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (not number, float(value) if number else 0.0, str(value))
