"""Several checkpoints on the same test samples, and a slice of the last one's atlas: one wide picture."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from llgae_cli.figures import cells
from llgae_cli.figures.atlas import centre
from llgae_cli.figures.pictures import by_class, class_name, ranked, sheet
from llgae_cli.figures.style import Theme, styled
from llgae_cli.figures.subject import Subject, names
from llgae_cli.formatting import five_digits

COLUMNS = 12
SLICES = 3
MARGIN = 118  # pixels left of the cells, where no name takes more
LETTER = 7.3  # pixels that a name's letter takes, at most on average


@styled
def comparison(subjects: Sequence[Subject], walks: bool = True, *, theme: Theme = "light") -> Figure:
    """Originals, a row of reconstructions a checkpoint, then `walks` along the last one's leading directions.

    The samples are the median ones of their classes for the first checkpoint (without labels: its typical ones). The
    walks go from -2 to +2 standard deviations, in three components that are far apart.
    All subjects must be of one task.
    """
    first, last = subjects[0], subjects[-1]
    if first.labels is None:
        chosen, captions = ranked(first.residual, COLUMNS)["typical"], []
    else:
        rows_of = by_class(first.residual, first.labels)
        chosen = np.array(list(rows_of.values()))
        captions = [class_name(first, label) for label in rows_of]
    rows = [cells.Row(first.originals(chosen)[0], "original", captions=captions)]
    called = names(subjects)
    for subject, name in zip(subjects, called, strict=True):
        text = f"{name}\nmean L2 {five_digits(subject.evaluation.mean_l2)}"
        rows.append(cells.Row(subject.originals(chosen)[1], text.replace("$", r"\$")))
    if walks and last.model.E:
        rows += _slices(last, len(chosen))
    return sheet(rows, first.looks, "", theme, margin=max(MARGIN, round(LETTER * max(map(len, called))) + 16))


def _slices(subject: Subject, columns: int) -> list[cells.Row]:
    steps = torch.linspace(-2, 2, columns, dtype=torch.float64)
    rows: list[cells.Row] = []
    for k in _unlike(subject):
        walk = subject.drawn(k, subject.directions.walk(k, 0, steps))
        captions = [f"{float(step):+.1f}".replace("-", "−") for step in steps] if not rows else []
        label = (f"component {k}\n" if subject.model.K > 1 else "") + "−2 to +2 sd"
        rows.append(cells.Row(walk, label, captions=captions, gap_before=not rows))
    return rows


def _unlike(subject: Subject) -> list[int]:
    """The most used component, then in turn the one that draws least like those chosen; rarely used ones aside."""
    mu = np.stack([centre(subject, k) for k in range(subject.model.K)])  # (K, D)
    count = subject.latents.count.numpy()
    order = subject.by_use()
    order = order[count[order] >= count.sum() / subject.model.K / 2]
    chosen = [int(order[0])]
    while len(chosen) < min(SLICES, len(order)):
        apart = np.linalg.norm(mu[order][:, None] - mu[chosen], axis=2).min(1)  # (len(order),)
        chosen.append(int(order[apart.argmax()]))
    return chosen
