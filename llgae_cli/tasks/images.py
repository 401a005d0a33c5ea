"""The user's own pictures: images:FOLDER."""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from llgae_cli.errors import InputError
from llgae_cli.tasks.npy import missing, split
from llgae_cli.tasks.npy_file import reason, shown
from llgae_cli.tasks.samples import Centring, Samples
from llgae_cli.tasks.task import Task, fingerprint

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
# What a file may turn out to be, whatever its name says: Pillow hands some other formats to outside programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
GREY, COLOUR = ("1", "L", "LA"), ("RGB", "RGBA", "P", "CMYK", "YCbCr")
MAX_PIXELS = 1 << 24  # 4096 x 4096
MAX_BYTES = 1 << 32


def load_images(folder: Path, name: str, centring: Centring) -> Task:
    """Load all images under `folder`, in the order of their paths: 8-bit greyscale (H, W) or colour (H, W, 3).

    One size and one of the two kinds for all; transparency is dropped, of an animation the first frame is taken.
    `train/` and `test/` are the two sets where both are there (what lies beside them is left alone), otherwise
    images 9, 19, 29, ... are held out as the test set (of fewer than ten, the last one). Folders of the first level
    are the classes when every image lies in one. Names that begin with a dot are skipped.

    Raises InputError: no such folder, fewer than 2 images, a broken image, one of another size or kind, more than
    2^24 pixels in one or 4 GiB in all, a link that leads outside, a link to a folder.
    """
    if not folder.exists():
        raise missing(folder)
    if not folder.is_dir():
        raise InputError(f"{shown(folder)}: not a folder; images:FOLDER is expected")
    halves = [folder / "train", folder / "test"]
    divided = all(half.is_dir() and not half.is_symlink() for half in halves)
    roots = halves if divided else [folder]
    paths = [_paths(root) for root in roots]
    for root, found in zip(roots, paths, strict=True):
        if not found:
            raise InputError(f"{shown(root)}: no images there ({', '.join(SUFFIXES)} are looked for)")
    if not divided and len(paths[0]) < 2:
        raise InputError(f"{shown(folder)}: holds 1 image; at least 2 are needed, one to train on and one to test on")
    values = _decode([path for found in paths for path in found])
    classes, labels = _classes(roots, paths)
    whole = Samples(values, labels, centring, shown(folder))
    if divided:
        train, test = whole.part(0, len(paths[0])), whole.part(len(paths[0]), whole.N)
        how = "train/ and test/"
    else:
        train, test = split(whole)
        how = "every 10th image held out as test set" if whole.N >= 10 else "the last image held out as test set"
    shape = values.shape[1:]
    source = f"images in {shown(folder)}, {how}"
    return Task(name, train, test, shape, classes, 255.0, source, fingerprint(train, test, shape), shown(folder))


def _paths(root: Path) -> list[Path]:
    inside = root.resolve()
    found = []
    for folder, folders, files in os.walk(root, followlinks=False, onerror=_unreadable):
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        for entry in folders:
            if os.path.islink(os.path.join(folder, entry)):
                raise InputError(f"{shown(Path(folder, entry))}: a link to a folder, which is not followed")
        for entry in files:
            path = Path(folder, entry)
            if entry.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise InputError(f"{shown(path)}: a link that leads outside {shown(root)}, which is not followed")
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def _unreadable(error: OSError) -> None:
    raise InputError(f"{shown(Path(error.filename))}: cannot be read ({reason(error)})")


def _classes(roots: list[Path], paths: list[list[Path]]) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
    inner = [path.relative_to(root).parts for root, found in zip(roots, paths, strict=True) for path in found]
    if any(len(parts) < 2 for parts in inner):
        return None, None
    classes = tuple(sorted({parts[0] for parts in inner}))
    number = {name: k for k, name in enumerate(classes)}
    return classes, np.array([number[parts[0]] for parts in inner])


def _decode(paths: list[Path]) -> np.ndarray:
    values = np.empty(0, np.uint8)
    for i, path in enumerate(paths):
        if not path.is_file():
            raise InputError(f"{shown(path)}: not a plain file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # sizes are judged here, more strictly; the rest are odd metadata
                with Image.open(path, formats=FORMATS) as image:
                    shape = _shape(image, path)
                    if i == 0:
                        values = _room(len(paths), shape, path)
                    elif shape != values.shape[1:]:
                        raise InputError(
                            f"{shown(path)}: {_spelled(shape)}, but {shown(paths[0])} is "
                            f"{_spelled(values.shape[1:])}; all images must agree"
                        )
                    values[i] = np.asarray(image.convert("L" if len(shape) == 2 else "RGB"))
        except InputError:
            raise
        except Image.DecompressionBombError:
            raise InputError(f"{shown(path)}: more than the {MAX_PIXELS} pixels that are allowed") from None
        except Exception as error:  # decoders fail with whatever a broken file drives them into
            raise InputError(f"{shown(path)}: broken image ({_why(error)})") from None
    return values


def _why(error: Exception) -> str:
    return "no format that is read" if isinstance(error, UnidentifiedImageError) else reason(error)


def _shape(image: Image.Image, path: Path) -> tuple[int, ...]:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(f"{shown(path)}: {width}x{height} is more than the {MAX_PIXELS} pixels that are allowed")
    if image.mode in GREY:
        return height, width
    if image.mode in COLOUR:
        return height, width, 3
    raise InputError(f"{shown(path)}: mode {image.mode}; 8-bit greyscale or colour is expected (npy:PATH takes more)")


def _room(count: int, shape: tuple[int, ...], path: Path) -> np.ndarray:
    needed = count * int(np.prod(shape))
    if needed > MAX_BYTES:
        raise InputError(
            f"{count} images such as {shown(path)} take {needed} bytes, more than the {MAX_BYTES} held in memory; "
            "save them as one .npy file, which npy:PATH streams"
        )
    return np.empty((count, *shape), np.uint8)


def _spelled(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} {'colour' if len(shape) == 3 else 'greyscale'}"
