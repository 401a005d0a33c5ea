"""Bits of quantised latents under the densities' tables, tabulated by |q| for the encoders."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgae_cli.codec.density import Integers
from llgae_cli.codec.exact import IDS, find_table

PLAIN_COSTS = 256  # costs of |q| below it are tabulated one by one, others with 16 an octave
LARGEST_Q = 2.0**30


@cache
def list_coded() -> NDArray[np.bool_]:
    """Return for each table's id whether latents under it are coded, and not skipped."""
    return np.array([find_table(number) is not None for number in range(4 * IDS)])


def tabulate_costs(ids: Integers) -> Tensor:
    """Return the costs of |q| under each table, (ids, places) as in `place_costs`, in units of 2^-16 bit."""
    found = [find_table(number) for number in ids.tolist()]
    largest = min(int(LARGEST_Q), max((2 * t.half << t.low_bits for t in found if t is not None), default=1))
    places = np.arange(int(place_costs(torch.tensor([float(largest)]))) + 1)
    octave, part = np.divmod(places - PLAIN_COSTS, 16)
    values = np.where(places < PLAIN_COSTS, places, 33 + 2 * part << np.maximum(octave + 3, 0))
    free = np.zeros(len(values), np.int64)
    costs = [free if table is None else table.compute_costs(values) for table in found]
    return torch.from_numpy(np.array(costs, np.float64).reshape(len(ids), len(values)))


def place_costs(q: Tensor) -> Tensor:
    """Return where the costs of q >= 0, whole numbers in float64, are in the table: int64, rising with q."""
    if not q.numel() or float(q.max()) < PLAIN_COSTS:
        return q.to(torch.int64)
    mantissa, exponent = torch.frexp(q)  # q = mantissa 2^exponent, 1/2 <= mantissa < 1
    part = (exponent.to(torch.float64) - 9) * 16 + torch.floor((mantissa - 0.5) * 32)
    return torch.where(q < PLAIN_COSTS, q, PLAIN_COSTS + part).to(torch.int64)
