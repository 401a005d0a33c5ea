"""The atlas: every component's mean, and walks along its leading directions."""

import numpy as np
import torch
from matplotlib.figure import Figure

from llgae_cli.figures import cells
from llgae_cli.figures.pictures import sheet
from llgae_cli.figures.style import Theme, styled
from llgae_cli.figures.subject import Subject

STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)
MAX_COMPONENTS = 24


def walks(subject: Subject, k: int, directions: int) -> np.ndarray:
    """Pictures (directions, len(STEPS), D) from -2 to +2 standard deviations along the leading directions of k.

    What the model decodes from (k, mean_k + a B_kj), plus the mean grey level of its samples; the middle one is the
    component's mean.
    """
    steps = torch.tensor(STEPS, dtype=torch.float64)
    drawn = [subject.drawn(k, subject.directions.walk(k, j, steps)) for j in range(directions)]
    return np.stack(drawn) if drawn else np.empty((0, len(STEPS), subject.model.D))


def centre(subject: Subject, k: int) -> np.ndarray:
    """What component k draws at the mean of its codes, plus the mean grey level of its samples, (D,)."""
    return subject.drawn(k, subject.directions.mean[k][None])[0]


def explained(subject: Subject, k: int) -> np.ndarray:
    """Share (E,) of component k's variance that each direction carries: its own over all of them plus residual."""
    variance = subject.directions.variance[k].numpy()
    own = subject.residual[subject.k == k]
    rest = float(own.mean()) * subject.model.D if len(own) else 0.0
    total = variance.sum() + rest
    return variance / total if total > 0 else variance


@styled
def atlas(subject: Subject, directions: int = 3, components: int = MAX_COMPONENTS, *, theme: Theme = "light") -> Figure:
    """One row a component, by use: its mean, then a walk along each leading direction, -2 to +2 sd in steps of one.

    Above each walk stands the share of the component's variance that the direction explains. Of many components
    the most used are shown, and the title says so.
    """
    directions = min(directions if subject.looks.is_image else 1, subject.model.E)
    order = subject.by_use()[:components]
    use = subject.latents.count.numpy() / subject.latents.count.sum().item()
    looks = subject.looks
    blank = np.full((1, subject.model.D), np.nan)
    rows = []
    for k in order:
        share = explained(subject, k)
        parts, captions = [centre(subject, k)[None]], [""]
        for j, walk in enumerate(walks(subject, k, directions)):
            parts += [blank, walk]
            captions += ["", "", "", f"{share[j]:.0%}", "", ""]
        values = np.concatenate(parts)
        label = f"component {k}\n{use[k]:.1%} of samples" if subject.model.K > 1 else "mean code"
        rows.append(cells.Row(values, label, captions=captions))
    shown = "" if len(order) == subject.model.K else f", the {len(order)} most used of {subject.model.K}"
    walked = "" if directions == 0 else "; walks from −2 to +2 sd along its directions, with their share of variance"
    what = f"Mean of each component{subject.level}{shown}" if subject.model.K > 1 else "Mean of the codes, decoded"
    return sheet(rows, looks, f"{what}{walked}", theme, margin=130)
