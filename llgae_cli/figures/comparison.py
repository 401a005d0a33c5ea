"""Several checkpoints on the same test samples, and walks through some components: one wide picture."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure

from llgae_cli.figures import cells
from llgae_cli.figures.reconstructions import draw_sheet
from llgae_cli.figures.style import Theme, label, styled
from llgae_cli.formatting import five_digits

MARGIN = 118  # pixels left of the cells, where no label takes more
LETTER = 7.3  # pixels that a label's letter takes, at most on average
NAME = 26  # letters in a line of a name
TILE = 84  # pixels of an image: one that is compared has to be seen


@dataclass(frozen=True)
class Reconstructed:
    """A checkpoint's row: its name, the error of all test samples, and what it makes of the chosen ones, (n, D).

    The error is the mean L2 of reconstructions; with `bits`, the mean squared error of samples decoded from a file of
    so many bits a sample.
    """

    name: str
    error: float
    values: np.ndarray
    bits: float | None = None

    def describe(self) -> list[str]:
        """Return the lines with the numbers, below the name."""
        if self.bits is None:
            return [f"mean L2 {five_digits(self.error)}"]
        return [f"{self.bits:.2f} bits", f"mean squared error {five_digits(self.error)}"]


@dataclass(frozen=True)
class Walk:
    """A walk along the first principal axis of a component, from -2 to +2 sd: what it decodes to, (n, D)."""

    label: str
    values: np.ndarray


@styled
def comparison(
    originals: np.ndarray,
    captions: Sequence[str],
    reconstructed: Sequence[Reconstructed],
    walks: Sequence[Walk],
    looks: cells.Looks,
    *,
    theme: Theme = "light",
) -> Figure:
    """Draw originals (n, D), a row of reconstructions for each checkpoint, then the walks."""
    rows = [cells.Row(originals, "original", captions=captions)]
    labels: list[list[str]] = []
    for one in reconstructed:
        labels.append([*(textwrap.wrap(one.name, NAME, break_on_hyphens=False) or [""]), *one.describe()])
        rows.append(cells.Row(one.values, label("\n".join(labels[-1]))))
    for i, walk in enumerate(walks):
        steps = np.linspace(-2, 2, len(walk.values))
        above = [f"{step:+.1f}".replace("-", "−") for step in steps] if i == 0 else []
        rows.append(cells.Row(walk.values, walk.label, captions=above, gap_before=i == 0))
    longest = max(len(line) for lines in labels for line in lines)
    margin = max(MARGIN, round(LETTER * longest) + 16)
    return draw_sheet(rows, replace(looks, tile=TILE), "", theme, margin=margin)
