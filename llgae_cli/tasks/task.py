"""A task: training and test samples, the meaning of their values, and their origin."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import PurePath

import torch

from llgae_cli.scaling import Scaling
from llgae_cli.tasks.samples import Centring, Samples
from llgae_cli.tasks.scaling import find_range

HASHED_WHOLE_BYTES = 1 << 28
HASHED_BLOCKS = 256
LOADED_BYTES = 1 << 28


@dataclass(frozen=True)
class Task:
    """A data set, ready for training.

    name          canonical name, as in checkpoints
    train, test   the samples
    shape         of one sample, in C order: (H, W) or (H, W, 3) for images, (D,) for vectors
    classes       names of the labels 0, 1, ..., or None
    peak          range of the (scaled) values, 255 for 8-bit images, for PSNR
    source        where the data was read from, in words
    fingerprint   see the function `fingerprint`
    place         the path within `source`, if any
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
        """`source` for files that are given away: of an absolute path only the last part."""
        path = PurePath(self.place)
        return self.source.replace(self.place, path.name) if path.is_absolute() and path.name else self.source

    def prepare(self, centring: Centring, scaling: Scaling | None) -> "Task":
        """Return the same task with a centring and a scaling of its samples; `peak` is then that of scaled values."""
        train, test = self.train.prepare(centring, scaling), self.test.prepare(centring, scaling)
        return replace(self, train=train, test=test, peak=self.peak if scaling is None else find_range(train))

    def hold_out(self, share: float, seed: int) -> tuple[Samples, Samples | None]:
        """Split the training samples: return the rest and a random `share` of them (None where it is empty)."""
        n = round(self.train.N * share)
        if n == 0:
            return self.train, None
        order = torch.randperm(self.train.N, generator=torch.Generator().manual_seed(seed))
        return self.train.subset(order[n:].sort().values), self.train.subset(order[:n].sort().values)

    def to(self, device: torch.device) -> "Task":
        """Return the same task with its samples on a device (see `Samples.to`)."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def draw_rows(samples: Samples, n: int, seed: int) -> Samples:
    """Return n of the samples, drawn without replacement, each subset with the same probability; in their order.

    They depend on N, n and the seed only, not on how many processes or files hold the samples. Up to LOADED_BYTES are
    read into memory: every pass would read them again, between all the others. Memory: O(n).
    """
    share = samples.subset(draw_positions(samples.N, n, seed))
    return share.load() if n * samples.D * samples.itemsize <= LOADED_BYTES else share


def draw_positions(N: int, n: int, seed: int) -> torch.Tensor:
    """Return n of the numbers 0 ... N - 1, drawn without replacement, each subset with the same probability; sorted."""
    generator = torch.Generator().manual_seed(seed)
    if 2 * n > N:
        return torch.randperm(N, generator=generator)[:n].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < n:  # row after row, one that is drawn already is drawn again
        drawn = torch.cat([drawn, torch.randint(N, (n - len(drawn),), generator=generator)]).unique()
    return drawn


def fingerprint(train: Samples, test: Samples, shape: tuple[int, ...]) -> str:
    """Return 16 hex digits of the SHA-256 over shape, type and bytes of the stored values of both sets, in order.

    It does not depend on how they are stored (memory or file, C or Fortran order). Of a set of more than 256 MiB,
    shape, type and 256 evenly spaced blocks of some 1 MiB are hashed, with the first and the last: fast for any size,
    but a change between the blocks goes unnoticed.
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
            part = samples.gather(slice(start, start + block)).stored_rows()
            digest.update(part.contiguous().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()[:16]
