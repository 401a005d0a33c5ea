"""Codes on disk: data to (k, b) and back, and new codes; in chunks, so that nothing need fit into memory.

A codes file is a plain .npz:

    k         int32 (N,)       component
    b         float32 (N, E)   where in it
    s         int32 (N, S)     further symbols, for models that have some: components of later levels, shifts
    residual  float32 (N,)     mean over the D values of (x - x_hat)^2
    mean      float32 (N,)     what centring subtracted: the image is x_hat + mean
    model     text             fingerprint of the parameters that made the codes
"""

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image

from llgae_cli.errors import InputError, printable
from llgae_cli.models import Code, Model
from llgae_cli.regular_files import open_for_reading
from llgae_cli.storage.atomic import replacing

SPOOL_BYTES = 1 << 24  # of the per-sample numbers kept in memory before they go to a temporary file
MODEL_TEXT = 16
BOMB_BYTES, BOMB_RATIO = 1 << 24, 200  # codes are packed to a half or a tenth; zeros alone to a thousandth
CHUNK = 2048  # rows read at a time


@contextmanager
def writing_codes(path: Path, model: Model, N: int) -> Iterator[Callable[[Code, torch.Tensor, torch.Tensor], None]]:
    """Write a codes file of N samples: the block calls `add(code, residual, mean)` for the chunks in order.

    Memory: one chunk. A zip takes one array after the other, so b is written as it comes, and the other numbers of a
    sample (12 bytes) wait in a temporary file. Raises RunError when the disk is full; `path` is then as it was, as it
    is where the block raises.
    """
    with replacing(path) as temporary, ExitStack() as stack:
        waiting = {
            name: stack.enter_context(tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(temporary.parent)))
            for name in ("k", "residual", "mean", *(["s"] if model.symbols else []))
        }
        archive = stack.enter_context(zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED))
        with archive.open("b.npy", "w", force_zip64=True) as member:
            _write_header(member, "<f4", (N, model.E))

            def add(code: Code, residual: torch.Tensor, mean: torch.Tensor) -> None:
                member.write(_bytes(code.b, "<f4"))
                waiting["k"].write(_bytes(code.k, "<i4"))
                if code.s is not None:
                    waiting["s"].write(_bytes(code.s, "<i4"))
                waiting["residual"].write(_bytes(residual, "<f4"))
                waiting["mean"].write(_bytes(mean, "<f4"))

            yield add
        for name, spool in waiting.items():
            spool.seek(0)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_header(
                    member, "<i4" if name in ("k", "s") else "<f4", (N, len(model.symbols)) if name == "s" else (N,)
                )
                shutil.copyfileobj(spool, member, 1 << 20)
        with archive.open("model.npy", "w") as member:
            npy.write_array(member, np.array(fingerprint(model)), allow_pickle=False)


@dataclass(frozen=True)
class Coded:
    """A chunk of a codes file: the code, and what centring had subtracted, (n,)."""

    code: Code
    mean: torch.Tensor


