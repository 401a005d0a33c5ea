"""Files of codes and of decoded samples, written and read in chunks, so that they may be larger than the memory.

A codes file is a plain .npz:

    k         int32 (N,)       component
    b         float32 (N, E)   latents
    s         int32 (N, S)     further symbols, for models that have some: components of later levels, shifts
    residual  float32 (N,)     mean over the D values of (x - x_hat)^2
    mean      float32 (N,)     mean of the sample, subtracted by centring: the image is x_hat + mean
    columns   text (D,)        names of the columns of x, where the data has some
    model     text             fingerprint of the model that made the codes
"""

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image

from llgae_cli.errors import InputError, explain, printable, show_path
from llgae_cli.models import Code, Model
from llgae_cli.regular_files import open_for_reading
from llgae_cli.scaling import Scaling
from llgae_cli.storage.atomic import clean_temporaries, write_atomically
from llgae_cli.tasks.npy_file import read_npy_header

SPOOL_BYTES = 1 << 24  # of an array kept in memory before it goes to a temporary file
FINGERPRINT_DIGITS = 16
BOMB_BYTES, BOMB_RATIO = 1 << 24, 200  # compression saves a half to nine tenths of codes, and 99.9 % of zeros
CHUNK = 2048  # rows read at a time


@contextmanager
def create_codes(
    path: Path, model: Model, N: int, columns: Sequence[str] | None = None
) -> Iterator[Callable[[Code, torch.Tensor, torch.Tensor], None]]:
    """Create a codes file of N samples: the block calls `add(code, residual, mean)` for the chunks in order.

    Memory: one chunk. A zip takes one array after the other, so b is written at once, and the other numbers of a
    sample (12 bytes) wait in a temporary file. Raises RunError when the disk is full. `path` is then unchanged, and
    also where the block raises.
    """
    with write_atomically(path) as temporary, ExitStack() as stack:
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
            shape = (N, len(model.symbols)) if name == "s" else (N,)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_header(member, "<i4" if name in ("k", "s") else "<f4", shape)
                shutil.copyfileobj(spool, member, 1 << 20)
        texts = {"model": fingerprint(model)} | ({} if columns is None else {"columns": list(columns)})
        for name, text in texts.items():
            with archive.open(f"{name}.npy", "w") as member:
                npy.write_array(member, np.array(text), allow_pickle=False)


@dataclass(frozen=True)
class Chunk:
    """A chunk of a codes file: the code, and the mean of each sample, (n,)."""

    code: Code
    mean: torch.Tensor


