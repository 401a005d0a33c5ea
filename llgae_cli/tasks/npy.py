"""Arrays of the user in two .npy files of a folder, train and test, and what all own data shares."""

from pathlib import Path

import numpy as np

from llgae_cli.errors import InputError, show_path
from llgae_cli.tasks.labels import MAX_LABEL
from llgae_cli.tasks.npy_file import NpyFile, nearest_in_folder
from llgae_cli.tasks.samples import Samples
from llgae_cli.tasks.task import Task, fingerprint

IN_MEMORY_BYTES = 1 << 28  # smaller arrays are read into memory once: faster, and they can be moved to a GPU
HELD_OUT = 10
SMALLEST = 1e-15  # the counterpart of `samples.LARGEST`: float32 has squares down to 1e-38


def split(whole: Samples) -> tuple[Samples, Samples]:
    """Return train and test: rows i with i % 10 == 9 are the test set; of fewer than ten rows, the last one."""
    if whole.N < HELD_OUT:
        return whole.part(0, whole.N - 1), whole.part(whole.N - 1, whole.N)
    return whole.all_but_every(HELD_OUT), whole.every(HELD_OUT, HELD_OUT - 1)


def load_folder(path: Path, name: str) -> Task:
    """Load train.npy and test.npy in a folder, with train_labels.npy and test_labels.npy (N integers from 0).

    Arrays are N x D, N x H x W or N x H x W x 3, of any type in `npy_file.DTYPES`; more than 256 MiB stay on disk and
    are streamed. Raises InputError for any other file, for NaN and infinities, and for values too large or too small
    to be squared.
    """
    train, shape = _samples(path / "train.npy", read_labels(path / "train_labels.npy"))
    test, other = _samples(path / "test.npy", read_labels(path / "test_labels.npy"))
    if shape != other:
        raise InputError(
            f"{show_path(path / 'test.npy')}: its rows have shape {'x'.join(map(str, other))}, "
            f"those of train.npy {'x'.join(map(str, shape))}"
        )
    peak = find_peak(train)
    test.check_finite()
    labels = [int(half.labels.max()) for half in (train, test) if half.labels is not None]
    classes = tuple(str(label) for label in range(max(labels) + 1)) if labels else None
    source = f"train.npy and test.npy in {show_path(path)}, {_where(train)}"
    return Task(name, train, test, shape, classes, peak, source, fingerprint(train, test, shape), show_path(path))


def _samples(path: Path, labels: np.ndarray | None = None) -> tuple[Samples, tuple[int, ...]]:
    file = NpyFile(path)
    check_shape(file.shape, show_path(path))
    shape = file.shape[1:3] if len(file.shape) == 4 and file.shape[3] == 1 else file.shape[1:]
    if labels is not None and len(labels) != file.N:
        raise InputError(f"{show_path(path)}: {file.N} rows, but its labels file holds {len(labels)}")
    small = file.N * file.D * file.dtype.itemsize <= IN_MEMORY_BYTES
    values = file.read(range(file.N)) if small else path
    return Samples(values, labels, origin=show_path(path)), shape


def check_shape(shape: tuple[int, ...], where: str) -> None:
    """Raise InputError where an array is not N x D, N x H x W, N x H x W x 1 or N x H x W x 3."""
    if len(shape) not in (2, 3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        sizes = "x".join(map(str, shape)) or "()"
        raise InputError(f"{where}: has shape {sizes}; N x D, N x H x W or N x H x W x 3 is expected")


def read_labels(path: Path) -> np.ndarray | None:
    """Return the labels in an .npy file, (N,) int64 from 0 to 65,535, or None without the file."""
    if not path.exists():
        return None
    file = NpyFile(path)
    if len(file.shape) != 1 or file.dtype.kind not in "iu":
        held = f"{'x'.join(map(str, file.shape)) or '()'} {file.dtype.name}"
        raise InputError(f"{show_path(path)}: holds {held}; labels are N integers")
    labels = file.read(range(file.N)).reshape(-1).astype(np.int64)
    if len(labels) and not (labels.min() >= 0 and labels.max() <= MAX_LABEL):
        raise InputError(f"{show_path(path)}: holds labels {labels.min()}..{labels.max()}; 0..{MAX_LABEL} are allowed")
    return labels


def find_peak(samples: Samples) -> float:
    """Return 255 for uint8, 1 for bool, otherwise the range of the values; InputError for what has no square."""
    fixed = {"uint8": 255.0, "bool": 1.0}
    if samples.stored in fixed:
        return fixed[samples.stored]
    low, high = samples.extent()  # raises InputError for NaN and infinities
    if 0 < max(-low, high) < SMALLEST:
        raise InputError(
            f"{samples.origin}: the largest absolute value is {max(-low, high):g}; squares of values below "
            f"{SMALLEST:g} are lost in float32: multiply the data by a constant"
        )
    return (high - low) or 1.0


def _where(samples: Samples) -> str:
    return "streamed from disk" if samples.on_disk else "in memory"


def missing_path(path: Path) -> InputError:
    """Return the error for a path that does not exist, with the nearest name in its folder."""
    return InputError(f"{show_path(path)}: no such file or folder{nearest_in_folder(path)}")
