"""Images of the user: images:FOLDER."""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from llgae_cli.errors import InputError, explain, show_path
from llgae_cli.tasks.npy import missing_path, split
from llgae_cli.tasks.samples import Samples
from llgae_cli.tasks.task import Task, fingerprint

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
# Allowed formats, by a file's content and not by its name: Pillow gives some others to external programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
GREY, COLOUR = ("1", "L", "LA"), ("RGB", "RGBA", "P", "CMYK", "YCbCr")
MAX_PIXELS = 1 << 24  # 4096 x 4096
MAX_BYTES = 1 << 32


def load_images(folder: Path, name: str) -> Task:
    """Load all images under `folder`, in the order of their paths: 8-bit greyscale (H, W) or colour (H, W, 3).

    All must have one size and one of the two kinds. Transparency is dropped; of an animation the first frame is used.
    Where there are folders `train/` and `test/`, these are the two sets, and other files are ignored. Otherwise images
    9, 19, 29, ... are held out as the test set (of fewer than ten, the last one). Folders of the first level are the
    classes if every image is in one. Names that start with a dot are skipped.

    Raises InputError: no such folder, fewer than 2 images, a broken image, one of another size or kind, more than
    2^24 pixels in one or 4 GiB in all, a link to a file outside, a link to a folder.
    """
    if not folder.exists():
        raise missing_path(folder)
    if not folder.is_dir():
        raise InputError(f"{show_path(folder)}: not a folder; images:FOLDER is expected")
    halves = [folder / "train", folder / "test"]
    divided = all(half.is_dir() and not half.is_symlink() for half in halves)
    roots = halves if divided else [folder]
    paths = [_paths(root) for root in roots]
    for root, files in zip(roots, paths, strict=True):
        if not files:
            raise InputError(f"{show_path(root)}: no images ({', '.join(SUFFIXES)})")
    if not divided and len(paths[0]) < 2:
        raise InputError(
            f"{show_path(folder)}: holds 1 image; at least 2 are needed, one to train on and one to test on"
        )
    values = _decode([path for files in paths for path in files])
    classes, labels = _classes(roots, paths)
    whole = Samples(values, labels, origin=show_path(folder))
    if divided:
        train, test = whole.part(0, len(paths[0])), whole.part(len(paths[0]), whole.N)
        how = "train/ and test/"
    else:
        train, test = split(whole)
        how = "every 10th image held out as test set" if whole.N >= 10 else "the last image held out as test set"
    shape = values.shape[1:]
    source = f"images in {show_path(folder)}, {how}"
    return Task(name, train, test, shape, classes, 255.0, source, fingerprint(train, test, shape), show_path(folder))


def _paths(root: Path) -> list[Path]:
    inside = root.resolve()
    paths = []
    for folder, folders, files in os.walk(root, followlinks=False, onerror=_refuse):
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        for entry in folders:
            if os.path.islink(os.path.join(folder, entry)):
                raise InputError(f"{show_path(Path(folder, entry))}: a link to a folder, which is not followed")
        for entry in files:
            path = Path(folder, entry)
            if entry.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise InputError(
                    f"{show_path(path)}: a link to a file outside {show_path(root)}, which is not followed"
                )
            paths.append(path)
    return sorted(paths, key=lambda path: path.relative_to(root).parts)


def _refuse(error: OSError) -> None:
    raise InputError(f"{show_path(Path(error.filename))}: cannot be read ({explain(error)})")


def _classes(roots: list[Path], paths: list[list[Path]]) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
    inner = [path.relative_to(root).parts for root, files in zip(roots, paths, strict=True) for path in files]
    if any(len(parts) < 2 for parts in inner):
        return None, None
    classes = tuple(sorted({parts[0] for parts in inner}))
    number = {name: k for k, name in enumerate(classes)}
    return classes, np.array([number[parts[0]] for parts in inner])


def _decode(paths: list[Path]) -> np.ndarray:
    values = np.empty(0, np.uint8)
    for i, path in enumerate(paths):
        if not path.is_file():
            raise InputError(f"{show_path(path)}: not a regular file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about sizes, which are checked below, and odd metadata
                with Image.open(path, formats=FORMATS) as image:
                    shape = _shape(image, path)
                    if i == 0:
                        values = _allocate(len(paths), shape, path)
                    elif shape != values.shape[1:]:
                        raise InputError(
                            f"{show_path(path)}: {_describe(shape)}, but {show_path(paths[0])} is "
                            f"{_describe(values.shape[1:])}; all images must have one size and kind"
                        )
                    values[i] = np.asarray(image.convert("L" if len(shape) == 2 else "RGB"))
        except InputError:
            raise
        except Image.DecompressionBombError:
            raise InputError(f"{show_path(path)}: more than the {MAX_PIXELS} pixels that are allowed") from None
        except UnidentifiedImageError:
            raise InputError(f"{show_path(path)}: broken image (not one of the formats that are read)") from None
        except Exception as error:  # decoders raise nearly any error for a broken file
            raise InputError(f"{show_path(path)}: broken image ({explain(error)})") from None
    return values


def _shape(image: Image.Image, path: Path) -> tuple[int, ...]:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(f"{show_path(path)}: {width}x{height} is more than the {MAX_PIXELS} pixels that are allowed")
    if image.mode in GREY:
        return height, width
    if image.mode in COLOUR:
        return height, width, 3
    raise InputError(
        f"{show_path(path)}: mode {image.mode}; 8-bit greyscale or colour is expected (npy:PATH allows more)"
    )


def _allocate(count: int, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """Return an empty array for the images; InputError where it would take more than MAX_BYTES."""
    needed = count * int(np.prod(shape))
    if needed > MAX_BYTES:
        raise InputError(
            f"{count} images such as {show_path(path)} take {needed} bytes, more than the {MAX_BYTES} that are allowed "
            "in memory; save them as one .npy file, which npy:PATH streams"
        )
    return np.empty((count, *shape), np.uint8)


def _describe(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} {'colour' if len(shape) == 3 else 'greyscale'}"
