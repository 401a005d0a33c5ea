"""Reductions over the processes of a torchrun; with one process they do nothing."""

import logging
import os
import time
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from llgae_cli.errors import InputError, ProcessLostError, printable
from llgae_cli.storage.locks import Lock

PATIENCE = timedelta(minutes=5)  # a process that does not respond for longer counts as dead
LOCK_POLL = 0.3  # seconds between attempts; the first refusal may be `clean_locks` of another process holding the lock

logger = logging.getLogger(__name__)


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
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    count = torch.tensor(float(flag), device=device)
    sum_([count])
    return bool(count > 0)


def acquire(lock: Lock, patience: float) -> None:
    """Take the lock of a config, waiting up to `patience` seconds for another run to end; InputError after that.

    Only rank 0 takes it. The others take part in the exchange, because a process that is silent for minutes counts as
    dead.
    """
    began, announced = time.monotonic(), False
    while not any_process(rank() == 0 and lock.attempt()):
        waited = time.monotonic() - began
        if any_process(waited > max(patience, LOCK_POLL)):
            who = lock.holder or "another process"
            raise InputError(
                f"{printable(lock.path.parent, 300)}: {who} is already training this config ({lock.subject}) here; "
                "wait for its end with --wait, or choose another checkpoint-dir or seed"
            )
        if waited > LOCK_POLL and not announced:
            logger.info("waiting for %s, which is training this config (%s) here", lock.holder, lock.subject)
            announced = True
        time.sleep(LOCK_POLL)
    if not lock.supported:
        logger.info("this folder's file system has no locks: do not start a second run of this config here")


def _run_collective(collective, tensor: Tensor, *arguments) -> None:  # type: ignore[no-untyped-def]
    # Collectives transfer memory as it lies, and a basis from `qr` may lie column by column: a process whose own lies
    # row by row would receive it transposed, without an error.
    rows = tensor.contiguous()
    try:
        collective(rows, *arguments)
    except RuntimeError as error:  # of gloo and NCCL, for a process that is dead or does not respond
        reason = str(error).partition("\n")[0]
        who = f"rank {rank()} of {world_size()}"
        raise ProcessLostError(f"{who}: another process died or does not respond ({reason})") from None
    if rows is not tensor:
        tensor.copy_(rows)