class CodesFile:
    """The codes in an .npz, checked against a model and read chunk by chunk; `N` is their number.

    Raises InputError, in one line, for a file that is no .npz, lacks k or b, holds objects or other types, does not
    fit the model (shape, k out of 0..K-1, another model's fingerprint), is cut short, or holds NaN.
    """

    def __init__(self, path: Path, model: Model) -> None:
        """Read the headers alone."""
        self.path, self.model = Path(path), model
        try:
            with os.fdopen(open_for_reading(self.path), "rb") as file, zipfile.ZipFile(file) as archive:
                self.names = [name.removesuffix(".npy") for name in archive.namelist()]
                for name in self._needed:
                    if name not in self.names:
                        raise self._wrong(f"has no array '{name}'")
                self.N = self._header(archive, "k", "iu", ())
                found = {name: self._header(archive, name, "f", ()) for name in ("mean",) if name in self.names}
                found["b"] = self._header(archive, "b", "f", (model.E,))
                if model.symbols:
                    found["s"] = self._header(archive, "s", "iu", (len(model.symbols),))
                unequal = [f"{n} of {name}" for name, n in found.items() if n != self.N]
                if unequal:
                    raise self._wrong(f"has {self.N} of k and {unequal[0]}")
                self._check_model(archive)
        except FileNotFoundError:
            raise self._wrong("no such file") from None
        except OSError as error:
            raise self._wrong(f"cannot be read ({error.strerror or error})") from None
        except InputError:
            raise
        except Exception as error:  # zipfile and numpy raise half a dozen kinds for damaged headers
            raise self._wrong(f"not a codes file ({printable(error)})") from None

    def chunks(self, size: int = CHUNK) -> Iterator[Coded]:
        """The codes in order, at most `size` at a time; mean is 0 where the file has none."""
        device = self.model.device
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            readers = {}
            for name in (*self._needed, "mean"):
                if name in self.names:
                    file = stack.enter_context(archive.open(f"{name}.npy"))
                    readers[name] = (file, *_read_header(file))
            for start in range(0, self.N, size):
                n = min(size, self.N - start)
                part = {name: self._rows(file, shape, dtype, n) for name, (file, shape, dtype) in readers.items()}
                k = part["k"].astype(np.int64)
                bad = np.flatnonzero((part["k"] < 0) | (part["k"] >= self.model.K))
                if len(bad):
                    raise self._wrong(f"row {start + bad[0]} has k = {k[bad[0]]}; 0..{self.model.K - 1} are there")
                s = self._symbols(part["s"].astype(np.int64), start).to(device) if self.model.symbols else None
                with np.errstate(over="ignore"):  # a float64 too large for float32 is refused below
                    mean = part.get("mean", np.zeros(n, np.float32)).astype(np.float32)
                    b = part["b"].astype(np.float32)
                if not (np.isfinite(b).all() and np.isfinite(mean).all()):
                    raise self._wrong(f"rows {start}..{start + n - 1} hold values that are not finite")
                code = Code(torch.from_numpy(k).to(device), torch.from_numpy(b).to(device), s)
                yield Coded(code, torch.from_numpy(mean).to(device))

    @property
    def _needed(self) -> tuple[str, ...]:
        return ("k", "b", "s") if self.model.symbols else ("k", "b")

    def _symbols(self, s: np.ndarray, start: int) -> torch.Tensor:
        bad = np.argwhere((s < 0) | (s >= np.array(self.model.symbols)))
        if len(bad):
            row, at = (int(place) for place in bad[0])
            allowed = f"0..{self.model.symbols[at] - 1} are there"
            raise self._wrong(f"row {start + row} has s[{at}] = {s[row, at]}; {allowed}")
        return torch.from_numpy(s)

    def _rows(self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], n: int) -> np.ndarray:
        width = int(np.prod(shape[1:], dtype=np.int64))
        try:
            raw = file.read(n * width * dtype.itemsize)
        except Exception as error:  # a wrong checksum, a damaged stream
            raise self._wrong(f"damaged ({printable(error)})") from None
        if len(raw) != n * width * dtype.itemsize:
            raise self._wrong("cut short")
        return np.frombuffer(raw, dtype).reshape(n, *shape[1:])

    def _header(self, archive: zipfile.ZipFile, name: str, kinds: str, rest: tuple[int, ...]) -> int:
        with archive.open(f"{name}.npy") as member:
            shape, dtype = _read_header(member)
            offset = member.tell()
        if dtype.kind not in kinds:
            raise self._wrong(f"'{name}' holds {dtype.name}; {'integers' if 'i' in kinds else 'floats'} are expected")
        if len(shape) != 1 + len(rest) or shape[1:] != rest:
            expected = ", ".join(map(str, ("N", *rest)))
            raise self._wrong(f"'{name}' has shape {shape}; ({expected}) is expected by this checkpoint")
        member_info = archive.getinfo(f"{name}.npy")
        if member_info.file_size != offset + int(np.prod(shape, dtype=object)) * dtype.itemsize:
            raise self._wrong("cut short")
        if member_info.file_size > BOMB_BYTES and member_info.file_size > BOMB_RATIO * member_info.compress_size:
            raise self._wrong(
                f"'{name}' unpacks to {member_info.file_size} bytes, {BOMB_RATIO} times and more its size"
            )
        return shape[0]

    def _check_model(self, archive: zipfile.ZipFile) -> None:
        if "model" not in self.names or archive.getinfo("model.npy").file_size > 1000:
            return
        with archive.open("model.npy") as member:
            said = str(npy.read_array(member, allow_pickle=False))
        if said != fingerprint(self.model):
            raise self._wrong(f"made by another model ({printable(said, 20)}) than this checkpoint's")

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{printable(self.path, 200)}: {what}")