class CodesFile:
    """The N codes in an .npz, checked against a model and read chunk by chunk.

    Raises InputError, in one line, for a file that is not an .npz, lacks k or b, holds objects or other types, does not
    fit the model (shape, k outside 0..K-1, another model's fingerprint), is cut short, or holds NaN.
    """

    def __init__(self, path: Path, model: Model) -> None:
        """Read only the headers."""
        self.path, self.model = Path(path), model
        try:
            with os.fdopen(open_for_reading(self.path), "rb") as file, zipfile.ZipFile(file) as archive:
                self.names = [name.removesuffix(".npy") for name in archive.namelist()]
                for name in self._needed:
                    if name not in self.names:
                        raise self._wrong(f"has no array '{name}'")
                self.N = self._check_array(archive, "k", "iu", ())
                lengths = {name: self._check_array(archive, name, "f", ()) for name in ("mean",) if name in self.names}
                lengths["b"] = self._check_array(archive, "b", "f", (model.E,))
                if model.symbols:
                    lengths["s"] = self._check_array(archive, "s", "iu", (len(model.symbols),))
                unequal = [f"{n} of {name}" for name, n in lengths.items() if n != self.N]
                if unequal:
                    raise self._wrong(f"has {self.N} of k and {unequal[0]}")
                self._check_model(archive)
        except FileNotFoundError:
            raise self._wrong("no such file") from None
        except OSError as error:
            raise self._wrong(f"cannot be read ({explain(error)})") from None
        except InputError:
            raise
        except Exception as error:  # zipfile raises many kinds of errors for damaged headers
            raise self._wrong(f"not a codes file ({explain(error)})") from None

    def chunks(self, size: int = CHUNK) -> Iterator[Chunk]:
        """Yield the codes in order, at most `size` at a time; mean is 0 where the file has none."""
        device = self.model.device
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            readers = {}
            for name in (*self._needed, "mean"):
                if name in self.names:
                    file = stack.enter_context(archive.open(f"{name}.npy"))
                    readers[name] = (file, *self._read_header(file, name))
            for start in range(0, self.N, size):
                n = min(size, self.N - start)
                part = {name: self._read_rows(file, shape, dtype, n) for name, (file, shape, dtype) in readers.items()}
                k = part["k"].astype(np.int64)
                bad = np.flatnonzero((part["k"] < 0) | (part["k"] >= self.model.K))
                if len(bad):
                    raise self._wrong(f"row {start + bad[0]} has k = {k[bad[0]]}; 0..{self.model.K - 1} is allowed")
                s = self._check_symbols(part["s"].astype(np.int64), start).to(device) if self.model.symbols else None
                with np.errstate(over="ignore"):  # a float64 too large for float32 is refused below
                    mean = part.get("mean", np.zeros(n, np.float32)).astype(np.float32)
                    b = part["b"].astype(np.float32)
                if not (np.isfinite(b).all() and np.isfinite(mean).all()):
                    raise self._wrong(f"rows {start}..{start + n - 1} hold values that are not finite")
                code = Code(torch.from_numpy(k).to(device), torch.from_numpy(b).to(device), s)
                yield Chunk(code, torch.from_numpy(mean).to(device))

    @property
    def _needed(self) -> tuple[str, ...]:
        return ("k", "b", "s") if self.model.symbols else ("k", "b")

    def _check_symbols(self, s: np.ndarray, start: int) -> torch.Tensor:
        bad = np.argwhere((s < 0) | (s >= np.array(self.model.symbols)))
        if len(bad):
            row, at = (int(place) for place in bad[0])
            allowed = f"0..{self.model.symbols[at] - 1} is allowed"
            raise self._wrong(f"row {start + row} has s[{at}] = {s[row, at]}; {allowed}")
        return torch.from_numpy(s)

    def _read_rows(self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], n: int) -> np.ndarray:
        width = int(np.prod(shape[1:], dtype=np.int64))
        try:
            raw = file.read(n * width * dtype.itemsize)
        except Exception as error:  # a wrong checksum, a damaged stream
            raise self._wrong(f"damaged ({explain(error)})") from None
        if len(raw) != n * width * dtype.itemsize:
            raise self._wrong("cut short")
        return np.frombuffer(raw, dtype).reshape(n, *shape[1:])

    def _read_header(self, file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        shape, fortran, dtype = read_npy_header(file, f"{show_path(self.path)}: '{name}'")
        if fortran and len(shape) > 1 and min(shape) > 1:
            raise self._wrong(f"'{name}' is in Fortran order; save it with numpy.ascontiguousarray")
        return shape, dtype

    def _check_array(self, archive: zipfile.ZipFile, name: str, kinds: str, rest: tuple[int, ...]) -> int:
        """Check the type, shape (N, *rest) and size of an array; return N."""
        with archive.open(f"{name}.npy") as member:
            shape, dtype = self._read_header(member, name)
            offset = member.tell()
        if dtype.kind not in kinds:
            raise self._wrong(f"'{name}' holds {dtype.name}; {'integers' if 'i' in kinds else 'floats'} are expected")
        if len(shape) != 1 + len(rest) or shape[1:] != rest:
            expected = ", ".join(map(str, ("N", *rest)))
            raise self._wrong(f"'{name}' has shape {shape}; ({expected}) is expected by the checkpoint")
        member_info = archive.getinfo(f"{name}.npy")
        if member_info.file_size != offset + int(np.prod(shape, dtype=object)) * dtype.itemsize:
            raise self._wrong("cut short")
        if member_info.file_size > BOMB_BYTES and member_info.file_size > BOMB_RATIO * member_info.compress_size:
            raise self._wrong(
                f"'{name}' unpacks to {member_info.file_size} bytes, more than {BOMB_RATIO} times its size"
            )
        return shape[0]

    def _check_model(self, archive: zipfile.ZipFile) -> None:
        if "model" not in self.names or archive.getinfo("model.npy").file_size > 1000:
            return
        with archive.open("model.npy") as member:
            maker = str(npy.read_array(member, allow_pickle=False))
        if maker != fingerprint(self.model):
            raise self._wrong(f"made by another model ({printable(maker, 20)}), not by the checkpoint's")

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{show_path(self.path)}: {what}")


@torch.no_grad()
def decode_file(model: Model, codes: CodesFile, centred: bool = False) -> Iterator[torch.Tensor]:
    """Yield x_hat + mean, (n, D) float32, chunk by chunk; with `centred` only x_hat."""
    for part in codes.chunks():
        x_hat = model.decode(part.code)
        x_hat = x_hat if centred else x_hat + part.mean[:, None]
        if not bool(x_hat.isfinite().all()):
            raise InputError(f"{show_path(codes.path)}: holds codes so large that the decoded values are not finite")
        yield x_hat.cpu()


def write_npy(
    chunks: Iterator[torch.Tensor], path: Path, shape: tuple[int, ...], scaling: Scaling | None = None
) -> None:
    """Write rows to the .npy at `path` as a float32 array of `shape` (N, ...), chunk by chunk, in their own units."""
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        _write_header(file, "<f4", shape)
        for chunk in chunks:
            rows = chunk if scaling is None else torch.from_numpy(scaling.undo(chunk.double().numpy())).float()
            file.write(_bytes(rows, "<f4"))


def write_images(model: Model, codes: CodesFile, folder: Path, shape: tuple[int, ...], peak: float) -> None:
    """Write each decoded sample as an 8-bit image, with its mean and clipped: `folder/000000.png`, 000001.png, ...

    Black to white is 0 to peak where peak is 255 or 1; for other data it is the smallest to the largest decoded value,
    which takes another pass. Raises InputError for samples that are not images.
    """
    if len(shape) < 2:
        raise InputError(f"samples of {shape[0]} values are not images; decode them to an .npy file")
    low, high = 0.0, peak
    if peak not in (255.0, 1.0):
        ends = [torch.stack(torch.aminmax(chunk)) for chunk in decode_file(model, codes)]
        low, high = (float(torch.stack(ends).min()), float(torch.stack(ends).max())) if ends else (0.0, 1.0)
    clean_temporaries(folder)  # once, and not for every image
    digits, row = max(6, len(str(codes.N - 1))), 0
    for chunk in decode_file(model, codes):
        grey = ((chunk - low) * (255 / ((high - low) or 1.0))).round().clamp(0, 255).to(torch.uint8).numpy()
        for pixels in grey.reshape(len(grey), *shape):
            with write_atomically(folder / f"{row:0{digits}d}.png", durable=False) as temporary:
                Image.fromarray(pixels).save(temporary, "png")
            row += 1


def fingerprint(model: Model) -> str:
    """Return 16 hex digits of the SHA-256 of the model's tensors, which decide what a code decodes to."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(_bytes(tensor.detach(), "<f4"))
    return digest.hexdigest()[:FINGERPRINT_DIGITS]


def _bytes(tensor: torch.Tensor, dtype: str) -> bytes:
    return np.ascontiguousarray(tensor.cpu().numpy(), np.dtype(dtype)).tobytes()


def _write_header(file: IO[bytes], descr: str, shape: tuple[int, ...]) -> None:
    npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
