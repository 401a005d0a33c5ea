"""The atlas: every component's mean, and walks along its principal axes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from llgae_cli.figures import cells
from llgae_cli.figures.reconstructions import draw_sheet
from llgae_cli.figures.style import Theme, styled

STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # standard deviations
MAX_COMPONENTS = 24


@dataclass(frozen=True)
class Component:
    """One row of the atlas.

    k          number of the component
    use        share of the samples that it codes
    centre     what its mean code decodes to, (D,)
    walks      for each axis, what codes at STEPS along it decode to, (axes, len(STEPS), D)
    explained  share of the component's variance along each axis, (axes,)
    """

    k: int
    use: float
    centre: np.ndarray
    walks: np.ndarray
    explained: np.ndarray


@styled
def atlas(
    components: Sequence[Component], looks: cells.Looks, K: int, *, suffix: str = "", theme: Theme = "light"
) -> Figure:
    """Draw one row a component, by use: its mean, then a walk along each axis, -2 to +2 sd in steps of one.

    Above each walk stands the share of the component's variance that the axis explains. `K`: number of components of
    the model; if fewer are shown the title says so. `suffix`: see `models.Model.k_suffix`.
    """
    rows = []
    for one in components:
        blank = np.full((1, len(one.centre)), np.nan)
        parts, captions = [one.centre[None]], [""]
        for walk, share in zip(one.walks, one.explained, strict=True):
            parts += [blank, walk]
            captions += ["", "", "", f"{share:.0%}", "", ""]
        label = f"component {one.k}\n{one.use:.1%} of samples" if K > 1 else "mean code"
        rows.append(cells.Row(np.concatenate(parts), label, captions=captions))
    shown = "" if len(components) == K else f", the {len(components)} most used of {K}"
    walked = any(len(one.walks) for one in components)
    axes = "; walks from −2 to +2 sd along its principal axes, with their share of variance" if walked else ""
    what = f"Mean of each component{suffix}{shown}" if K > 1 else "Mean of the codes, decoded"
    return draw_sheet(rows, looks, f"{what}{axes}", theme, margin=130)
