"""The style of all figures: colours that colour-blind people can tell apart, and two themes.

Figures are built on `matplotlib.figure.Figure` without pyplot, so nothing is kept open and no display is needed.
"""

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from llgae_cli.formatting import format_value
from llgae_cli.storage.atomic import write_atomically

logger = logging.getLogger(__name__)

# Paul Tol's "bright" scheme (personal.sron.nl/~pault): distinct for all common kinds of colour blindness.
BLUE, RED, GREEN, YELLOW, CYAN, PURPLE, GREY = (
    "#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB",
)  # fmt: skip
CYCLE = (BLUE, RED, GREEN, YELLOW, CYAN, PURPLE, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # a series is marked by shape as well as by colour

# Families with Chinese, Japanese and Korean characters, which DejaVu Sans lacks; those that are installed are used.
WIDE = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS",
)  # fmt: skip
DPI = 100  # inches are pixels / DPI: cells of pictures are laid out in pixels

Theme = Literal["light", "dark"]
P = ParamSpec("P")
Drawn = TypeVar("Drawn", Figure, Figure | None)


@dataclass(frozen=True)
class Ink:
    """Colours of a theme: text, grid lines, page, and empty cells."""

    text: str
    faint: str
    page: str
    none: str  # where a diverging or sequential scale has nothing to show


INKS: dict[Theme, Ink] = {
    "light": Ink("#1f2328", "#d5d8dc", "#ffffff", "#f6f7f8"),
    "dark": Ink("#e6e8ea", "#41474e", "#16191d", "#20252a"),
}

# Residuals: blue below, red above, the page's colour where the reconstruction is right.
ENDS: dict[Theme, tuple[str, str, str, str]] = {
    "light": ("#2166ac", "#7db1d8", "#ef9a80", "#b2182b"),
    "dark": ("#a8d3f5", "#3d7fb8", "#c4583f", "#ffb8a3"),
}
RESIDUAL = {
    theme: LinearSegmentedColormap.from_list(f"residual-{theme}", [*ENDS[theme][:2], ink.none, *ENDS[theme][2:]])
    for theme, ink in INKS.items()
}
SHARE = {
    theme: LinearSegmentedColormap.from_list(
        f"share-{theme}", [ink.none, "#7fa6cf", BLUE if theme == "light" else CYAN]
    )
    for theme, ink in INKS.items()
}


@cache
def find_families() -> list[str]:
    """Return the font families of figures: DejaVu Sans, which comes with matplotlib, then what is there of `WIDE`."""
    return ["DejaVu Sans", *sorted(set(font_manager.get_font_names()) & set(WIDE), key=WIDE.index)]


def find_missing(figure: Figure) -> str:
    """Return the characters of the figure's texts that no font here has, without repeats."""
    characters = {c for text in figure.findobj(Text) for c in text.get_text() if c.isprintable()}
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in find_families()]
    return "".join(sorted(c for c in characters if not any(font.get_char_index(ord(c)) for font in fonts)))


def rc(theme: Theme) -> dict[str, Any]:
    """Return the matplotlib settings of a theme."""
    ink = INKS[theme]
    return {
        "font.family": find_families(),
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.labelsize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": ink.text,
        "axes.linewidth": 0.8,
        "axes.labelcolor": ink.text,
        "axes.titlecolor": ink.text,
        "axes.facecolor": ink.page,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=CYCLE),
        "grid.color": ink.faint,
        "grid.linewidth": 0.6,
        "xtick.color": ink.text,
        "ytick.color": ink.text,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "text.color": ink.text,
        "legend.frameon": False,
        "legend.fontsize": 10,
        "lines.linewidth": 1.8,
        "lines.markersize": 4.5,
        "figure.facecolor": ink.page,
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "svg.hashsalt": "llgae",  # the same figure gives the same file
    }


def styled(draw: Callable[P, Drawn]) -> Callable[P, Drawn]:
    """Decorate a function that draws a figure: it runs with the settings of its `theme` keyword."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Drawn:
        theme = kwargs.get("theme", "light")
        with matplotlib.rc_context(rc(theme)):  # type: ignore[arg-type]
            return draw(*args, **kwargs)

    return drawn


def label(value: Any, limit: int = 0) -> str:
    """Return a value as text for a figure: cut to `limit` (0: no limit), `$` escaped, which starts mathematics."""
    return format_value(value, limit).replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches whose labels stay inside."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write the figure atomically, in the format of the suffix (.png, .svg, .pdf). Raises RunError."""
    with write_atomically(path, durable=False) as temporary:
        temporary.write_bytes(encode(figure, path.suffix.lstrip(".").lower()))
    return path


def encode(figure: Figure, kind: str) -> bytes:
    """Return the figure as a file of this kind: png, svg or pdf, without a date: equal figures give equal files.

    Texts of an SVG are outlines; where the fonts here lack characters they stay texts, which the viewer's fonts draw.
    """
    missing = find_missing(figure)
    if missing and kind != "svg":
        logger.warning("no font here has '%s'; the figure as .svg keeps them as text", missing[:20])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return _encode(figure, kind, "none" if missing else "path")


def _encode(figure: Figure, kind: str, fonttype: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "png":  # without the alpha channel
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        image.save(buffer, "png", dpi=(DPI, DPI))  # optimize=True: 2 % smaller, seven times as long
    else:
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
        with matplotlib.rc_context({"svg.hashsalt": "llgae", "svg.fonttype": fonttype}):
            figure.savefig(buffer, format=kind, facecolor=figure.get_facecolor(), metadata=undated)
    return buffer.getvalue()
