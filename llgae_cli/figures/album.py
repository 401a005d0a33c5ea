"""The figures of evaluated checkpoints and of sweeps, by name: what is drawn where, and the files.

The other modules of this package take arrays; here they get them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from llgae_cli.errors import InputError, printable
from llgae_cli.evaluation import Evaluated, name_models
from llgae_cli.evaluation.same_rate import Coded
from llgae_cli.figures import search, sweep
from llgae_cli.figures.atlas import MAX_COMPONENTS, STEPS, Component, atlas
from llgae_cli.figures.cells import Looks
from llgae_cli.figures.comparison import Reconstructed, Walk, comparison
from llgae_cli.figures.components import class_matrix, spectrum, usage
from llgae_cli.figures.rate import bit_matrix, rate_curve
from llgae_cli.figures.reconstructions import Group, name_class, pick_by_class, rank_samples, reconstructions
from llgae_cli.figures.style import Theme, save
from llgae_cli.figures.table import CHARTS, Chart, draw_chart
from llgae_cli.figures.table.album import find_error_unit, is_table, view_table
from llgae_cli.figures.tradeoffs import tradeoffs
from llgae_cli.figures.training_curve import training_curve

COLUMNS = 10  # samples in a row of images; plain vectors are wider
COLUMNS_OF_VECTORS = 6
COMPARED = 12  # samples in a row of a comparison without labels
WALKED_AXES = 3
WALKED_COMPONENTS = 3  # of the last checkpoint of a comparison


def _looks(evaluated: Evaluated) -> Looks:
    return Looks(evaluated.task.shape, *evaluated.value_range)


def _training(evaluated: Evaluated, theme: Theme) -> Figure:
    state, unit = evaluated.checkpoint.trainer_state, find_error_unit(evaluated)
    return training_curve(evaluated.checkpoint.history, _read_starts(state), unit=unit, theme=theme)


def _read_starts(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean L2 of the restarts in a trainer's state, by number; of several levels as `2.1`."""
    levels = [state.get("starts"), *(level.get("starts") for level in state.get("levels", []))]
    found = [values for values in levels if values]
    several = len(found) > 1
    return {
        f"{i}.{j}" if several else str(j): float(value)
        for i, values in enumerate(found, 1)
        for j, value in enumerate(values, 1)
    }


def _reconstructions(evaluated: Evaluated, theme: Theme) -> Figure:
    looks = _looks(evaluated)
    columns = COLUMNS if looks.is_image else COLUMNS_OF_VECTORS
    rows_of, names = rank_samples(evaluated.residual, columns), []
    if evaluated.labels is not None:
        by_class = list(pick_by_class(evaluated.residual, evaluated.labels).items())[:columns]
        names = [name_class(evaluated.task.classes, label) for label, _ in by_class]
        rows_of["by class"] = np.array([row for _, row in by_class])
    rows = np.concatenate(list(rows_of.values()))
    v, v_hat = evaluated.originals(rows), evaluated.reconstructions(rows)  # all at once: a pass has a fixed cost
    groups, first = [], 0
    for name, own in rows_of.items():
        here = slice(first, first := first + len(own))
        captions = names if name == "by class" else ()
        groups.append(Group(name, v[here], v_hat[here], evaluated.residual[own], captions))
    return reconstructions(groups, looks, unit=find_error_unit(evaluated), theme=theme)


def _atlas(evaluated: Evaluated, theme: Theme) -> Figure:
    looks, model = _looks(evaluated), evaluated.model
    axes = min(WALKED_AXES if looks.is_image else 1, model.E)
    steps = torch.tensor(STEPS, dtype=torch.float64)
    use = evaluated.latents.count.numpy() / evaluated.latents.count.sum().item()
    components = []
    for k in evaluated.by_use()[:MAX_COMPONENTS].tolist():
        walks = [evaluated.decode(k, evaluated.axes.walk(k, j, steps)) for j in range(axes)]
        explained = evaluated.explained(k)[:axes]
        components.append(Component(k, float(use[k]), _centre(evaluated, k), np.array(walks), explained))
    return atlas(components, looks, model.K, suffix=model.k_suffix, theme=theme)


def _usage(evaluated: Evaluated, theme: Theme) -> Figure | None:
    model = evaluated.model
    if model.K == 1:  # no components, or a single one that has all samples
        return None
    test = np.bincount(evaluated.k, minlength=model.K)
    return usage(evaluated.latents.count.numpy(), test, suffix=model.k_suffix, theme=theme)


