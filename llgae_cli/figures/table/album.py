"""`view_table`: the arrays of a table's charts, from an evaluated checkpoint."""

from collections.abc import Sequence

import numpy as np
import torch

from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.evaluation import Evaluated
from llgae_cli.evaluation.latents import draw_codes
from llgae_cli.figures.table.contents import AXES, TableView
from llgae_cli.figures.units import error_unit

DRAWN_ROWS = 600  # of a scatter plot
SAMPLES = 8
SEED = 0


def is_table(evaluated: Evaluated) -> bool:
    """Return whether the samples are vectors: rows of a table, not images."""
    return len(evaluated.task.shape) == 1


def find_variable(names: Sequence[str], wanted: str) -> int:
    """Return the index of the variable of this name. Raises InputError with the nearest name."""
    if wanted not in names:
        near = nearest(wanted, names) or f"; the first of {len(names)} is '{printable(names[0], 40)}'"
        raise InputError(f"no variable is called '{printable(wanted, 60)}'{near}")
    return list(names).index(wanted)


def find_error_unit(evaluated: Evaluated) -> str:
    """Return the unit of the checkpoint's mean L2."""
    samples = evaluated.split_samples
    return error_unit(samples.stored == "uint8" and not is_table(evaluated), samples.scaling is not None)


@torch.no_grad()
def view_table(evaluated: Evaluated, colour: str | None = None, over: Sequence[str] = ()) -> TableView:
    """Return the arrays of a table's charts. `colour`: a variable's name; `over`: two names. See `TableView`.

    Raises InputError for a variable that the data does not have.
    """
    model, samples, variables = evaluated.model, evaluated.split_samples, evaluated.variables
    assert variables is not None, "of a table"
    coloured = None if colour is None else find_variable(variables.names, colour)
    chosen = [find_variable(variables.names, name) for name in over]
    rows = np.arange(0, samples.N, max(1, -(-samples.N // DRAWN_ROWS)))
    code = model.encode(samples.rows(torch.from_numpy(rows)))
    k = code.k.cpu().numpy()
    a = np.zeros((len(rows), min(2, model.E)))
    for j in np.unique(k) if model.E else ():
        a[k == j] = evaluated.axes.coordinates(int(j), code.b.cpu()[k == j])[:, :2].numpy()
    J = min(AXES, model.E)
    centres = np.stack([evaluated.decode(j, evaluated.axes.mean[j][None])[0] for j in range(model.K)])
    axes = np.zeros((model.K, J, model.D))
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    for component in range(model.K):
        for j in range(J):
            low, high = evaluated.decode(component, evaluated.axes.walk(component, j, ends))
            axes[component, j] = (high - low) / 2
    count = evaluated.latents.count.numpy().astype(np.float64)
    return TableView(
        names=variables.names,
        v=evaluated.originals(rows),
        v_hat=evaluated.reconstructions(rows),
        k=k,
        a=a,
        labels=None if evaluated.labels is None else evaluated.labels[rows],
        classes=evaluated.task.classes,
        N=samples.N,
        mean=variables.mean,
        std=variables.std,
        r2=variables.r2,
        rmse=variables.rmse,
        rmse_in=variables.rmse_by_component,
        order=evaluated.by_use(),
        use=count / max(1.0, count.sum()),
        centres=centres,
        axes=axes,
        explained=np.stack([evaluated.explained(j)[:J] for j in range(model.K)]),
        drawn=_draw(evaluated),
        colour=coloured,
        over=(chosen[0], chosen[1]) if len(chosen) == 2 else None,
    )


def _draw(evaluated: Evaluated) -> np.ndarray:
    """Return rows drawn from the model, in their own units."""
    drawn = draw_codes(evaluated.model, evaluated.latents, SAMPLES, SEED)
    return np.concatenate([evaluated.decode_code(code) for code in drawn])
