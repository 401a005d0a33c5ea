"""How well each variable of a table is reconstructed: R^2, RMSE and NRMSE, in all and by component."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llgae_cli.evaluation.encoding import Coder, encode
from llgae_cli.tasks import Samples

Floats = NDArray[np.float64]

ROUNDING = 1e-12  # of a mean square: a smaller variance is zero


@dataclass(frozen=True, eq=False)
class Variables:
    """Figures of the D variables of N rows v, with v_hat in the same units.

        R^2   = 1 - sum_i (v_i - v_hat_i)^2 / sum_i (v_i - mean v)^2
        RMSE  = sqrt(mean_i (v_i - v_hat_i)^2), in the variable's own units
        NRMSE = RMSE / std v, with the standard deviation of N values

    names               of the variables, v0, v1, ... where the data has none
    mean, std           of the rows, in the variables' own units, (D,)
    r2, rmse, nrmse     (D,); R^2 and NRMSE are NaN for a constant variable
    r2_by_component     (K, D), of the rows of each component about their own mean; NaN without rows
    rmse_by_component   (K, D), likewise
    nrmse_by_component  (K, D), by the standard deviation of the rows of each component: sqrt(1 - R^2) of these rows
    """

    names: tuple[str, ...]
    mean: Floats
    std: Floats
    r2: Floats
    rmse: Floats
    nrmse: Floats
    r2_by_component: Floats
    rmse_by_component: Floats
    nrmse_by_component: Floats

    def sort_worst(self) -> NDArray[np.int64]:
        """Return the variables, the lowest R^2 first and constant ones last."""
        return np.argsort(np.where(np.isnan(self.r2), np.inf, self.r2), kind="stable")

    def plain(self) -> list[dict[str, Any]]:
        """Return plain values of each variable in the order of the columns, None for NaN."""
        return [
            {
                "name": name,
                "r2": _plain(self.r2[d]),
                "rmse": _plain(self.rmse[d]),
                "nrmse": _plain(self.nrmse[d]),
                "r2_by_component": [_plain(value) for value in self.r2_by_component[:, d]],
                "rmse_by_component": [_plain(value) for value in self.rmse_by_component[:, d]],
                "nrmse_by_component": [_plain(value) for value in self.nrmse_by_component[:, d]],
            }
            for d, name in enumerate(self.names)
        ]


def name_variables(samples: Samples) -> tuple[str, ...]:
    """Return the names of the columns; v0, v1, ... where they have none."""
    return samples.names or tuple(f"v{d}" for d in range(samples.D))


@torch.no_grad()
def measure_variables(model: Coder, samples: Samples) -> Variables:
    """Return the figures of all variables in one streamed pass, with sums in float64."""
    K, D = model.K, samples.D
    count, squared = np.zeros(K), np.zeros((K, D))
    first, second = np.zeros((K, D)), np.zeros((K, D))
    centre: Floats | None = None
    for chunk in encode(model, samples):
        u = chunk.x.double().cpu().numpy() + samples.means(chunk.rows).double().cpu().numpy()[:, None]
        # Sums about a point inside the data: about zero, columns far from zero would cancel.
        centre = u.mean(0) if centre is None else centre
        error = model.residual(chunk.x, chunk.code).double().cpu().numpy()
        k, v = chunk.code.k.cpu().numpy(), u - centre
        for j in np.unique(k).tolist():
            own = k == j
            count[j] += own.sum()
            squared[j] += np.square(error[own]).sum(0)
            first[j] += v[own].sum(0)
            second[j] += np.square(v[own]).sum(0)
    assert centre is not None
    N, n = samples.N, np.where(count > 0, count, np.nan)[:, None]
    scatter = second - first**2 / n  # (K, D)
    mean = first.sum(0) / N
    variance = np.maximum(second.sum(0) / N - mean**2, 0.0)
    variance[variance < ROUNDING * second.sum(0) / N] = 0.0  # of a constant variable
    unit = np.ones(D) if samples.scaling is None else samples.scaling.scale
    error = squared.sum(0) / N
    std, rmse = np.sqrt(variance), np.sqrt(error)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Variables(
            names=name_variables(samples),
            mean=centre + mean if samples.scaling is None else samples.scaling.undo(centre + mean),
            std=unit * std,
            r2=np.where(variance > 0, 1 - error / variance, np.nan),
            rmse=unit * rmse,
            nrmse=np.where(variance > 0, rmse / std, np.nan),
            r2_by_component=np.where(scatter > 0, 1 - squared / scatter, np.nan),
            rmse_by_component=unit * np.sqrt(squared / n),
            nrmse_by_component=np.where(scatter > 0, np.sqrt(squared / scatter), np.nan),
        )


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
