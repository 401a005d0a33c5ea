"""Data set of N samples of D values: stored in their own type, returned as centred rows of floats."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llgae_cli import distributed
from llgae_cli.errors import InputError
from llgae_cli.scaling import Scaling
from llgae_cli.tasks.npy_file import DTYPES, NpyFile
from llgae_cli.tasks.positions import AllBut, Positions, count_below
from llgae_cli.tasks.row_source import HeldRows, RowSource

Centring = Literal["sample", "none"]
Index = slice | Tensor | np.ndarray

# Beyond this a squared distance over up to 10^8 values overflows float32.
LARGEST = 1e15
BLOCK_BYTES = 1 << 22


class Samples:
    """N samples x in R^D: x = u - mean(u) per sample (`centring="sample"`), or x = u (`"none"`).

    u = v, or u = (v - c) / s in float64 where the samples have a scaling.

    v are the stored values: an array in memory (never copied), or a `RowSource` such as an .npy file, which is
    streamed: resident memory is that of one request. Allowed types: `npy_file.DTYPES`.

    Attributes: `N`, `D`, `labels` (int64 of shape (N,), or None), `names` (of the D columns, or None), `centring`,
    `scaling` (or None), `device` (of the returned rows), `stored` (name of the stored type). A share (`part`, `subset`)
    refers to the same values.

    Raises InputError for a type that is not allowed and for a file that is not a valid .npy.
    """

    def __init__(
        self,
        source: np.ndarray | Tensor | Path | RowSource,
        labels: np.ndarray | Tensor | None = None,
        centring: Centring = "sample",
        origin: str = "data",
        names: tuple[str, ...] | None = None,
    ) -> None:
        """Keep a reference to `source`, of shape (N, ...). `origin` is its name in error messages."""
        if centring not in ("sample", "none"):
            raise ValueError(f"centring is 'sample' or 'none', not {centring!r}")
        self.centring = centring
        self.scaling: Scaling | None = None
        self.device = torch.device("cpu")
        self.origin = origin
        self._source: Tensor | RowSource
        if isinstance(source, Path):
            self.origin = str(source) if origin == "data" else origin
            source = NpyFile(source)
        if not isinstance(source, (np.ndarray, Tensor)):
            self._source = source
            dtype, shape, names = source.dtype, source.shape, names or source.names
        else:
            array = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
            dtype, shape = array.dtype.newbyteorder("="), array.shape
        if dtype.name not in DTYPES:
            raise InputError(f"{self.origin}: holds {dtype.name}; allowed are {', '.join(DTYPES)}")
        if len(shape) < 2 or min(shape[1:]) == 0:
            raise InputError(f"{self.origin}: has shape {shape}; N rows of at least one value are expected")
        if isinstance(source, (np.ndarray, Tensor)):
            self._source = _tensor(array.reshape(len(array), -1))
        self.stored = dtype.name
        self.names = names
        self.itemsize = int(dtype.itemsize)
        self._at: Positions = range(shape[0])
        self.N = shape[0]
        self.D = int(np.prod(shape[1:], dtype=object))
        self.labels = None if labels is None else torch.as_tensor(labels).to(torch.int64)
        if self.labels is not None and self.labels.shape != (shape[0],):
            raise InputError(f"{self.origin}: {len(self.labels)} labels for {shape[0]} rows")

    def __len__(self) -> int:
        """Return N."""
        return self.N

    @property
    def on_disk(self) -> bool:
        """Whether rows are streamed from a file."""
        return not isinstance(self._source, Tensor)

    def rows(self, index: Index, dtype: torch.dtype = torch.float32, out: Tensor | None = None) -> Tensor:
        """Return centred rows x, shape (n, D), of type `dtype` on `device`.

        `index` is a slice with a positive step, or integers of shape (n,) in 0..N-1. With `out`, of shape (>= n, D),
        the rows are written into it and `out[:n]` is returned: the next call with it overwrites them.
        Raises IndexError outside 0..N-1; RunError when a streamed file was changed.
        """
        return self._centre(index, dtype, out)[0]

    def means(self, index: Index, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the mean that `rows` subtracts from each sample, shape (n,): u = x + mean; 0 for centring `none`."""
        if self.centring == "none":
            return torch.zeros(len(self._pick(index)), dtype=dtype, device=self.device)
        return self._centre(index, dtype, None)[1].squeeze(1)

    def chunks(
        self,
        size: int,
        dtype: torch.dtype = torch.float32,
        start: int = 0,
        stop: int | None = None,
        out: Tensor | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield centred rows start..stop-1 in order, at most `size` at a time: (slice of them, tensor (n, D)).

        With `out`, of shape (>= size, D), every chunk is written into it and overwrites the one before.
        """
        if size < 1:
            raise ValueError(f"size is at least 1, not {size}")
        first, last, _ = slice(start, stop).indices(self.N)
        for low in range(first, last, size):
            here = slice(low, min(low + size, last))
            yield here, self.rows(here, dtype, out)

    def part(self, start: int, stop: int) -> "Samples":
        """Return the share of rows start..stop-1, over the same stored values."""
        return self._share(self._pick(slice(start, stop)), slice(start, stop))

    def subset(self, index: np.ndarray | Tensor) -> "Samples":
        """Return the share of the rows `index`, integers of shape (n,), over the same stored values."""
        where = torch.as_tensor(index)
        return self._share(self._pick(where), where)

    def every(self, step: int, first: int = 0) -> "Samples":
        """Return the share of rows first, first + step, first + 2 step, ..."""
        return self._share(self._pick(slice(first, None, step)), slice(first, None, step))

    def all_but_every(self, step: int) -> "Samples":
        """Return the share of all rows but step - 1, 2 step - 1, ...; of a whole set it takes no memory."""
        if isinstance(self._at, range) and self._at == range(self.N):
            at = AllBut(step, 0, self.N - self.N // step)
            return self._share(at, at.rows(torch.arange(len(at))) if self.labels is not None else slice(0))
        rows = torch.arange(self.N)
        return self.subset(rows[rows % step != step - 1])

    @property
    def held(self) -> tuple[range, ...] | None:
        """The positions that this process can read, where rows are divided among processes (`shards`); None: all."""
        ranges = None if isinstance(self._source, Tensor) else self._source.held
        if ranges is None:
            return None
        found = (range(count_below(self._at, rows.start), count_below(self._at, rows.stop)) for rows in ranges)
        return tuple(here for here in found if here)

    def gather(self, index: Index) -> "Samples":
        """Return the share of the rows `index` for this process, in memory where others hold some of them.

        All processes call it together, with the same index.
        """
        at = self._pick(index)
        ranges = None if isinstance(self._source, Tensor) else self._source.held
        if ranges is None or isinstance(self._source, Tensor):
            return self._share(at, index if isinstance(index, slice) else torch.as_tensor(index))
        rows = at if isinstance(at, Tensor) else _materialise(at)
        own = torch.zeros(len(rows), dtype=torch.bool)
        for here in ranges:
            own |= (rows >= here.start) & (rows < here.stop)
        values = np.zeros((len(rows), self.D), np.dtype(self.stored))
        values[own.numpy()] = self._source.read(rows[own].numpy())
        distributed.sum_([torch.from_numpy(values.view(np.uint8))])  # of a row one process has the bytes, others zeros
        gathered = copy.copy(self)
        gathered._source, gathered._at, gathered.N = _tensor(values).to(self._workplace), range(len(rows)), len(rows)
        return gathered

    def load(self) -> "Samples":
        """Return the same samples with their stored values in memory, as far as this process holds them."""
        held = self.held
        loaded = copy.copy(self)
        loaded._at = range(self.N)
        if held is None:
            loaded._source = self.stored_rows()
        else:
            parts = [self.stored_array(slice(here.start, here.stop)) for here in held]
            loaded._source = HeldRows(
                np.concatenate([np.empty((0, self.D), np.dtype(self.stored)), *parts]), held, self.N
            )
        return loaded

    def prepare(self, centring: Centring, scaling: Scaling | None) -> "Samples":
        """Return the same samples with a centring and a scaling."""
        prepared = copy.copy(self)
        prepared.centring, prepared.scaling = centring, scaling
        return prepared

    def describe_rows(self) -> dict[str, Any]:
        """Return what a checkpoint says of how rows are prepared: names of columns, centring and scaling."""
        columns = {} if self.names is None else {"columns": list(self.names)}
        scaling = {} if self.scaling is None else {"scaling": self.scaling.plain()}
        return {**columns, "centring": self.centring, **scaling}

    def to(self, device: torch.device | str) -> "Samples":
        """Return the same samples with rows on `device`, where they are converted and centred too.

        Of values in memory this share is moved to the device, in its stored type; values in a file at each request.
        """
        moved = copy.copy(self)
        moved.device = torch.device(device)
        moved.labels = None if self.labels is None else self.labels.to(device)
        if isinstance(self._source, Tensor) and self._source.device != moved._workplace:
            moved._source = self._stored_rows(self._at).to(moved._workplace)
            moved._at = range(self.N)
        return moved

    def extent(self) -> tuple[float, float]:
        """Return the smallest and the largest stored value, in one streamed pass; all processes call it together.

        Raises InputError naming the first row that holds NaN, an infinity or a value beyond LARGEST.
        """
        low, high = distributed.agree(self._extent) if self.held is not None else self._extent()
        if self.held is not None:
            lows, highs = zip(*distributed.exchange((low, high)), strict=True)
            low, high = min(lows), max(highs)
        return low, high

    def _extent(self) -> tuple[float, float]:
        low, high = float("inf"), float("-inf")
        for here, block in self.stored_blocks():
            smallest, largest = (float(value) for value in torch.aminmax(block))
            if not (smallest >= -LARGEST and largest <= LARGEST):  # also when either is NaN
                bad = ~(block.abs() <= LARGEST)
                row = int(bad.any(1).nonzero()[0])
                value = float(block[row][bad[row]][0])
                what = "NaN" if value != value else f"{value:g}"
                more = "" if what in ("NaN", "inf", "-inf") else f", beyond the {LARGEST:g} that can be squared"
                raise InputError(f"{self.origin}: row {here.start + row} holds {what}{more} (rows count from 0)")
            low, high = min(low, smallest), max(high, largest)
        return low, high

    def check_finite(self) -> None:
        """Raise InputError, as `extent` does, where a stored value is not a finite number that can be squared."""
        if self.stored.startswith("float") or self.stored == "int64":
            self.extent()

    def stored_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the stored values that are held, in order, some 4 MiB at a time: (slice of the rows, tensor (n, D)).

        In the stored type, except uint16 as int32 and bool as uint8.
        """
        size = max(1, BLOCK_BYTES // (self.D * self.itemsize))
        held = self.held
        for rows in (range(self.N),) if held is None else held:
            for low in rows[::size]:
                here = slice(low, min(low + size, rows.stop))
                block = self._widen(self._stored_rows(self._pick(here)))
                yield here, block.to(torch.uint8) if block.dtype == torch.bool else block

    def stored_rows(self, index: Index = slice(None)) -> Tensor:
        """Return stored values, (n, D), in their type (uint16 as the int16 of the same bits); `index` as in `rows`."""
        return self._stored_rows(self._pick(index))

    def stored_array(self, index: Index = slice(None)) -> np.ndarray:
        """Return stored values, (n, D), as an array of their type, uint16 too; `index` as in `rows`."""
        return self.stored_rows(index).cpu().numpy().view(np.dtype(self.stored))

    def _stored_rows(self, at: Positions) -> Tensor:
        at = _materialise(at) if isinstance(at, AllBut) else at
        if not isinstance(self._source, Tensor):
            rows = self._source.read(at if isinstance(at, range) else at.cpu().numpy())
            return _tensor(rows).to(self._workplace)
        if isinstance(at, range):
            return self._source[at.start : at.stop : at.step]
        return self._source.index_select(0, at.to(self._source.device))

    @property
    def _wide(self) -> bool:
        return self.stored in ("int32", "int64", "float64")

    @property
    def _workplace(self) -> torch.device:
        # Apple's GPU has no float64, in which wide types are centred.
        wide = self._wide or self.scaling is not None
        return torch.device("cpu") if self.device.type == "mps" and wide else self.device

    def _centre(self, index: Index, dtype: torch.dtype, out: Tensor | None) -> tuple[Tensor, Tensor]:
        stored = self._widen(self._stored_rows(self._pick(index)))  # (n, D)
        n = len(stored)
        if out is None:
            x = torch.empty(n, self.D, dtype=dtype, device=self.device)
        elif out.dtype != dtype or len(out) < n or out.shape[1:] != (self.D,):
            raise ValueError(f"out is {tuple(out.shape)} {out.dtype}; ({n} or more, {self.D}) {dtype} is expected")
        else:
            x = out[:n]
        if self.scaling is not None:
            stored = stored.to(torch.float64)
            centre, scale = self.scaling.centre, self.scaling.scale
            stored = (stored - torch.from_numpy(centre).to(stored)).div_(torch.from_numpy(scale).to(stored))
        if self.centring == "none":
            return x.copy_(stored), x.new_zeros(n, 1)
        if self._wide or self.scaling is not None:
            # Centred before rounding: float32 would lose small differences from a large mean.
            exact = stored.to(torch.float64)
            mean = exact.mean(1, keepdim=True)
            return x.copy_(exact.sub_(mean) if exact is not stored else exact - mean), mean.to(x)
        x.copy_(stored)
        mean = x.mean(1, keepdim=True)
        return x.sub_(mean), mean

    def _widen(self, stored: Tensor) -> Tensor:
        # torch has hardly any arithmetic for uint16; its bits are kept as int16 and converted chunk by chunk.
        return stored.to(torch.int32).bitwise_and_(0xFFFF) if self.stored == "uint16" else stored

    def _pick(self, index: Index) -> Positions:
        if isinstance(index, slice):
            if index.step is not None and index.step < 1:
                raise ValueError("a slice of samples has a positive step")
            return self._at.slice(index) if isinstance(self._at, AllBut) else self._at[index]
        where = torch.as_tensor(index)
        if where.dtype == torch.bool or where.is_floating_point() or where.dim() != 1:
            raise TypeError(f"an index is a slice or integers of shape (n,), not {where.dtype} {tuple(where.shape)}")
        where = where.to(torch.int64)
        # On a GPU the check would wait for every batch; there index_select itself fails at a bad index.
        if where.device.type == "cpu" and len(where) and not (int(where.min()) >= 0 and int(where.max()) < self.N):
            raise IndexError(f"rows {int(where.min())}..{int(where.max())}; rows 0..{self.N - 1} exist")
        if isinstance(self._at, range):
            whole = self._at.start == 0 and self._at.step == 1
            return where if whole else where * self._at.step + self._at.start
        if isinstance(self._at, AllBut):
            return self._at.rows(where)
        return self._at[where.to(self._at.device)]

    def _share(self, at: Positions, where: slice | Tensor) -> "Samples":
        share = copy.copy(self)
        share._at, share.N = at, len(at)
        if isinstance(at, Tensor) and isinstance(self._source, Tensor):
            share._at = at.to(self._source.device)  # once, not at every request
        if self.labels is not None:
            share.labels = self.labels[where.to(self.labels.device) if isinstance(where, Tensor) else where]
        return share


def _materialise(at: Positions) -> Tensor:
    """Return the rows as indices, (n,)."""
    if isinstance(at, AllBut):
        return at.rows(torch.arange(len(at)))
    return torch.arange(at.start, at.stop, at.step) if isinstance(at, range) else at


def _tensor(array: np.ndarray) -> Tensor:
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # stored values are never written
        return torch.from_numpy(native.view(np.int16) if native.dtype == np.uint16 else native)
