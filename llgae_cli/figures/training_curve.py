"""The training curve: mean L2 by epoch and by seconds."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llgae_cli.figures.style import BLUE, GREEN, INKS, RED, Theme, new_figure, styled
from llgae_cli.figures.units import GREY_LEVELS
from llgae_cli.formatting import five_digits

WIDEST = 4.0  # inches of the panel of restarts, at most
NUMBERED = 6  # restarts whose numbers there is room for
SERIES = {
    "train_mean_l2": ("train", BLUE, "o"),
    "validation_mean_l2": ("validation", GREEN, "^"),
    "test_mean_l2": ("test", RED, "s"),
}


@styled
def training_curve(
    history: Sequence[dict[str, float]],
    starts: Mapping[str, float] = MappingProxyType({}),
    *,
    unit: str = GREY_LEVELS,
    theme: Theme = "light",
) -> Figure:
    """Draw mean L2 (in `unit`) of train, validation and test against epochs and seconds, and that of the restarts.

    `history`: a checkpoint's; a mapping for each epoch with `epoch`, `seconds`, `train_mean_l2`, and the others where
    they were measured. The train value is measured during the epoch, before its update is complete. `starts`: the mean
    L2 of each restart, by its name; the lowest is the one that training continued from.
    """
    narrow = min(1.4 + 0.45 * len(starts), WIDEST) if starts else 0.0
    figure = new_figure(9.2 + narrow, 3.6)
    ratios = [narrow, 4.6, 4.6] if starts else [1, 1]
    *left, by_epoch, by_time = figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios)
    for axes, key in ((by_epoch, "epoch"), (by_time, "seconds")):
        for name, (label, colour, mark) in SERIES.items():
            points = [(row[key], row[name]) for row in history if name in row and key in row]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=colour, marker=mark if len(points) <= 60 else "", label=label)
    for axes in left:
        _draw_starts(axes, starts, theme)
    by_epoch.set(xlabel="epochs (passes over the training samples)")
    (left or [by_epoch])[0].set_ylabel(f"mean L2 ({unit})")
    by_epoch.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_time.set(xlabel="training time (seconds)")
    if history:
        first, last = history[0], history[-1]
        by_time.set_xlim(0, max(row.get("seconds", 0) for row in history) * 1.03 or 1)
        if first.get("seconds", 0) > 0.2 * last.get("seconds", 0) and len(history) > 5:
            by_time.axvspan(0, first["seconds"], color="0.5", alpha=0.12, lw=0)
            by_time.text(first["seconds"] / 2, 0.5, "initialisation", transform=by_time.get_xaxis_transform(),
                         ha="center", va="center", fontsize=9)  # fmt: skip
        by_time.legend(loc="upper left")
        _set_scale(by_epoch, history)
        title = f"Mean L2 ({unit})"
        if "test_mean_l2" in last:
            title = f"Mean L2 {five_digits(last['test_mean_l2'])} on test after {last['epoch']:.0f} epochs"
        by_epoch.set_title(title)
    return figure


def _draw_starts(axes: Axes, starts: Mapping[str, float], theme: Theme) -> None:
    """Draw the mean L2 of each restart, with its number where there is room; the lowest is full, the others hollow."""
    values = list(starts.values())
    best = values.index(min(values))
    for i, value in enumerate(values):
        axes.plot(i, value, ls="", marker="D", ms=6, color=BLUE, mfc=BLUE if i == best else INKS[theme].page, mew=1.3)
        if len(values) <= NUMBERED:
            axes.annotate(five_digits(value), (i, value), (0, 8), textcoords="offset points", ha="center", fontsize=8)
    shown = range(0, len(values), -(-len(values) // NUMBERED))
    axes.set_xticks(list(shown), [list(starts)[i] for i in shown])
    axes.set(xlim=(-0.6, len(values) - 0.4), xlabel="restart, on a subset of the rows")
    axes.margins(y=0.12)
    axes.set_title("Start" if len(values) == 1 else f"{len(values)} starts")


def _set_scale(axes: Axes, history: Sequence[dict[str, float]]) -> None:
    """Make the axis logarithmic where the values span more than a factor of ten: the end would look flat."""
    values = [row[name] for row in history for name in SERIES if row.get(name, 0) > 0]
    if values and max(values) > 10 * min(values):
        axes.set_yscale("log")
