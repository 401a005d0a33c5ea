"""Codes of samples, as arrays of numpy or tensors of torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llgae_cli.errors import InputError
from llgae_cli.models import Code, Model


@dataclass(frozen=True, eq=False)
class Codes:
    """The codes of N samples, all arrays of numpy or all tensors of torch.

    k     component, (N,) integers
    b     latents, (N, E)
    mean  each sample's own mean, which centring subtracts, in scaled units, (N,); None counts as zeros
    s     further symbols of models that have some, (N, S) integers; else None

    `len(codes)` is N; `codes[index]` are the codes of some samples, for a slice, a mask or an array of integers.
    """

    k: Any
    b: Any
    mean: Any = None
    s: Any = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.k)

    def __getitem__(self, index: Any) -> "Codes":
        """Return the codes of some samples."""
        parts = (self.k, self.b, self.mean, self.s)
        return Codes(*(None if part is None else part[index] for part in parts))


def check_codes(codes: Codes, model: Model) -> tuple[Code, Tensor]:
    """Return codes as tensors on the model's device: the code and the means (N,), both checked against the model.

    Raises InputError for shapes that do not fit the model, k or s outside their range, and numbers that are not finite.
    """
    k, b, mean, s = (None if part is None else _tensor(part) for part in (codes.k, codes.b, codes.mean, codes.s))
    if k is None or b is None:
        raise InputError("codes: k and b are needed")
    N, S = len(k), len(model.symbols)
    for name, part, shape in (("k", k, (N,)), ("b", b, (N, model.E)), ("mean", mean, (N,)), ("s", s, (N, S))):
        if part is not None and not (name == "s" and not S) and tuple(part.shape) != shape:
            raise InputError(f"codes: {name} has shape {tuple(part.shape)}; {shape} is expected")
    if S and s is None:
        raise InputError(f"codes: s is missing; the model's codes have {S} further symbols")
    columns = [("k", k, model.K)]
    columns += [(f"s[:, {j}]", s[:, j], values) for j, values in enumerate(model.symbols) if s is not None]
    for name, part, values in columns:
        if part.is_floating_point() or not bool(((part >= 0) & (part < values)).all()):
            raise InputError(f"codes: {name} holds integers from 0 to {values - 1}")
    for name, part in (("b", b), ("mean", mean)):
        if part is not None and not bool(part.isfinite().all()):
            raise InputError(f"codes: {name} holds NaN or an infinity")
    code = Code(k.long(), b.float(), s.long() if S and s is not None else None).to(model.device)
    return code, torch.zeros(N) if mean is None else mean.float().cpu()


def _tensor(part: Any) -> Tensor:
    return part.detach() if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
