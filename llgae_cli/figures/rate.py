"""Rate and distortion of a codec: error against bits over steps, and the bits of each latent of each component."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from llgae_cli.figures.style import BLUE, RED, SHARE, Theme, new_figure, styled
from llgae_cli.figures.units import GREY_LEVELS

MAX_ROWS = 40  # components in a matrix
MAX_LEVELS = 4  # matrices side by side
TICKS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)  # on the axis of errors, within a factor of ten


@styled
def rate_curve(
    points: Sequence[tuple[float, float, float]],
    own_step: float,
    n: int,
    *,
    unit: str = GREY_LEVELS,
    theme: Theme = "light",
) -> Figure:
    """Draw the mean squared error of decoded samples (in `unit`) against bits a sample.

    `points` are (step, bits, error), means over n samples; that at `own_step` is marked. The error is on a logarithmic
    axis where all errors are above zero.
    """
    figure = new_figure(9.2, 3.8)
    axes = figure.subplots()
    bits, error = [point[1] for point in points], [point[2] for point in points]
    axes.plot(bits, error, color=BLUE, marker="o")
    for step, x, y in points:
        if step == own_step:
            axes.plot(x, y, ls="", marker="s", ms=8, color=RED, label="the model's own step", zorder=3)
        axes.annotate(f"step {step:.4g}", (x, y), (6, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel="bits a sample, without the file's framing", ylabel=f"mean squared error ({unit})")
    axes.set_xlim(0, 1.12 * max(bits) or 1)
    low, high = min(error), max(error)
    if low > 0:
        axes.set_yscale("log")
        ticks = [m * 10.0**p for p in range(-12, 16) for m in TICKS if low / 1.1 <= m * 10.0**p <= high * 1.2]
        while len(ticks) > 8:
            ticks = ticks[::2]
        axes.set_ylim(low / 1.1, high * 1.2)
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right")
    axes.set_title(f"Mean squared error of {n} decoded samples against bits, over steps of the quantiser")
    return figure


@styled
def bit_matrix(per_latent: Sequence[np.ndarray], use: Sequence[np.ndarray], *, theme: Theme = "light") -> Figure | None:
    """Draw the bits of each latent, means over a component's samples: components down, latents across.

    per_latent   one (K, E) for each level
    use          for each level the share of the samples in each component, (K,); the most used stands at the top

    Components without samples are left out. None where no level has a latent.
    """
    shown = [(i, bits, own) for i, (bits, own) in enumerate(zip(per_latent, use, strict=True)) if bits.size]
    shown = shown[:MAX_LEVELS]
    if not shown:
        return None
    orders = [[k for k in np.argsort(-own, kind="stable") if own[k] > 0][:MAX_ROWS] for _, _, own in shown]
    height = max(len(order) for order in orders)
    figure = new_figure(9.2, min(1.5 + 0.2 * max(height, 6), 11))
    panels = np.atleast_1d(figure.subplots(1, len(shown)))
    most = max(float(bits[order].max(initial=0.0)) for (_, bits, _), order in zip(shown, orders, strict=True))
    for axes, (i, bits, own), order in zip(panels, shown, orders, strict=True):
        image = axes.imshow(
            bits[order], cmap=SHARE[theme], vmin=0, vmax=max(most, 1e-9), aspect="auto", interpolation="nearest"
        )
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        every = max(1, -(-len(order) // 25))
        names = [f"{k} ({own[k]:.1%})" for k in order]
        axes.set_yticks(np.arange(len(order))[::every], names[::every])
        latents = np.arange(bits.shape[1])[:: -(-bits.shape[1] * len(shown) // 24)]
        axes.set_xticks(latents, [str(e + 1) for e in latents])
        level = "" if len(per_latent) == 1 else f" of level {i + 1}"
        axes.set_xlabel(f"latent{level}")
    panels[0].set_ylabel("component")
    bar = figure.colorbar(image, ax=list(panels), pad=0.01, aspect=30)
    bar.set_label("bits a sample")
    bar.outline.set_visible(False)
    heading = "Bits of each latent, by component and its share of the samples"
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")  # it may be wider than the first panel
    return figure
