"""Checks of a trainer's state from a checkpoint: a tensor of another shape would fail only some steps later."""

import math
from typing import Any

import torch
from torch import Tensor


def read_tensor(saved: Any, like: Tensor) -> Tensor:
    """Return the saved tensor with the type and device of `like`.

    Raises ValueError where it is not a tensor of floating-point numbers, all finite, with the shape of `like`.
    """
    if not isinstance(saved, Tensor) or saved.shape != like.shape or not saved.is_floating_point():
        raise ValueError(f"{_describe(saved)} where floating-point numbers of shape {tuple(like.shape)} are expected")
    tensor = saved.to(like)
    if not bool(tensor.isfinite().all()):
        raise ValueError("a tensor with values that are not finite")
    return tensor


def read_indices(saved: Any, shape: tuple[int, ...], limit: int) -> Tensor:
    """Return the saved integers as int64. Raises ValueError unless they have that shape and are in 0 ... limit - 1."""
    if not isinstance(saved, Tensor) or saved.shape != shape or saved.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{_describe(saved)} where integers of shape {shape} are expected")
    if saved.numel() and not 0 <= int(saved.min()) <= int(saved.max()) < limit:
        raise ValueError(f"an index that is not in 0 ... {limit - 1}")
    return saved.to(torch.int64)


def read_count(saved: Any) -> int:
    """Return the saved count. Raises ValueError where it is not an int >= 0."""
    if type(saved) is not int or saved < 0:
        raise ValueError(f"{_describe(saved)} where a count is expected")
    return saved


def read_number(saved: Any) -> float:
    """Return the saved number. Raises ValueError where it is not a finite number >= 0."""
    if type(saved) not in (int, float) or not 0 <= saved < math.inf:
        raise ValueError(f"{_describe(saved)} where a number is expected")
    return float(saved)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Any) -> None:
    """Call `optimizer.load_state_dict`, which checks little, and check the result.

    Raises ValueError where options other than the learning rate differ from the optimiser's own, or where the tensors
    kept for a parameter differ in name or shape from those that one step of such an optimiser creates.
    """
    own = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(saved)
    for mine, group in zip(own, optimizer.state_dict()["param_groups"], strict=True):
        if mine.keys() != group.keys() or any(mine[key] != group[key] for key in mine if key != "lr"):
            raise ValueError("an optimiser of other options")
        read_number(group["lr"])
    layouts: dict[int, dict[str, bool]] = {}
    for group in optimizer.param_groups:
        layouts |= dict.fromkeys(map(id, group["params"]), _state_layout(type(optimizer), group))
    for parameter, state in optimizer.state.items():
        layout = layouts[id(parameter)]
        if not isinstance(state, dict) or state.keys() != layout.keys():
            raise ValueError("an optimiser of another kind")
        for key, has_parameter_shape in layout.items():
            tensor = read_tensor(state[key], parameter if has_parameter_shape else torch.zeros(()))
            if has_parameter_shape:
                # A file holds tensors row by row; a fused optimiser needs the memory layout of the parameter.
                state[key] = torch.empty_like(parameter).copy_(tensor)


def _state_layout(kind: type[torch.optim.Optimizer], group: dict[str, Any]) -> dict[str, bool]:
    """Return the names of what an optimiser keeps for a parameter of a group: True where it has the same shape."""
    trial = torch.nn.Parameter(torch.zeros(2, 2))
    trial.grad = torch.zeros(2, 2)
    options = {key: value for key, value in group.items() if key != "params"}
    twin = kind([{"params": [trial], **options}])  # type: ignore[call-arg]
    twin.step()
    return {key: value.dim() > 0 for key, value in twin.state[trial].items()}


def _describe(saved: Any) -> str:
    if isinstance(saved, Tensor):
        return f"{str(saved.dtype).removeprefix('torch.')} of shape {tuple(saved.shape)}"
    return f"a {type(saved).__name__}"
