"""The training curve: mean L2 by epoch and by seconds."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llgae_cli.figures.style import BLUE, GREEN, RED, Theme, new_figure, styled
from llgae_cli.figures.units import GREY_LEVELS
from llgae_cli.formatting import five_digits

SERIES = {
    "train_mean_l2": ("train", BLUE, "o"),
    "validation_mean_l2": ("validation", GREEN, "^"),
    "test_mean_l2": ("test", RED, "s"),
}


@styled
def training_curve(history: Sequence[dict[str, float]], *, unit: str = GREY_LEVELS, theme: Theme = "light") -> Figure:
    """Draw mean L2 (in `unit`) of train, validation and test against epochs and seconds.

    `history`: a checkpoint's; a mapping for each epoch with `epoch`, `seconds`, `train_mean_l2`, and the others where
    they were measured. The train value is measured during the epoch, before its update is complete.
    """
    figure = new_figure(9.2, 3.6)
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
    for axes, key in ((by_epoch, "epoch"), (by_time, "seconds")):
        for name, (label, colour, mark) in SERIES.items():
            points = [(row[key], row[name]) for row in history if name in row and key in row]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=colour, marker=mark if len(points) <= 60 else "", label=label)
    by_epoch.set(xlabel="epochs (passes over the training samples)", ylabel=f"mean L2 ({unit})")
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


def _set_scale(axes: Axes, history: Sequence[dict[str, float]]) -> None:
    """Make the axis logarithmic where the values span more than a factor of ten: the end would look flat."""
    values = [row[name] for row in history for name in SERIES if row.get(name, 0) > 0]
    if values and max(values) > 10 * min(values):
        axes.set_yscale("log")
