"""Named tasks: the real numbers of Fashion-MNIST, the known optimum of `subspaces`, idx files, downloads."""

import gzip
import io
import re
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llgae_cli.errors import InputError
from llgae_cli.tasks import SUBSPACES_E, SUBSPACES_K, SUBSPACES_OPTIMUM, Samples, Task, download, load_task, published
from llgae_cli.tasks.idx import read_idx

pytestmark = pytest.mark.numeric


def mean_l2(samples: Samples) -> float:
    return sum(float(x.square().mean(1).sum()) for _, x in samples.chunks(4096, torch.float64)) / samples.N


def idx_bytes(array: np.ndarray, code: int = 8) -> bytes:
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_set(folder: Path, train: int = 20, test: int = 10, first: int = 0, parts: tuple[str, ...] = published.PARTS,
              packed: bool = False) -> np.ndarray:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(first).integers(0, 256, (train + test, 28, 28), dtype=np.uint8)
    labels = (np.arange(train + test) % 10 + first).astype(np.uint8)
    for part, array in zip(parts, (images[:train], labels[:train], images[train:], labels[train:]), strict=True):
        raw = idx_bytes(array)
        (folder / (part + ".gz" * packed)).write_bytes(gzip.compress(raw) if packed else raw)
    return images


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No Debian package, and a torchvision that reaches nothing."""
    monkeypatch.setattr(published, "DEBIAN_FASHION_MNIST", tmp_path / "not-installed")
    fake = types.SimpleNamespace(
        **dict.fromkeys(("FashionMNIST", "MNIST", "KMNIST", "EMNIST", "CIFAR10", "SVHN"), _unreachable)
    )
    monkeypatch.setattr(download, "datasets", lambda: fake)
    return tmp_path / "data"


def _unreachable(root: Path, **options: Any) -> None:
    if options.get("download"):
        raise OSError("Name or service not known")
    raise RuntimeError("Dataset not found or corrupted.")


def test_fashion_mnist_is_fashion_mnist(fashion_mnist: Task) -> None:
    task = fashion_mnist
    assert (task.name, task.train.N, task.test.N, task.train.D) == ("fashion-mnist-compress", 60_000, 10_000, 784)
    assert mean_l2(task.test) == pytest.approx(7048.85, abs=0.01)
    assert mean_l2(task.train) == pytest.approx(7070.50, abs=0.01)
    assert task.shape == (28, 28) and task.peak == 255 and task.classes is not None
    assert task.fingerprint == published.FASHION_MNIST_FINGERPRINT
    assert task.test.labels is not None and torch.bincount(task.test.labels).tolist() == [1000] * 10
    assert task.classes[9] == "Ankle boot" and int(task.test.labels[0]) == 9


@pytest.mark.parametrize("folder", [".", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_data_dir_comes_first(tmp_path: Path, folder: str, packed: bool) -> None:
    images = write_set(tmp_path / folder, packed=packed)
    task = load_task("fashion-mnist", tmp_path)
    np.testing.assert_array_equal(task.train.stored_rows().numpy(), images[:20].reshape(20, -1))
    assert str(tmp_path / folder) in task.source and task.test.N == 10


def test_full_size_files_of_another_set_are_not_taken_for_fashion_mnist(tmp_path: Path) -> None:
    write_set(tmp_path, train=60_000, test=10)
    with pytest.raises(InputError, match="are not Fashion-MNIST.*folder mnist"):
        load_task("fashion-mnist", tmp_path)


def test_a_failed_download_of_fashion_mnist_names_the_other_ways(offline: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_task("fashion-mnist", offline)
    said = str(caught.value)
    assert "\n" not in said and caught.value.exit_code == 2
    for way in ("four idx files into", "apt-get install dataset-fashion-mnist", "Name or service not known"):
        assert way in said
    assert list(offline.iterdir()) == []  # nothing half-done is left


@pytest.mark.parametrize("name", ["mnist", "kmnist", "emnist-letters", "cifar10", "svhn"])
def test_a_failed_download_of_other_sets_names_the_folder(offline: Path, name: str) -> None:
    with pytest.raises(InputError, match="its download failed .* Put .* into "):
        load_task(name, offline)


@pytest.mark.parametrize("name, folder", [("mnist", "mnist"), ("mnist", "MNIST/raw"), ("kmnist", "KMNIST/raw")])
def test_mnist_and_kin(offline: Path, name: str, folder: str) -> None:
    write_set(offline / folder)
    task = load_task(name, offline)
    assert task.name == name and task.classes is not None and len(task.classes) == 10


def test_emnist_letters_are_upright_and_count_from_a(offline: Path) -> None:
    images = write_set(offline / "EMNIST" / "raw", first=1, parts=published.EMNIST_PARTS)
    task = load_task("emnist-letters", offline)
    expected = images[:20].transpose(0, 2, 1).reshape(20, -1)
    np.testing.assert_array_equal(task.train.stored_rows().numpy(), expected)
    assert task.classes is not None and task.classes[0] == "a" and len(task.classes) == 26
    assert task.train.labels is not None and int(task.train.labels[0]) == 0


def test_a_download_is_quiet_and_lands_whole(
    offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetching(root: Path, download: bool) -> None:
        print("Downloading ...")
        write_set(root / "FashionMNIST" / "raw")

    monkeypatch.setattr(download, "datasets", lambda: types.SimpleNamespace(FashionMNIST=fetching))
    task = load_task("fashion-mnist-compress", offline)
    assert "downloaded by torchvision" in task.source and task.train.N == 20
    assert sorted(path.name for path in offline.iterdir()) == ["FashionMNIST"]
    assert capsys.readouterr().out == ""


def test_colour_sets(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)

    def cifar10(root: Path, train: bool, download: bool) -> Any:
        return types.SimpleNamespace(data=images, targets=[0, 1, 2, 3, 4, 9])

    def svhn(root: Path, split: str, download: bool) -> Any:
        return types.SimpleNamespace(data=images.transpose(0, 3, 1, 2), labels=np.arange(6))

    monkeypatch.setattr(download, "datasets", lambda: types.SimpleNamespace(CIFAR10=cifar10, SVHN=svhn))
    for name in ("cifar10", "svhn"):
        task = load_task(name, offline)
        assert task.shape == (32, 32, 3) and task.classes is not None and len(task.classes) == 10
        np.testing.assert_array_equal(task.test.stored_rows().numpy(), images.reshape(6, -1))


@pytest.mark.parametrize(
    "error", [RuntimeError("operator torchvision::nms does not exist"), ImportError("undefined symbol")]
)
def test_a_torchvision_that_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Broken:
        @staticmethod
        def find_spec(name: str, *rest: Any) -> None:
            if name.partition(".")[0] == "torchvision":
                raise error

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    with pytest.raises(InputError, match=r"does not fit it .*; install the pair: pip install .*torch torchvision"):
        download.datasets()


def test_subspaces_has_the_optimum_it_claims() -> None:
    task = load_task("subspaces", Path("data"))
    assert task.train.N == 4_000 and task.test.N == 1_000 and task.shape == (8, 8)
    assert task.train.labels is not None and task.test.labels is not None
    assert task.train.means(slice(None)).abs().max() < 1e-4
    residuals = {"train": 0.0, "test": 0.0}
    for k in range(SUBSPACES_K):  # the best model of each component is its PCA
        x = task.train.rows(slice(None), torch.float64)[task.train.labels == k]
        mu = x.mean(0)
        U = torch.linalg.svd(x - mu, full_matrices=False).Vh[:SUBSPACES_E].T
        for name, half in (("train", task.train), ("test", task.test)):
            assert half.labels is not None
            y = half.rows(slice(None), torch.float64)[half.labels == k] - mu
            residuals[name] += float((y - y @ U @ U.T).square().mean(1).sum()) / half.N
    assert residuals["train"] == pytest.approx(SUBSPACES_OPTIMUM, rel=0.02)
    assert residuals["test"] == pytest.approx(SUBSPACES_OPTIMUM, rel=0.03)
    assert residuals["train"] < SUBSPACES_OPTIMUM < residuals["test"]


def test_subspaces_comes_from_its_seed() -> None:
    one, same, other = (load_task("subspaces", Path("data"), seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert re.fullmatch("[0-9a-f]{16}", one.fingerprint)


@pytest.mark.parametrize(
    "name, said",
    [
        ("fashon-mnist", "did you mean 'fashion-mnist'"),
        ("Fashion_MNIST", "did you mean 'fashion-mnist'"),
        ("zzz", "known are fashion-mnist, .*npy:PATH, .* and images:FOLDER"),
        ("../etc/passwd", "unknown task"),
    ],
)
def test_unknown_names(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_task(name, Path("data"))


@pytest.mark.parametrize("code, dtype", [(8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")])
def test_idx_round_trip(tmp_path: Path, code: int, dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "plain").write_bytes(idx_bytes(array, code))
    (tmp_path / "packed").write_bytes(gzip.compress(idx_bytes(array, code)))
    for name in ("plain", "packed"):
        read = read_idx(tmp_path / name)
        np.testing.assert_array_equal(read, array)
        assert read.dtype.isnative


def _bomb(array: np.ndarray) -> bytes:
    packed = io.BytesIO()
    with gzip.open(packed, "wb") as file:
        file.write(idx_bytes(array))
        for _ in range(64):
            file.write(bytes(1 << 20))
    return packed.getvalue()


GOOD = idx_bytes(np.zeros((3, 28, 28), np.uint8))
HUGE = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: b"", "not an idx file"),
        (lambda: b"\x89PNG" + bytes(20), "not an idx file"),
        (lambda: bytes([0, 0, 8, 9]) + bytes(50), "not an idx file"),
        (lambda: GOOD[:9], "within its header"),
        (lambda: GOOD[:-1], "declares 3x28x28, 2352 bytes, more than|but has fewer"),
        (lambda: GOOD + b"x", "but has more"),
        (lambda: HUGE, "more than the file can hold"),
        (lambda: gzip.compress(HUGE), "more than the file can hold"),
        (lambda: gzip.compress(GOOD[:-1]), "but has fewer"),
        (lambda: gzip.compress(GOOD)[:-9], "broken gzip"),
        (lambda: gzip.compress(GOOD)[:20] + b"garbage" * 9, "broken gzip"),
        (lambda: _bomb(np.zeros((3, 28, 28), np.uint8)), "but has more"),
    ],
)
def test_broken_idx_files(tmp_path: Path, make: Callable[[], bytes], said: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(make())
    with pytest.raises(InputError, match=said) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "part, array, said",
    [
        (0, np.zeros((20, 8, 8), np.uint8), "Nx28x28 uint8 is expected"),
        (1, np.zeros(19, np.uint8), "20 uint8, one per image"),
        (3, np.full(10, 10, np.uint8), r"labels 10..10; 0..9 are expected"),
    ],
)
def test_idx_files_that_do_not_fit(tmp_path: Path, part: int, array: np.ndarray, said: str) -> None:
    write_set(tmp_path)
    (tmp_path / published.PARTS[part]).write_bytes(idx_bytes(array))
    with pytest.raises(InputError, match=said) as caught:
        load_task("fashion-mnist", tmp_path)
    assert published.PARTS[part] in str(caught.value)
