"""Reductions and messages between the processes of a torchrun; with one process they do nothing."""

import json
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from llgae_cli.errors import InputError, ProcessLostError

PATIENCE = timedelta(minutes=5)  # a process that does not respond for longer counts as dead
Result = TypeVar("Result")


def join(device: torch.device) -> bool:
    """Join the process group that torchrun describes in the environment, by NCCL for CUDA and gloo otherwise.

    Returns whether a group was joined; the caller then calls `leave`. A process can join only once, because torch would
    give a second group the addresses of the first.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return False
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return True


def leave() -> None:
    """Leave the group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_active() -> bool:
    """Return whether this process is one of several."""
    return dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return the index of this process; only rank 0 writes files and messages."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(N: int) -> tuple[int, int]:
    """Return the range [low, high) of the N rows that this process works on; sizes differ by one at most."""
    return N * rank() // world_size(), N * (rank() + 1) // world_size()


def sum_(tensors: Iterable[Tensor]) -> None:
    """Sum each tensor over the processes, in place."""
    if is_active():
        for tensor in tensors:
            _run_collective(dist.all_reduce, tensor)


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor with that of rank 0, in place."""
    if is_active():
        for tensor in tensors:
            _run_collective(dist.broadcast, tensor, 0)


def any_process(flag: bool) -> bool:
    """Return, on every process, whether the flag is true on any."""
    if not is_active():
        return flag
    count = torch.tensor(float(flag))
    sum_([count])
    return bool(count > 0)


def exchange(message: Any) -> list[Any]:
    """Return the messages of all processes, in the order of their ranks: plain values, as JSON holds them."""
    if not is_active():
        return [message]
    own = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
    lengths = torch.zeros(world_size(), dtype=torch.int64)
    lengths[rank()] = len(own)
    sum_([lengths])
    table = torch.zeros(world_size(), int(lengths.max()), dtype=torch.uint8)
    table[rank(), : len(own)] = own
    sum_([table])
    return [json.loads(bytes(row[:n].tolist())) for row, n in zip(table, lengths.tolist(), strict=True)]


def agree(work: Callable[[], Result]) -> Result:
    """Return what `work` returns here; where it raises InputError on any process, raise that on all of them.

    Without this the other processes would wait for the one that failed.
    """
    result, reason = None, None
    try:
        result = work()
    except InputError as error:
        reason = str(error)
    reasons = exchange(reason)
    for who, first in enumerate(reasons):
        if first is not None:
            raise InputError(first if len(reasons) == 1 else f"rank {who} of {len(reasons)}: {first}")
    return cast(Result, result)


def _run_collective(collective, tensor: Tensor, *arguments) -> None:  # type: ignore[no-untyped-def]
    # Collectives transfer memory as it lies, and a basis from `qr` may lie column by column: a process whose own lies
    # row by row would receive it transposed, without an error.
    rows = tensor.contiguous()
    if dist.get_backend() == "nccl" and rows.device.type == "cpu":
        rows = rows.cuda()
    try:
        collective(rows, *arguments)
    except RuntimeError as error:  # of gloo and NCCL, for a process that is dead or does not respond
        reason = str(error).partition("\n")[0].partition(". This is")[0]
        who = f"rank {rank()} of {world_size()}"
        raise ProcessLostError(f"{who}: another process died or does not respond ({reason})") from None
    if rows is not tensor:
        tensor.copy_(rows)
