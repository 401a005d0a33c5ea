"""What a task is: two sets of samples, what their values mean, and where they came from."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import PurePath

import torch

from llgae_cli.tasks.samples import Samples

HASHED_WHOLE_BYTES = 1 << 28
HASHED_BLOCKS = 256


@dataclass(frozen=True)
class Task:
    """A data set, ready to train on.

    `name`: canonical, as checkpoints carry it. `train`, `test`: the Samples. `shape`: of one sample, (H, W) or
    (H, W, 3) for images and (D,) for plain vectors, in C order. `classes`: names of the labels 0, 1, ..., or None.
    `peak`: greatest value minus least a sample can take (255 for 8-bit images), the unit of PSNR. `source`: in human
    words, where the data was found. `fingerprint`: see `fingerprint`. `place`: the path within `source`, if any.
    """

    name: str
    train: Samples
    test: Samples
    shape: tuple[int, ...]
    classes: tuple[str, ...] | None
    peak: float
    source: str
    fingerprint: str
    place: str = ""

    @property
    def origin(self) -> str:
        """`source` for files that others get: of an absolute path only the last part."""
        path = PurePath(self.place)
        return self.source.replace(self.place, path.name) if path.is_absolute() and path.name else self.source

    def hold_out(self, share: float, seed: int) -> tuple[Samples, Samples | None]:
        """Return the training samples without a random share of them, and that share (None where it is 0)."""
        n = round(self.train.N * share)
        if n == 0:
            return self.train, None
        order = torch.randperm(self.train.N, generator=torch.Generator().manual_seed(seed))
        return self.train.subset(order[n:].sort().values), self.train.subset(order[:n].sort().values)

    def to(self, device: torch.device) -> "Task":
        """The same task with its samples on a device (see `Samples.to`)."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def fingerprint(train: Samples, test: Samples, shape: tuple[int, ...]) -> str:
    """Return 16 hex digits that stand for the stored values of both sets: sha256 over shape, type and bytes, in order.

    The way of storing (memory or file, C or Fortran order) does not enter. Of a set of more than 256 MiB, shape,
    type and 256 evenly spaced blocks of some 1 MiB are hashed, first and last included: quick for any size, but blind
    to a change between the blocks.
    """
    digest = hashlib.sha256()
    for samples in (train, test):
        row_bytes = samples.D * samples.itemsize
        digest.update(f"{samples.N} x {shape} {samples.stored};".encode())
        block = max(1, (1 << 20) // row_bytes)
        last = max(0, samples.N - block)
        if samples.N * row_bytes <= HASHED_WHOLE_BYTES:
            starts = list(range(0, samples.N, block))
        else:
            starts = sorted({last * i // (HASHED_BLOCKS - 1) for i in range(HASHED_BLOCKS)})
        for start in starts:
            part = samples.part(start, start + block).stored_values()
            digest.update(part.contiguous().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()[:16]