def _classes(evaluated: Evaluated, theme: Theme) -> Figure | None:
    model, labels = evaluated.model, evaluated.labels
    if labels is None or model.K == 1:
        return None
    order, classes = evaluated.by_use(), evaluated.task.classes
    return class_matrix(evaluated.k, labels, model.K, classes, order, suffix=model.k_suffix, theme=theme)


def _spectrum(evaluated: Evaluated, theme: Theme) -> Figure:
    model, variance = evaluated.model, evaluated.axes.variance.numpy()
    unit = find_error_unit(evaluated)
    return spectrum(variance, evaluated.by_use(), model.D, suffix=model.k_suffix, unit=unit, theme=theme)


def _rate(evaluated: Evaluated, theme: Theme) -> Figure | None:
    points = [(point.step, point.bits, point.mean_squared_error) for point in evaluated.rate_curve]
    if not points:
        return None
    n, unit = evaluated.rate_curve[0].n, find_error_unit(evaluated)
    return rate_curve(points, evaluated.rate.step, n, unit=unit, theme=theme)


def _bits(evaluated: Evaluated, theme: Theme) -> Figure | None:
    split = evaluated.bit_split
    return None if split is None else bit_matrix(split.per_latent, split.use, theme=theme)


FIGURES: dict[str, Callable[[Evaluated, Theme], Figure | None]] = {
    "training": _training,
    "reconstructions": _reconstructions,
    "atlas": _atlas,
    "usage": _usage,
    "classes": _classes,
    "spectrum": _spectrum,
    "rate": _rate,
    "bits": _bits,
}
OF_IMAGES = ("reconstructions", "atlas")  # figures of images; a table has CHARTS in their place
NAMES = tuple(dict.fromkeys([*FIGURES, *CHARTS]))
AFTER_TRAINING = ("training", "reconstructions", "parity")  # the second of images, the third of tables


def write_figures(
    evaluated: Evaluated,
    folder: Path,
    names: Sequence[str] = NAMES,
    kinds: Sequence[str] = ("png", "svg"),
    theme: Theme = "light",
    prefix: str = "",
    colour: str | None = None,
    over: Sequence[str] = (),
    on_written: Callable[[Path], None] = lambda path: None,
) -> list[Path]:
    """Write figures as `folder/PREFIXname.kind` and return the paths; what model or data cannot show is left out.

    `colour` and `over`: variables of a table, see `table.TableView`. `on_written` gets each path once its file is
    complete. Raises InputError for a variable that the data does not have, RunError when the folder cannot be written.
    """
    written = []
    charts = draw_charts(evaluated, [name for name in names if name in CHARTS], colour, over)
    for name in names:
        figure: Figure | None = None
        if name in charts:
            figure = draw_chart(charts[name], theme=theme)
        elif name in FIGURES and not (name in OF_IMAGES and is_table(evaluated)):
            figure = FIGURES[name](evaluated, theme)
        if figure is not None:
            for kind in kinds:
                written.append(save(figure, folder / f"{prefix}{name}.{kind}"))
                on_written(written[-1])
    return written


def draw_charts(
    evaluated: Evaluated, names: Sequence[str] = tuple(CHARTS), colour: str | None = None, over: Sequence[str] = ()
) -> dict[str, Chart]:
    """Return the charts of a table by name, those that it has; none for images.

    Raises InputError for a variable that the data does not have, and for variables of images.
    """
    if not is_table(evaluated):
        if colour is not None or over:
            raise InputError(f"{printable(evaluated.task.name, 60)}: images have no variables to colour by or map over")
        return {}
    view = view_table(evaluated, colour, over) if names else None
    found = {name: CHARTS[name](view) for name in names if view is not None}
    return {name: chart for name, chart in found.items() if chart is not None}


def write_after_training(evaluated: Evaluated) -> list[Path]:
    """Write the training curve and the reconstructions (of tables: parity) next to the checkpoint, as PNG."""
    path = evaluated.path
    return write_figures(evaluated, path.parent, AFTER_TRAINING, ("png",), prefix=f"{path.name.removesuffix('.pkl')}.")


