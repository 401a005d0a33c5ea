"""All figures of a checkpoint, by name; drawn one by one, in either theme."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from llgae_cli.errors import InputError
from llgae_cli.figures.atlas import atlas
from llgae_cli.figures.comparison import comparison
from llgae_cli.figures.components import class_matrix, spectrum, usage
from llgae_cli.figures.curves import training_curve
from llgae_cli.figures.pictures import reconstructions
from llgae_cli.figures.style import Theme, save
from llgae_cli.figures.subject import Subject, look
from llgae_cli.figures.tradeoffs import tradeoffs


def _classes(subject: Subject, theme: Theme) -> Figure | None:
    if subject.labels is None or subject.model.K == 1:
        return None
    return class_matrix(
        subject.k, subject.labels, subject.model.K, subject.task.classes, subject.by_use(), level=subject.level,
        theme=theme,
    )  # fmt: skip


def _usage(subject: Subject, theme: Theme) -> Figure | None:
    if subject.model.K == 1:  # no components, or a single one that has all samples
        return None
    test = np.bincount(subject.k, minlength=subject.model.K)
    return usage(subject.latents.count.numpy(), test, level=subject.level, theme=theme)


FIGURES: dict[str, Callable[[Subject, Theme], Figure | None]] = {
    "training": lambda subject, theme: training_curve(subject.checkpoint.history, theme=theme),
    "reconstructions": lambda subject, theme: reconstructions(subject, theme=theme),
    "atlas": lambda subject, theme: atlas(subject, theme=theme),
    "usage": _usage,
    "classes": _classes,
    "spectrum": lambda subject, theme: spectrum(
        subject.directions.variance.numpy(), subject.by_use(), subject.model.D, level=subject.level, theme=theme
    ),
}
BESIDE_CHECKPOINT = ("training", "reconstructions")


def write(
    subject: Subject,
    folder: Path,
    names: tuple[str, ...] = tuple(FIGURES),
    kinds: tuple[str, ...] = ("png", "svg"),
    theme: Theme = "light",
    prefix: str = "",
) -> list[Path]:
    """Write figures as `folder/PREFIXname.kind` and return the paths; what model or data cannot show is left out.

    Raises RunError when the folder cannot be written.
    """
    written = []
    for name in names:
        figure = FIGURES[name](subject, theme)
        if figure is not None:
            written += [save(figure, folder / f"{prefix}{name}.{kind}") for kind in kinds]
    return written


def write_comparison(
    subjects: Sequence[Subject],
    folder: Path,
    kinds: tuple[str, ...] = ("png", "svg"),
    theme: Theme = "light",
    walks: bool = True,
) -> list[Path]:
    """Write several checkpoints side by side as `folder/comparison.kind`; InputError when their data differ."""
    for subject in subjects[1:]:
        if subject.task.fingerprint != subjects[0].task.fingerprint:
            raise InputError(f"{subject.path.name}: other data than {subjects[0].path.name}'s; compare like with like")
    figure = comparison(subjects, walks, theme=theme)
    return [save(figure, folder / f"comparison.{kind}") for kind in kinds]


def write_tradeoffs(
    rows: Sequence[Mapping[str, Any]], folder: Path, kinds: tuple[str, ...] = ("png", "svg"), theme: Theme = "light"
) -> list[Path]:
    """Write what a lower mean L2 costs (see `tradeoffs`) as `folder/tradeoffs.kind`."""
    figure = tradeoffs(rows, theme=theme)
    return [save(figure, folder / f"tradeoffs.{kind}") for kind in kinds]


def write_beside(path: Path, data_dir: Path | None = None) -> list[Path]:
    """Write the training curve and the reconstructions beside a checkpoint, as PNG; returns their paths."""
    stem = path.name.removesuffix(".pkl")
    return write(look(path, data_dir), path.parent, BESIDE_CHECKPOINT, ("png",), prefix=f"{stem}.")
