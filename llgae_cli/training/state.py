"""What a trainer takes over from a checkpoint, checked first: a wrong shape would end the run some steps later."""

import math
from typing import Any

import torch
from torch import Tensor


def tensor_like(saved: Any, like: Tensor) -> Tensor:
    """The saved tensor, of the type and on the device of `like`.

    Raises ValueError where it is no tensor, of another shape, not of floating numbers as `like` is, or not finite.
    """
    if not isinstance(saved, Tensor) or saved.shape != like.shape or not saved.is_floating_point():
        raise ValueError(f"{_told(saved)} where floating numbers of shape {tuple(like.shape)} are expected")
    found = saved.to(like)
    if not bool(found.isfinite().all()):
        raise ValueError("a tensor with values that are not finite")
    return found


def indices(saved: Any, shape: tuple[int, ...], limit: int) -> Tensor:
    """Saved integers of that shape in 0 ... limit - 1, as int64. Raises ValueError where they are none."""
    if not isinstance(saved, Tensor) or saved.shape != shape or saved.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{_told(saved)} where integers of shape {shape} are expected")
    if saved.numel() and not 0 <= int(saved.min()) <= int(saved.max()) < limit:
        raise ValueError(f"an index that is not in 0 ... {limit - 1}")
    return saved.to(torch.int64)


def whole(saved: Any) -> int:
    """A saved count. Raises ValueError where it is none."""
    if type(saved) is not int or saved < 0:
        raise ValueError(f"{_told(saved)} where a count is expected")
    return saved


def real(saved: Any) -> float:
    """A saved number >= 0. Raises ValueError where it is none."""
    if type(saved) not in (int, float) or not 0 <= saved < math.inf:
        raise ValueError(f"{_told(saved)} where a number is expected")
    return float(saved)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Any) -> None:
    """`optimizer.load_state_dict`, which does not look at what it is given, and then a look.

    Raises ValueError where a group's options are not this optimiser's own (its rate may have moved), or where what it
    keeps of a parameter is not what one step of such an optimiser leaves, by name and shape.
    """
    own = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(saved)
    for mine, group in zip(own, optimizer.state_dict()["param_groups"], strict=True):
        if mine.keys() != group.keys() or any(mine[key] != group[key] for key in mine if key != "lr"):
            raise ValueError("an optimiser of other options")
        real(group["lr"])
    kept = _kept(optimizer)
    for parameter, state in optimizer.state.items():
        if not isinstance(state, dict) or state.keys() != kept.keys():
            raise ValueError("an optimiser of another kind")
        for key, whole_shape in kept.items():
            found = tensor_like(state[key], parameter if whole_shape else torch.zeros(()))
            if whole_shape:
                # A file holds tensors row by row. A fused optimiser walks memory, in the order of the parameter's.
                state[key] = torch.empty_like(parameter).copy_(found)


def _kept(optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    """What such an optimiser keeps of a parameter: True for what has the parameter's shape, False for one number."""
    trial = torch.nn.Parameter(torch.zeros(2))
    trial.grad = torch.zeros(2)
    options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    twin = type(optimizer)([{"params": [trial], **options}])  # type: ignore[call-arg]
    twin.step()
    return {key: value.dim() > 0 for key, value in twin.state[trial].items()}


def _told(saved: Any) -> str:
    if isinstance(saved, Tensor):
        return f"{str(saved.dtype).removeprefix('torch.')} of shape {tuple(saved.shape)}"
    return f"a {type(saved).__name__}"
