"""One look for every figure: colours that colour-blind people can tell apart, units on axes, two themes.

Figures are built on `matplotlib.figure.Figure` without pyplot, so nothing is kept open and no display is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from llgae_cli.storage.atomic import write_atomically

# Paul Tol's "bright" scheme (personal.sron.nl/~pault): distinct for all common kinds of colour blindness.
BLUE, RED, GREEN, YELLOW, CYAN, PURPLE, GREY = (
    "#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB",
)  # fmt: skip
CYCLE = (BLUE, RED, GREEN, YELLOW, CYAN, PURPLE, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # a series is told by its mark too, not by colour alone

SQUARED = "mean L2 (squared grey levels per pixel)"
DPI = 100  # inches are pixels / DPI: cells of pictures are laid out in pixels

Theme = Literal["light", "dark"]
P = ParamSpec("P")
Drawn = TypeVar("Drawn", Figure, Figure | None)


@dataclass(frozen=True)
class Ink:
    """A theme's colours: of text, of what recedes, of the page behind, and of a picture's cell edge."""

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


def rc(theme: Theme) -> dict[str, Any]:
    """The matplotlib settings of a theme."""
    ink = INKS[theme]
    return {
        "font.family": "DejaVu Sans",  # matplotlib brings it: the same everywhere
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
    """Draw in the house style: the decorated function's `theme` keyword chooses which."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Drawn:
        theme = kwargs.get("theme", "light")
        with matplotlib.rc_context(rc(theme)):  # type: ignore[arg-type]
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches that keeps its labels inside."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """Write the figure as its suffix says (.png, .svg, .pdf), whole or not at all; RunError when it cannot be."""
    with write_atomically(path, durable=False) as temporary, matplotlib.rc_context({"svg.hashsalt": "llgae"}):
        kind = path.suffix.lstrip(".").lower()
        figure.savefig(temporary, format=kind, dpi=dpi, facecolor=figure.get_facecolor(), **_undated(kind))
        if kind == "png":
            with Image.open(temporary) as drawn:  # opaque, so the alpha channel is left out: a fifth smaller
                drawn.convert("RGB").save(temporary, "png", optimize=True, dpi=(dpi, dpi))
    return path


def _undated(kind: str) -> dict[str, Any]:
    return {"svg": {"metadata": {"Date": None}}, "pdf": {"metadata": {"CreationDate": None}}}.get(kind, {})
