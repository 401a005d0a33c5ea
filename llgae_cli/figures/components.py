"""Use of components, classes in components, and the spectrum of variances."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter

from llgae_cli.figures.style import BLUE, CYCLE, MARKERS, RED, SHARE, Theme, label, new_figure, styled
from llgae_cli.figures.units import GREY_LEVELS

MAX_BARS = 60
MAX_LINES = 5
ROUNDING = 1e-7  # of the largest variance: what is below is float32's rounding


@styled
def usage(train: np.ndarray, test: np.ndarray | None = None, *, suffix: str = "", theme: Theme = "light") -> Figure:
    """Draw the share of training samples (bars) and test samples (dots) coded by each component, by use.

    `train`, `test`: counts (K,); without `test` there are no dots. `suffix`: see `models.Model.k_suffix`. Beyond
    60 components the bars are drawn without a gap and unnamed.
    """
    order = np.argsort(-train, kind="stable")
    K = len(order)
    figure = new_figure(9.2, 3.2)
    axes = figure.subplots()
    at = np.arange(K)
    few = K <= MAX_BARS
    axes.bar(at, train[order] / max(train.sum(), 1), width=0.72 if few else 1.0, color=BLUE, label="train")
    if test is not None:
        axes.plot(at, test[order] / max(test.sum(), 1), ls="", marker="o", ms=5 if few else 2, color=RED, label="test")
    axes.axhline(1 / K, lw=1, ls="--", color="0.5")
    axes.annotate("uniform use", (1, 1 / K), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="component, most used first", ylabel="share of samples", xlim=(-0.6, K - 0.4))
    if few:
        axes.set_xticks(at, [str(k) for k in order])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    axes.set_title(f"Use of the {K} components{suffix}" if K > 1 else "Use of the one component")
    return figure


@styled
def class_matrix(
    k: np.ndarray, labels: np.ndarray, K: int, classes: tuple[str, ...] | None, order: np.ndarray, *,
    suffix: str = "", theme: Theme = "light",
) -> Figure:  # fmt: skip
    """Draw a matrix with a row for each class: the share of its samples that each component codes.

    `k`, `labels`: (N,); `order`: the components, left to right; `suffix` as in `usage`. Numbers stand
    in the cells where there is room.
    """
    present = np.unique(labels)
    counts = np.zeros((len(present), K))
    np.add.at(counts, (np.searchsorted(present, labels), k), 1)
    share = (counts / counts.sum(1, keepdims=True))[:, order]
    names = [classes[c] if classes and c < len(classes) else c for c in present]
    shown = min(K, MAX_BARS)
    share = share[:, :shown]
    figure = new_figure(9.2, min(1.6 + 0.34 * len(present), 14))
    axes = figure.subplots()
    image = axes.imshow(share, cmap=SHARE[theme], vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.set_yticks(np.arange(len(names)), [label(name, 24) for name in names])
    axes.set_xticks(np.arange(shown)[:: max(1, shown // 30)], [str(c) for c in order[:shown]][:: max(1, shown // 30)])
    more = "" if shown == K else f" (the {shown} most used of {K})"
    axes.set(xlabel=f"component, most used first{more}", ylabel="")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if shown <= 16:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.005:
                dark = value > 0.45 if theme == "light" else value <= 0.45
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8.5,
                          color="white" if dark else "#1f2328")  # fmt: skip
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=30)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.outline.set_visible(False)
    axes.set_title(f"Components{suffix} that code each class (% of the class's test samples)")
    return figure


@styled
def spectrum(
    variance: np.ndarray,
    order: np.ndarray,
    D: int,
    *,
    suffix: str = "",
    unit: str = GREY_LEVELS,
    theme: Theme = "light",
) -> Figure:
    """Draw the variance along each principal axis of each component, in `unit` (variance / D).

    `variance` (K, E) sums over the D values; `order`: components by use. The five most used have a colour, the others
    are grey lines.
    """
    figure = new_figure(9.2, 3.6)
    axes = figure.subplots()
    K, E = variance.shape
    at = np.arange(1, E + 1)
    least = ROUNDING * variance.max(initial=0)
    per_pixel = np.where(variance > least, variance, np.nan) / D
    if E == 0:
        axes.text(0.5, 0.5, "E = 0: components have no axes", ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
    for place, k in reversed(list(enumerate(order))):
        main = place < MAX_LINES
        mark = "." if E == 1 else ""  # a single point has no line to be seen by
        axes.plot(
            at, per_pixel[k], color=CYCLE[place] if main else "0.6", lw=1.8 if main else 0.7,
            alpha=1 if main else 0.6, marker=MARKERS[place] if main and E <= 60 else mark, zorder=3 if main else 2,
            label=f"component {k}" if main else None,
        )  # fmt: skip
    if E:
        axes.set_yscale("log")
        axes.set_xlim(0.5, E + 0.5)
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter(_Plain(minor_thresholds=(2, 0.6)))
        if K > 1:
            handles, labels = axes.get_legend_handles_labels()
            axes.legend(handles[::-1], labels[::-1], title="" if K <= MAX_LINES else "most used; others grey")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    whose = "component" if K > 1 else "code"
    axes.set(xlabel=f"principal axis of the {whose}, largest variance first", ylabel=f"variance ({unit})")
    axes.set_title(f"Variance by principal axis of each component{suffix}" if K > 1 else "Variance by principal axis")
    return figure


class _Plain(LogFormatter):
    """Writes 0.01 instead of 1e-02 at the ticks that LogFormatter labels."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""