@torch.no_grad()
def decoded(model: Model, codes: CodesFile, centred: bool = False) -> Iterator[torch.Tensor]:
    """x_hat + mean, (n, D) float32, chunk by chunk; `centred` leaves the mean out: x_hat, as the model draws it."""
    for part in codes.chunks():
        x_hat = model.decode(part.code)
        x_hat = x_hat if centred else x_hat + part.mean[:, None]
        if not bool(x_hat.isfinite().all()):
            raise InputError(f"{printable(codes.path, 200)}: holds codes so large that they decode to no finite value")
        yield x_hat.cpu()


def write_npy(chunks: Iterator[torch.Tensor], path: Path, shape: tuple[int, ...]) -> None:
    """Write float32 rows to the .npy at `path` as an array of `shape` (N, ...), chunk by chunk."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        _write_header(file, "<f4", shape)
        for chunk in chunks:
            file.write(_bytes(chunk, "<f4"))


def write_images(model: Model, codes: CodesFile, folder: Path, shape: tuple[int, ...], peak: float) -> None:
    """Write each decoded sample as `folder/000000.png`, 000001.png, ...: 8 bits, clipped, mean put back.

    Values 0..peak become black..white where peak is 255 or 1; other data runs from its least to its greatest decoded
    value, which takes a pass more. Raises InputError for samples that are no images.
    """
    if len(shape) < 2:
        raise InputError(f"samples of {shape[0]} values are no images; decode them to an .npy file")
    low, high = 0.0, peak
    if peak not in (255.0, 1.0):
        ends = [torch.stack(torch.aminmax(chunk)) for chunk in decoded(model, codes)]
        low, high = (float(torch.stack(ends).min()), float(torch.stack(ends).max())) if ends else (0.0, 1.0)
    digits, row = max(6, len(str(codes.N - 1))), 0
    for chunk in decoded(model, codes):
        grey = ((chunk - low) * (255 / ((high - low) or 1.0))).round().clamp(0, 255).to(torch.uint8).numpy()
        for pixels in grey.reshape(len(grey), *shape):
            with replacing(folder / f"{row:0{digits}d}.png", durable=False) as temporary:
                Image.fromarray(pixels).save(temporary, "png")
            row += 1


def fingerprint(model: Model) -> str:
    """16 hex digits that stand for the model's tensors, of an LLGAE mu and W, which decide what a code decodes to."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(_bytes(tensor.detach(), "<f4"))
    return digest.hexdigest()[:MODEL_TEXT]


def _bytes(tensor: torch.Tensor, dtype: str) -> bytes:
    return np.ascontiguousarray(tensor.cpu().numpy(), np.dtype(dtype)).tobytes()


def _write_header(file: IO[bytes], descr: str, shape: tuple[int, ...]) -> None:
    npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if fortran and len(shape) > 1 and min(shape) > 1:
        raise InputError("arrays in Fortran order; save them with numpy.ascontiguousarray")
    if dtype.hasobject:
        raise InputError("holds Python objects, which are never loaded")
    return shape, dtype
