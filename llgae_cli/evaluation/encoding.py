"""The one loop that encodes a data set, chunk by chunk: everything that is measured or written goes through it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from llgae_cli.errors import InputError
from llgae_cli.models import Model
from llgae_cli.storage.codes import create_codes
from llgae_cli.tasks import Samples
from llgae_cli.threads import run_parallel

CHUNK, LARGEST_CHUNK, CHUNK_VALUES = 2048, 8192, 1 << 20  # rows at a time; more than CHUNK where they have few values


class Coder(Protocol):
    """Anything that encodes samples to (k, b) and has a residual: every `Model` does.

    K        values that k takes
    E        numbers in b
    symbols  how many values each further symbol of the code takes
    """

    K: int
    E: int
    symbols: tuple[int, ...]

    def encode(self, x: Tensor) -> Any:
        """Return the code of x (n, D), with attributes k (n,), b (n, E) and s (n, S) or None."""

    def residual(self, x: Tensor, code: Any) -> Tensor:
        """Return x - x_hat, shape (n, D)."""


@dataclass(frozen=True)
class Encoded:
    """A chunk of samples with their code: which rows of the data set, x (n, D), and the code of x."""

    model: Coder
    rows: slice
    x: Tensor
    code: Any

    @torch.no_grad()
    def squared_residual(self, code: Any = None) -> Tensor:
        """Return |x - x_hat|^2 of each sample, shape (n,); for another code if one is given."""
        return self.model.residual(self.x, self.code if code is None else code).square_().sum(1)


@torch.no_grad()
def encode(model: Coder, samples: Samples) -> Iterator[Encoded]:
    """Encode the samples in order, a chunk at a time. Memory: one chunk, whatever the size of the data set."""
    for rows in list_chunks(model, samples, range(samples.N)):
        yield encode_rows(model, samples, rows)


def encode_rows(model: Coder, samples: Samples, rows: slice) -> Encoded:
    """Encode the given rows at once."""
    x = samples.rows(rows)
    return Encoded(model, rows, x, model.encode(x))


def list_chunks(model: Coder, samples: Samples, *ranges: range) -> list[slice]:
    """Return the rows of all ranges, as many at a time as are encoded together.

    They have at most CHUNK_VALUES values, and distances from all components, unless that is less than CHUNK rows.
    """
    n = max(CHUNK, min(LARGEST_CHUNK, CHUNK_VALUES // max(samples.D, model.K)))
    return [slice(low, min(low + n, here.stop)) for here in ranges for low in here[::n]]


def write_codes(model: Model, samples: Samples, path: Path) -> float:
    """Write the codes of all samples, in order, to the .npz at `path`; return their mean L2.

    Chunks are encoded in parallel, each by one thread: the file does not depend on the number of threads. Raises
    InputError for values that are not finite, RunError when the disk is full; `path` is then as it was.
    """
    total = 0.0

    @torch.no_grad()
    def code(rows: slice) -> tuple[slice, Any, Tensor, Tensor]:
        chunk = encode_rows(model, samples, rows)
        return rows, chunk.code, chunk.squared_residual() / samples.D, samples.means(rows)

    with create_codes(path, model, samples.N, samples.names) as add:

        def write(coded: tuple[slice, Any, Tensor, Tensor]) -> None:
            nonlocal total
            rows, codes, mean_l2, means = coded
            if not bool(torch.isfinite(mean_l2).all()):
                row = rows.start + int((~torch.isfinite(mean_l2)).nonzero()[0])
                raise InputError(f"{samples.origin}: row {row} has no finite code (rows count from 0)")
            total += float(mean_l2.double().sum())
            add(codes, mean_l2, means)

        run_parallel(code, list_chunks(model, samples, range(samples.N)), write, samples.device.type == "cpu")
    return total / samples.N