def write_comparison(
    evaluated: Sequence[Evaluated],
    folder: Path,
    kinds: Sequence[str] = ("png", "svg"),
    theme: Theme = "light",
    walks: bool = True,
) -> list[Path]:
    """Write `folder/comparison.kind`: checkpoints of one task on the same test samples.

    The samples are the median ones of their classes for the first checkpoint; without labels, its typical ones. With
    `walks`, the last one's components are walked through along their first axis.
    """
    first, last = evaluated[0], evaluated[-1]
    rows, captions = choose_compared(first)
    reconstructed = [
        Reconstructed(name, one.metrics.mean_l2, one.reconstructions(rows))
        for one, name in zip(evaluated, name_models(evaluated), strict=True)
    ]
    walked = _walks(last, len(rows)) if walks and last.model.E else []
    figure = comparison(first.originals(rows), captions, reconstructed, walked, _looks(first), theme=theme)
    return [save(figure, folder / f"comparison.{kind}") for kind in kinds]


def write_same_bits(
    evaluated: Sequence[Evaluated],
    coded: Sequence[Coded],
    chosen_by: Evaluated,
    folder: Path,
    kinds: Sequence[str] = ("png", "svg"),
    theme: Theme = "light",
) -> list[Path]:
    """Write `folder/same_bits.kind`: the samples of `choose_compared(chosen_by)`, decoded from files of one rate."""
    rows, captions = choose_compared(chosen_by)
    decoded = [
        Reconstructed(name, one.mean_squared_error, one.values, one.bits)
        for name, one in zip(name_models(evaluated), coded, strict=True)
    ]
    figure = comparison(chosen_by.originals(rows), captions, decoded, [], _looks(chosen_by), theme=theme)
    return [save(figure, folder / f"same_bits.{kind}") for kind in kinds]


def choose_compared(evaluated: Evaluated) -> tuple[np.ndarray, list[str]]:
    """Return the rows of test samples to compare models on, and captions: the median samples of the classes.

    Without labels they are typical samples, without captions.
    """
    if evaluated.labels is None:
        return rank_samples(evaluated.residual, COMPARED)["typical"], []
    by_class = pick_by_class(evaluated.residual, evaluated.labels)
    captions = [name_class(evaluated.task.classes, label) for label in by_class]
    return np.array(list(by_class.values())), captions


def write_tradeoffs(
    rows: Sequence[Mapping[str, Any]],
    evaluated: Sequence[Evaluated],
    folder: Path,
    kinds: Sequence[str] = ("png", "svg"),
    theme: Theme = "light",
) -> list[Path]:
    """Write `folder/tradeoffs.kind`, mean L2 against rate and times, of the rows of `evaluation.comparison.compare`."""
    units = dict.fromkeys(map(find_error_unit, evaluated))
    figure = tradeoffs(rows, unit=" or ".join(units), theme=theme)
    return [save(figure, folder / f"tradeoffs.{kind}") for kind in kinds]


def write_sweep(
    rows: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    ranked_by: str,
    folder: Path,
    objectives: Sequence[str] = (),
    shares: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Path]:
    """Write the pictures of a sweep's finished rows into `folder`; see `sweep.draw`.

    Of a search, with `objectives` and the `shares` of importance of its keys, `search` draws the keys' effect.
    """
    figures = sweep.draw(rows, keys, ranked_by)
    if objectives:
        figures.pop("mean_l2", None)  # its points do not form a grid
        figures["parallel_coordinates"] = search.parallel_coordinates(rows, keys, objectives)
    if shares:
        figures["importance"] = search.importance(shares)
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def _centre(evaluated: Evaluated, k: int) -> np.ndarray:
    """What component k decodes the mean of its codes to, plus the mean grey level of its samples, (D,)."""
    return evaluated.decode(k, evaluated.axes.mean[k][None])[0]


def _walks(evaluated: Evaluated, columns: int) -> list[Walk]:
    steps = torch.linspace(-2, 2, columns, dtype=torch.float64)
    walks = []
    for k in _pick_unlike(evaluated):
        label = (f"component {k}\n" if evaluated.model.K > 1 else "") + "−2 to +2 sd"
        walks.append(Walk(label, evaluated.decode(k, evaluated.axes.walk(k, 0, steps))))
    return walks


def _pick_unlike(evaluated: Evaluated) -> list[int]:
    """The most used component, then in turn the one whose mean is farthest from those chosen."""
    mu = np.stack([_centre(evaluated, k) for k in range(evaluated.model.K)])  # (K, D)
    count = evaluated.latents.count.numpy()
    order = evaluated.by_use()
    order = order[count[order] >= count.sum() / evaluated.model.K / 2]
    chosen = [int(order[0])]
    while len(chosen) < min(WALKED_COMPONENTS, len(order)):
        distance = np.linalg.norm(mu[order][:, None] - mu[chosen], axis=2).min(1)  # (len(order),)
        chosen.append(int(order[distance.argmax()]))
    return chosen
