"""The published data sets: Fashion-MNIST, MNIST, KMNIST, EMNIST letters (idx files), CIFAR-10 and SVHN."""

import os
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llgae_cli.errors import InputError, show_path
from llgae_cli.tasks.download import download, load
from llgae_cli.tasks.idx import read_idx
from llgae_cli.tasks.samples import Samples
from llgae_cli.tasks.task import Task, fingerprint

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_FINGERPRINT = "9f37652ee628b13b"
PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
EMNIST_PARTS = (
    "emnist-letters-train-images-idx3-ubyte",
    "emnist-letters-train-labels-idx1-ubyte",
    "emnist-letters-test-images-idx3-ubyte",
    "emnist-letters-test-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class IdxSet:
    """Four idx files of 28x28 images: names, folders to search (relative to data-dir), meaning of the labels."""

    name: str
    folders: tuple[str, ...]
    classes: tuple[str, ...]
    get: Callable[[Any, Path], Any]
    parts: tuple[str, ...] = PARTS
    first_label: int = 0
    transposed: bool = False


# The files of MNIST, KMNIST and Fashion-MNIST have the same names: only one of the three may be in data-dir itself.
FASHION_MNIST = IdxSet(
    "fashion-mnist-compress",
    (".", "fashion-mnist", "FashionMNIST/raw"),
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    lambda datasets, root: datasets.FashionMNIST(root, download=True),
)
MNIST = IdxSet(
    "mnist",
    ("mnist", "MNIST/raw"),
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    lambda datasets, root: datasets.MNIST(root, download=True),
)
KMNIST = IdxSet(
    "kmnist",
    ("kmnist", "KMNIST/raw"),
    ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    lambda datasets, root: datasets.KMNIST(root, download=True),
)
EMNIST_LETTERS = IdxSet(
    "emnist-letters",
    (".", "emnist-letters", "emnist", "EMNIST/raw"),
    tuple(string.ascii_lowercase),
    lambda datasets, root: datasets.EMNIST(root, split="letters", download=True),
    EMNIST_PARTS,
    first_label=1,
    transposed=True,
)


def load_fashion_mnist(data_dir: Path, seed: int) -> Task:
    """Load Fashion-MNIST, 60,000 and 10,000 images: from data-dir, Debian's package, or torchvision's download."""
    place = _find(FASHION_MNIST, data_dir, DEBIAN_FASHION_MNIST)
    if place == DEBIAN_FASHION_MNIST:
        return _read(FASHION_MNIST, place, "Debian's package dataset-fashion-mnist,")
    advice = f"Put its four idx files into {show_path(data_dir)}, or run apt-get install dataset-fashion-mnist"
    task = _load(FASHION_MNIST, data_dir, advice)
    if place == data_dir and task.train.N == 60_000 and task.fingerprint != FASHION_MNIST_FINGERPRINT:
        raise InputError(
            f"{show_path(data_dir)}: the idx files in it are not Fashion-MNIST (checksum {task.fingerprint}); "
            "put those of MNIST into its folder mnist, those of KMNIST into kmnist"
        )
    return task


def load_mnist(data_dir: Path, seed: int) -> Task:
    """Load MNIST, 60,000 and 10,000 images of digits: from data-dir, or torchvision's download."""
    return _load(MNIST, data_dir)


def load_kmnist(data_dir: Path, seed: int) -> Task:
    """Load Kuzushiji-MNIST, 60,000 and 10,000 images of cursive kana: from data-dir, or torchvision's download."""
    return _load(KMNIST, data_dir)


def load_emnist_letters(data_dir: Path, seed: int) -> Task:
    """Load EMNIST letters, 26 classes, transposed to upright: from data-dir, or torchvision's download (0.5 GB)."""
    return _load(EMNIST_LETTERS, data_dir)


def load_cifar10(data_dir: Path, seed: int) -> Task:
    """Load CIFAR-10, 50,000 and 10,000 colour images of 32x32, by torchvision, which checks each file's checksum."""
    return _load_colour(
        "cifar10",
        data_dir,
        lambda train, download: lambda datasets, root: datasets.CIFAR10(root, train=train, download=download),
        lambda part: (part.data, part.targets),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        "the folder cifar-10-batches-py",
    )


def load_svhn(data_dir: Path, seed: int) -> Task:
    """Load Street View House Numbers, 73,257 and 26,032 colour images of 32x32, by torchvision; needs scipy."""
    return _load_colour(
        "svhn",
        data_dir,
        lambda train, download: (
            lambda datasets, root: datasets.SVHN(root, split="train" if train else "test", download=download)
        ),
        lambda part: (part.data.transpose(0, 2, 3, 1), part.labels),  # stored as (N, 3, H, W)
        MNIST.classes,
        "train_32x32.mat and test_32x32.mat",
    )


def _load(what: IdxSet, data_dir: Path, advice: str = "") -> Task:
    place = _find(what, data_dir)
    if place is not None:
        return _read(what, place, "idx files in")
    folder = show_path(data_dir / what.name)
    _download(what.name, what.get, data_dir, advice or f"Put {', '.join(what.parts)}, gzipped or not, into {folder}")
    place = _find(what, data_dir)
    if place is None:
        raise InputError(f"{show_path(data_dir)}: the download of {what.name} has no complete set of idx files")
    return _read(what, place, "downloaded by torchvision into")


def _download(name: str, get: Callable[[Any, Path], Any], data_dir: Path, advice: str) -> None:
    try:
        download(get, data_dir)
    except InputError as error:
        raise InputError(f"{name} is missing, and its download failed ({error}). {advice}") from None


def _load_colour(
    name: str,
    data_dir: Path,
    get: Callable[[bool, bool], Callable[[Any, Path], Any]],
    unpack: Callable[[Any], tuple[np.ndarray, Any]],
    classes: tuple[str, ...],
    files: str,
) -> Task:
    halves, how = [], "torchvision's files in"
    for train in (True, False):
        half = load(get(train, False), data_dir)
        if half is None:
            how = "downloaded by torchvision into"
            _download(name, get(train, True), data_dir, f"Put {files} into {show_path(data_dir)}")
            half = load(get(train, False), data_dir)
        if half is None:
            raise InputError(f"{show_path(data_dir)}: {files}: damaged; remove it and try again")
        images, labels = unpack(half)
        halves.append(Samples(np.ascontiguousarray(images), np.asarray(labels), origin=name))
    return _images(name, halves[0], halves[1], (32, 32, 3), classes, how, data_dir)


def _find(what: IdxSet, data_dir: Path, *more: Path) -> Path | None:
    places = [*(data_dir / folder for folder in what.folders), *more]
    return next((place for place in places if all(_file(place, part) for part in what.parts)), None)


def _file(place: Path, part: str) -> Path | None:
    # os.path.isfile, because Path.is_file raises for a name that is too long.
    return next((path for path in (place / part, place / f"{part}.gz") if os.path.isfile(path)), None)


def _read(what: IdxSet, place: Path, how: str) -> Task:
    halves = []
    for images_part, labels_part in (what.parts[:2], what.parts[2:]):
        images_path, labels_path = _file(place, images_part), _file(place, labels_part)
        if images_path is None or labels_path is None:  # removed since `place` was chosen
            raise InputError(f"{show_path(place)}: {images_part} or {labels_part} was removed while the data was read")
        images, labels = read_idx(images_path), read_idx(labels_path)
        if images.shape[1:] != (28, 28) or images.dtype != np.uint8 or len(images) == 0:
            held = f"{'x'.join(map(str, images.shape))} {images.dtype}"
            raise InputError(f"{show_path(images_path)}: holds {held}; Nx28x28 uint8 is expected")
        if labels.shape != images.shape[:1] or labels.dtype != np.uint8:
            held = f"{'x'.join(map(str, labels.shape))} {labels.dtype}"
            raise InputError(
                f"{show_path(labels_path)}: holds {held}; {len(images)} uint8, one per image, are expected"
            )
        last = what.first_label + len(what.classes) - 1
        if not (what.first_label <= labels.min() and labels.max() <= last):
            raise InputError(
                f"{show_path(labels_path)}: holds labels {labels.min()}..{labels.max()}; "
                f"{what.first_label}..{last} are expected"
            )
        if what.transposed:
            images = np.ascontiguousarray(images.transpose(0, 2, 1))
        halves.append(Samples(images, labels.astype(np.int64) - what.first_label, origin=what.name))
    return _images(what.name, halves[0], halves[1], (28, 28), what.classes, how, place)


def _images(
    name: str, train: Samples, test: Samples, shape: tuple[int, ...], classes: tuple[str, ...], how: str, place: Path
) -> Task:
    source = f"{how} {show_path(place)}"
    return Task(name, train, test, shape, classes, 255.0, source, fingerprint(train, test, shape), show_path(place))
