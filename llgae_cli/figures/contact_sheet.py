"""A contact sheet of new samples."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from llgae_cli.figures import cells
from llgae_cli.figures.reconstructions import draw_sheet
from llgae_cli.figures.style import Theme, save, styled

DARKEST = 0.1  # share of an image's values drawn black where its mean grey level is not known


def find_levels(x_hat: np.ndarray, x: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return a mean grey level for each centred image x_hat (n, D): that of the nearest row of x (m, D), shape (n, 1).

    `means` (m,) are the means that were subtracted from the rows x, which are training images.
    """
    distances = np.square(x).sum(1) - 2 * x_hat @ x.T
    return means[distances.argmin(1)][:, None]


def add_level(x_hat: np.ndarray, centring: str, level: float | np.ndarray | None) -> np.ndarray:
    """Return centred images (n, D) plus a mean grey level: `level`, or one that makes the darkest tenth of each black.

    The decoder gives centred images. With `centring` "none" only a given level is added.
    """
    if level is not None:
        return x_hat + level
    if centring == "none":
        return x_hat
    return x_hat - np.quantile(x_hat, DARKEST, axis=1, keepdims=True)


@styled
def contact_sheet(values: np.ndarray, looks: cells.Looks, *, theme: Theme = "light") -> Figure:
    """Draw all of `values` (n, D), row by row, in a nearly square figure."""
    columns = max(1, round(len(values) ** 0.5)) if looks.is_image else max(1, round((len(values) / 2) ** 0.5))
    rows = [cells.Row(values[start : start + columns]) for start in range(0, len(values), columns)]
    return draw_sheet(rows, looks, "", theme, margin=12)


def write_sheet(
    chunks: list[torch.Tensor],
    path: Path,
    shape: tuple[int, ...],
    peak: float,
    centring: str,
    level: float | None,
    like: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Write a contact sheet of the samples x_hat in `chunks`, each (n, D).

    `like`: centred training images (m, D) and their means (m,), from which levels are found where `level` is None.
    """
    x_hat = torch.cat(chunks).numpy()
    levels = find_levels(x_hat, *like) if like is not None and level is None else level
    looks = cells.Looks(shape, 0.0, peak)
    if looks.is_image:
        values = add_level(x_hat, centring, levels)
        if peak not in (255.0, 1.0):  # data of another range, where 0 has no meaning
            looks = cells.Looks(shape, float(values.min()), float(values.max()))
    else:
        values = x_hat + (level or 0.0)
        looks = cells.Looks(shape, float(values.min()), float(values.max()))
    save(contact_sheet(values, looks), path)
