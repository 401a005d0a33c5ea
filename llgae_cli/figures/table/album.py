"""`view_table`: the arrays of a table's charts, from an evaluated checkpoint.

Everything is computed on u, the values that the model works on before a sample's mean is subtracted, and then converted
to the variables' own units, v = centre + scale u. Where the task has no scaling, u = v. R^2 is the same for u and v.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.evaluation import Evaluated
from llgae_cli.evaluation.encoding import encode
from llgae_cli.evaluation.latents import draw_codes
from llgae_cli.evaluation.variables import name_variables
from llgae_cli.figures.table.contents import AXES, TableView
from llgae_cli.figures.units import error_unit

DRAWN_ROWS = 600  # of a scatter plot
SAMPLES = 8
SEED = 0


@dataclass(frozen=True)
class Units:
    """v = centre + scale u for each variable, (D,), with the variables' names."""

    names: tuple[str, ...]
    centre: np.ndarray
    scale: np.ndarray

    def undo(self, u: np.ndarray) -> np.ndarray:
        """Return v in the variables' own units for u, (..., D)."""
        return self.centre + self.scale * u


def is_table(evaluated: Evaluated) -> bool:
    """Return whether the samples are vectors: rows of a table, not images."""
    return len(evaluated.task.shape) == 1


def read_units(evaluated: Evaluated) -> Units:
    """Return names and scaling of the variables."""
    samples = evaluated.split_samples
    names, scaling = name_variables(samples), samples.scaling
    if scaling is None:
        return Units(names, np.zeros(samples.D), np.ones(samples.D))
    return Units(names, scaling.centre, scaling.scale)


def find_variable(names: Sequence[str], wanted: str) -> int:
    """Return the index of the variable of this name. Raises InputError with the nearest name."""
    if wanted not in names:
        near = nearest(wanted, names) or f"; the first of {len(names)} is '{printable(names[0], 40)}'"
        raise InputError(f"no variable is called '{printable(wanted, 60)}'{near}")
    return list(names).index(wanted)


def find_error_unit(evaluated: Evaluated) -> str:
    """Return the unit of the checkpoint's mean L2."""
    return error_unit(is_table(evaluated), evaluated.split_samples.scaling is not None)


@torch.no_grad()
def view_table(evaluated: Evaluated, colour: str | None = None, over: Sequence[str] = ()) -> TableView:
    """Return the arrays of a table's charts. `colour`: a variable's name; `over`: two names. See `TableView`.

    Raises InputError for a variable that the data does not have.
    """
    units, model = read_units(evaluated), evaluated.model
    coloured = None if colour is None else find_variable(units.names, colour)
    chosen = [find_variable(units.names, name) for name in over]
    statistics = _measure(evaluated)
    samples = evaluated.split_samples
    rows = torch.arange(0, samples.N, max(1, -(-samples.N // DRAWN_ROWS)))
    x, means = samples.rows(rows), samples.means(rows)[:, None]
    code = model.encode(x)
    x_hat = x - model.residual(x, code)
    k = code.k.cpu().numpy()
    a = np.zeros((len(rows), min(2, model.E)))
    for j in np.unique(k) if model.E else ():
        a[k == j] = evaluated.axes.coordinates(int(j), code.b.cpu()[k == j])[:, :2].numpy()
    J = min(AXES, model.E)
    centres = np.stack([_decode(evaluated, j, evaluated.axes.mean[j][None])[0] for j in range(model.K)])
    axes = np.zeros((model.K, J, model.D))
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    for component in range(model.K):
        for j in range(J):
            low, high = _decode(evaluated, component, evaluated.axes.walk(component, j, ends))
            axes[component, j] = (high - low) / 2
    count = evaluated.latents.count.numpy().astype(np.float64)
    return TableView(
        names=units.names,
        v=units.undo(_array(x + means)),
        v_hat=units.undo(_array(x_hat + means)),
        k=k,
        a=a,
        labels=None if evaluated.labels is None else evaluated.labels[rows.numpy()],
        classes=evaluated.task.classes,
        N=samples.N,
        mean=units.undo(statistics.mean),
        std=units.scale * statistics.std,
        r2=statistics.r2,
        rmse=units.scale * statistics.rmse,
        rmse_in=units.scale * statistics.rmse_in,
        order=evaluated.by_use(),
        use=count / max(1.0, count.sum()),
        centres=units.undo(centres),
        axes=units.scale * axes,
        explained=np.stack([evaluated.explained(j)[:J] for j in range(model.K)]),
        drawn=units.undo(_draw(evaluated)),
        colour=coloured,
        over=(chosen[0], chosen[1]) if len(chosen) == 2 else None,
    )


@dataclass(frozen=True)
class _Statistics:
    """Of each variable in units of u: mean, std, r2, rmse (D,), and rmse_in (K, D), nan for an empty component."""

    mean: np.ndarray
    std: np.ndarray
    r2: np.ndarray
    rmse: np.ndarray
    rmse_in: np.ndarray


def _measure(evaluated: Evaluated) -> _Statistics:
    """Compute the statistics in one streamed pass; sums are in float64, about a row of the data."""
    model, samples = evaluated.model, evaluated.split_samples
    first = second = np.zeros(model.D)
    squared, count = np.zeros((model.K, model.D)), np.zeros(model.K)
    about = _array(samples.rows(slice(0, 1)) + samples.means(slice(0, 1))[:, None])[0]
    for chunk in encode(model, samples):
        u = _array(chunk.x + samples.means(chunk.rows)[:, None]) - about
        error = np.square(_array(model.residual(chunk.x, chunk.code)))
        first, second = first + u.sum(0), second + np.square(u).sum(0)
        k = chunk.code.k.cpu().numpy()
        count += np.bincount(k, minlength=model.K)
        for j in np.unique(k):
            squared[j] += error[k == j].sum(0)
    N = samples.N
    variance = np.maximum(second / N - np.square(first / N), 0.0)
    variance[variance < 1e-12 * second / N] = 0.0  # rounding of a constant variable
    mse = squared.sum(0) / N
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(variance > 0, 1 - mse / variance, np.nan)
        rmse_in = np.sqrt(squared / np.where(count > 0, count, np.nan)[:, None])
    return _Statistics(about + first / N, np.sqrt(variance), r2, np.sqrt(mse), rmse_in)


def _decode(evaluated: Evaluated, k: int, b: torch.Tensor) -> np.ndarray:
    """Return what component k decodes the latents b (n, E) to, plus the mean of its samples where they are centred."""
    x_hat = evaluated.model.decode(evaluated.latents.code(k, b).to(evaluated.model.device))
    return _array(x_hat) + evaluated.grey_levels[k]


def _draw(evaluated: Evaluated) -> np.ndarray:
    """Return rows drawn from the model, with the mean level of their component where samples are centred."""
    parts = []
    for code in draw_codes(evaluated.model, evaluated.latents, SAMPLES, SEED):
        x_hat = evaluated.model.decode(code.to(evaluated.model.device))
        parts.append(_array(x_hat) + evaluated.grey_levels[code.k.numpy()][:, None])
    return np.concatenate(parts)


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
