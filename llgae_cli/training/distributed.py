"""Reductions over the processes of a torchrun; with one process each is the identity."""

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from llgae_cli.errors import RunError

PATIENCE = timedelta(minutes=5)  # a rank that stays silent longer is taken for dead


def join(device: torch.device) -> None:
    """Join the group that torchrun announces in the environment, if it does: NCCL for CUDA, else gloo."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)


def leave() -> None:
    """Leave the group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def active() -> bool:
    """Whether this process is one of several."""
    return dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number; rank 0 alone writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(N: int) -> tuple[int, int]:
    """The rows [start, stop) of this process: contiguous, sizes differ by one at most."""
    return N * rank() // world(), N * (rank() + 1) // world()


def sum_(tensors: Iterable[Tensor]) -> None:
    """Add each tensor up over the processes, in place."""
    if active():
        for tensor in tensors:
            _checked(dist.all_reduce, tensor)


def from_first_(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor with rank 0's, in place."""
    if active():
        for tensor in tensors:
            _checked(dist.broadcast, tensor, 0)


def agreed(flag: bool) -> bool:
    """True on every process once it is true on any."""
    if not active():
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    count = torch.tensor(float(flag), device=device)
    sum_([count])
    return bool(count > 0)


def _checked(collective, *arguments) -> None:  # type: ignore[no-untyped-def]
    try:
        collective(*arguments)
    except RuntimeError as error:  # what gloo and NCCL raise when a peer is gone or silent
        raise RunError(f"rank {rank()} of {world()}: another process died or went silent ({error})") from None
