"""Reductions over the processes of a torchrun; with one process each is the identity."""

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from llgae_cli.errors import ProcessLostError

PATIENCE = timedelta(minutes=5)  # a rank that stays silent longer is taken for dead


def join(device: torch.device) -> bool:
    """Join the group that torchrun announces in the environment, if it does: NCCL for CUDA, else gloo.

    Returns whether a group was joined here; who joined leaves. A process can join once: torch hands a second group
    the addresses of the first.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return False
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return True


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
            _in_order(dist.all_reduce, tensor)


def from_first_(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor with rank 0's, in place."""
    if active():
        for tensor in tensors:
            _in_order(dist.broadcast, tensor, 0)


def agreed(flag: bool) -> bool:
    """True on every process once it is true on any."""
    if not active():
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    count = torch.tensor(float(flag), device=device)
    sum_([count])
    return bool(count > 0)


def _in_order(collective, tensor: Tensor, *arguments) -> None:  # type: ignore[no-untyped-def]
    # Collectives move memory as it lies. A basis from `qr` lies column by column, and where another process keeps its
    # own row by row it would be received transposed, without an error.
    rows = tensor.contiguous()
    try:
        collective(rows, *arguments)
    except RuntimeError as error:  # what gloo and NCCL raise when a peer is gone or silent
        said = str(error).partition("\n")[0]
        raise ProcessLostError(f"rank {rank()} of {world()}: another process died or went silent ({said})") from None
    if rows is not tensor:
        tensor.copy_(rows)
