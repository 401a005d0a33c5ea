"""Samples drawn as a table of cells: images where a sample is one, lines where it is a plain vector.

All cells are one mosaic in one set of axes: a figure of a thousand cells is drawn as quickly as one of ten.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.textpath import TextPath

from llgae_cli.figures.style import BLUE, DPI, INKS, RED, RESIDUAL, Theme

MAX_WIDTH = 64  # a line of more than 16 times as many values is thinned: its pixels cannot show more
TILE = 56  # pixels of the longer side of an image, about
GAP = 4  # pixels between cells
CAPTION = 14  # pixels a line of a caption takes
SIZES = (8.0, 6.5)  # of captions, in points
HINTING = 1.08  # width of drawn letters over that of their outlines, at most
SHORT = 5  # characters of a caption that is neither made smaller nor cut: they are numbers


@dataclass(frozen=True)
class Looks:
    """How samples are drawn: their `shape`, the values drawn black (`low`) and white (`high`), and `tile` pixels."""

    shape: tuple[int, ...]
    low: float
    high: float
    tile: int = TILE

    @property
    def is_image(self) -> bool:
        """Whether a sample is drawn as an image: shape (H, W) or (H, W, 3), both sides at least 2."""
        return len(self.shape) >= 2 and min(self.shape[:2]) > 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a cell in pixels: a whole multiple of the image's near `tile`, or 56 x 112 for lines."""
        if not self.is_image:
            return 56, 112
        H, W = self.shape[:2]
        times = max(1, round(self.tile / max(H, W)))
        shrink = max(1, -(-max(H, W) // 128))
        return max(1, H * times // shrink), max(1, W * times // shrink)

    def bytes(self, v: np.ndarray) -> np.ndarray:
        """Return values as 8-bit grey levels, clipped: 0 at `low`, 255 at `high`."""
        span = (self.high - self.low) or 1.0
        scaled = np.asarray(v, dtype=np.float64) - self.low
        return np.clip(np.rint(scaled * (255 / span)), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Row:
    """A row of cells: `values` (n, D), a label at its left, whether they are residuals, and a caption above each.

    A cell of NaN is left empty.
    """

    values: np.ndarray
    label: str = ""
    residual: bool = False
    captions: Sequence[str] = ()
    gap_before: bool = False


def extent(rows: Sequence[Row], looks: Looks) -> tuple[int, int]:
    """Return width and height of the rows in pixels, without labels."""
    H, W = looks.size
    columns = max((len(row.values) for row in rows), default=1)
    tops = _tops(rows, looks)
    return columns * (W + GAP) - GAP, tops[-1] + H if tops else H


def draw(axes: Axes, rows: Sequence[Row], looks: Looks, theme: Theme = "light", span: float | None = None) -> None:
    """Draw the rows into `axes`, in pixel coordinates. `span`: residual in full colour (default: half the range)."""
    H, W = looks.size
    ink = INKS[theme]
    width, height = extent(rows, looks)
    limit = span if span is not None else (looks.high - looks.low) / 2 or 1.0
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.grid(False)
    axes.set_frame_on(False)
    mosaic = np.empty((height, width, 3), np.uint8)
    mosaic[:] = np.rint(np.array(to_rgb(ink.page)) * 255).astype(np.uint8)
    for row, top in zip(rows, _tops(rows, looks), strict=True):
        if row.label:
            axes.text(-8, top + H / 2, row.label, ha="right", va="center", fontsize=9, clip_on=False)
        for column, values in enumerate(row.values):
            left = column * (W + GAP)
            if column < len(row.captions):
                caption, size = _fit(row.captions[column], W + GAP - 1)
                axes.text(left + W / 2, top - 4, caption, ha="center", va="bottom", fontsize=size)
            if np.isnan(values).all():  # a cell left empty
                continue
            if looks.is_image:
                pixels = _pixels(values, looks, row.residual, limit, theme)
                mosaic[top : top + H, left : left + W] = _resized(pixels, (H, W))
            else:
                mosaic[top : top + H, left : left + W] = np.rint(np.array(to_rgb(ink.none)) * 255)
    axes.imshow(mosaic, extent=(0, width, height, 0), interpolation="nearest", zorder=0)
    if not looks.is_image:
        _draw_lines(axes, rows, looks, limit)


@cache
def _fit(caption: str, width: float) -> tuple[str, float]:
    """Return a caption that is at most so many pixels wide, and its size: smaller, then cut, where it has to be."""
    for size in SIZES:
        if len(caption) <= SHORT or _width(caption, size) <= width:
            return caption, size
    lines = caption.split("\n")
    longest = max(lines, key=lambda line: _width(line, size))
    if len(longest) <= SHORT:
        return caption, size
    cut = [f"{line[: len(longest) - 2]}…" if len(line) > len(longest) - 2 > 0 else line for line in lines]
    return _fit("\n".join(cut), width)


@cache
def _width(caption: str, size: float) -> float:
    """Return the width of a caption in pixels, at most: drawn letters stand on whole pixels."""
    lines = [TextPath((0, 0), line, size=size) for line in caption.split("\n") if line.strip()]
    return max((line.get_extents().width for line in lines), default=0.0) * DPI / 72 * HINTING


def _draw_lines(axes: Axes, rows: Sequence[Row], looks: Looks, limit: float) -> None:
    H, W = looks.size
    for residual, colour in ((False, BLUE), (True, RED)):
        low, high = (-limit, limit) if residual else (looks.low, looks.high)
        segments = []
        for row, top in zip(rows, _tops(rows, looks), strict=True):
            for column, values in enumerate(row.values if row.residual == residual else ()):
                values = np.asarray(values, dtype=np.float64).ravel()
                values = values[:: -(-len(values) // (MAX_WIDTH * 16))]
                x = column * (W + GAP) + 3 + (W - 6) * np.linspace(0, 1, len(values)) if len(values) > 1 else [3.0]
                y = top + H - 3 - (H - 6) * np.clip((values - low) / ((high - low) or 1.0), 0, 1)
                if not np.isnan(y).all():
                    segments.append(np.column_stack([x, y]))
        axes.add_collection(LineCollection(segments, colors=colour, linewidths=0.9, zorder=2), autolim=False)


def _tops(rows: Sequence[Row], looks: Looks) -> list[int]:
    tops, y = [], 0
    for row in rows:
        lines = max((caption.count("\n") + 1 for caption in row.captions if caption), default=0)
        y += CAPTION * lines + (12 if row.gap_before else 0)
        tops.append(y)
        y += looks.size[0] + GAP
    return tops


def _pixels(values: np.ndarray, looks: Looks, residual: bool, limit: float, theme: Theme) -> np.ndarray:
    image = np.asarray(values, dtype=np.float64).reshape(looks.shape)
    if image.ndim == 2 and residual:
        return np.rint(RESIDUAL[theme](np.clip(image / (2 * limit) + 0.5, 0, 1))[..., :3] * 255).astype(np.uint8)
    if residual:  # a colour image's residual: mid grey where there is none, in each channel
        grey: np.ndarray = replace(looks, low=-limit, high=limit).bytes(image)
    else:
        grey = looks.bytes(image)
    return grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    H, W = pixels.shape[:2]
    if size[0] >= H:
        return pixels[np.arange(size[0]) * H // size[0]][:, np.arange(size[1]) * W // size[1]]
    from PIL import Image

    shrunk: Any = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(shrunk)
