"""Statistics of the latents in each component, as checkpoints store them, and new codes drawn from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llgae_cli.errors import InputError, printable
from llgae_cli.evaluation.encoding import CHUNK
from llgae_cli.evaluation.principal_axes import PrincipalAxes, principal_axes
from llgae_cli.models import Code, Model

UNSEEN = 1e-9  # added to the counts of a symbol, so that it can be drawn in a component without samples


@dataclass(frozen=True)
class Latents:
    """Statistics of the codes of a set of samples, per component k.

    count        samples, (K,)
    mean         mean of b, (K, E)
    covariance   covariance of b, (K, E, E)
    symbols      for each further symbol of the code, how often it has each value, (K, values)
    """

    count: Tensor
    mean: Tensor
    covariance: Tensor
    symbols: tuple[Tensor, ...] = ()

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors under the names that a checkpoint's `extras` have; `read_latents` reads them."""
        return {
            "count": self.count,
            "latent_mean": self.mean,
            "latent_covariance": self.covariance,
            **{f"symbol_{j}": counts for j, counts in enumerate(self.symbols)},
        }

    def centres(self) -> Code:
        """Return K codes, the centre of each component: the mean b, and the most frequent further symbols."""
        s = [counts.argmax(1) for counts in self.symbols]
        return Code(torch.arange(len(self.count)), self.mean, torch.stack(s, 1) if s else None)

    def code(self, k: int, b: Tensor) -> Code:
        """Return a code for each row of b (n, E) in component k, further symbols as in `centres`."""
        s = self.centres().s
        return Code(torch.full((len(b),), k), b.float(), None if s is None else s[k].repeat(len(b), 1))

    def axes(self, model: Model) -> PrincipalAxes:
        """Return the principal axes of every component's codes."""
        return principal_axes(model.jacobian(self.centres()), self.mean, self.covariance)


def read_latents(extras: dict[str, Any], model: Model, path: Path) -> Latents | None:
    """Return the statistics of the training samples' codes in a checkpoint's `extras`; None if the run is unfinished.

    Raises InputError where they do not fit the model.
    """
    K, E = model.K, model.E
    shapes: dict[str, tuple[int, ...]] = {"count": (K,), "latent_mean": (K, E), "latent_covariance": (K, E, E)}
    shapes |= {f"symbol_{j}": (K, values) for j, values in enumerate(model.symbols)}
    found: list[Any] = [extras.get(name) for name in shapes]
    if any(value is None for value in found):
        return None
    for (name, shape), value in zip(shapes.items(), found, strict=True):
        if not (isinstance(value, Tensor) and value.shape == shape and bool(torch.isfinite(value).all())):
            raise InputError(f"{printable(path.name, 200)}: its {name} does not have shape {shape}, or is not finite")
    count, mean, covariance, *symbols = (value.float() for value in found)
    if not float(count.sum()) > 0 or any(float(counts.min()) < 0 for counts in (count, *symbols)):
        raise InputError(f"{printable(path.name, 200)}: its counts of samples are negative or zero")
    return Latents(count, mean, covariance, tuple(symbols))


def draw_codes(model: Model, latents: Latents, n: int, seed: int, component: int | None = None) -> Iterator[Code]:
    """Draw n new codes, chunk by chunk: k ~ count / sum(count), or `component`; b ~ N(mean_k, covariance_k).

    Further symbols are drawn with their frequency in component k, each independently.
    """
    generator = torch.Generator().manual_seed(seed)
    axes = latents.axes(model)
    share = latents.count.double() / latents.count.double().sum()
    for start in range(0, n, CHUNK):
        m = min(CHUNK, n - start)
        if component is None:
            k = torch.multinomial(share, m, replacement=True, generator=generator)
        else:
            k = torch.full((m,), component)
        a = torch.randn(m, model.E, generator=generator, dtype=torch.float64)
        b = axes.mean[k] + torch.einsum("nef,nf->ne", axes.B[k], a)
        s = [torch.multinomial(counts[k] + UNSEEN, 1, generator=generator) for counts in latents.symbols]
        yield Code(k, b.float(), torch.cat(s, 1) if s else None)


def grid_codes(model: Model, latents: Latents, side: int, component: int | None = None) -> Code:
    """Return side^2 codes of one component (default: the most used) on a grid over its two leading axes, -2 to +2 sd.

    Row by row; the first axis runs along a row. With E = 1 all rows are equal.
    """
    axes = latents.axes(model)
    k = int(latents.count.argmax()) if component is None else component
    steps = torch.linspace(-2, 2, side, dtype=torch.float64) if side > 1 else torch.zeros(1, dtype=torch.float64)
    a = torch.zeros(side, side, model.E, dtype=torch.float64)
    if model.E > 0:
        a[:, :, 0] = steps
    if model.E > 1:
        a[:, :, 1] = steps[:, None]
    return latents.code(k, axes.mean[k] + a.reshape(side * side, model.E) @ axes.B[k].T)
