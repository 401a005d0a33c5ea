"""The user's own data: npy:PATH and images:FOLDER, and what is refused of them."""

import io
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llgae_cli.errors import InputError
from llgae_cli.tasks import Task, load_task, npy

pytestmark = pytest.mark.numeric


def load(kind: str, path: Path) -> Task:
    return load_task(f"{kind}:{path}", Path("data"), "sample", scaling=None)


def refused(kind: str, path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(kind, path)
    said = str(caught.value)
    assert "\n" not in said and caught.value.exit_code == 2
    for word in words:
        assert word in said


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize("shape, expected", [((30, 6), (6,)), ((30, 2, 3), (2, 3)), ((30, 2, 3, 3), (2, 3, 3)),
                                             ((30, 2, 3, 1), (2, 3))])  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True])
def test_an_npy_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any, expected: Any, streamed: bool
) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    if streamed:
        monkeypatch.setattr(npy, "IN_MEMORY_BYTES", 0)
    task = load("npy", tmp_path / "x.npy")
    assert task.name == f"npy:{tmp_path / 'x.npy'}" and task.shape == expected and task.classes is None
    assert task.train.on_disk == task.test.on_disk == streamed
    flat, held = array.reshape(30, -1), np.arange(30) % 10 == 9
    np.testing.assert_array_equal(task.test.stored_rows().numpy(), flat[held])
    np.testing.assert_array_equal(task.train.stored_rows().numpy(), flat[~held])
    assert task.peak == pytest.approx(float(array.max()) - float(array.min()))
    assert "every 10th row held out" in task.source


def test_streamed_and_in_memory_share_a_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 6)))
    memory = load("npy", tmp_path / "x.npy").fingerprint
    monkeypatch.setattr(npy, "IN_MEMORY_BYTES", 0)
    assert load("npy", tmp_path / "x.npy").fingerprint == memory
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(30, 6)))
    assert load("npy", tmp_path / "x.npy").fingerprint != memory


def test_few_rows_hold_out_the_last(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(15, dtype=np.uint8).reshape(5, 3))
    task = load("npy", tmp_path / "x.npy")
    assert (task.train.N, task.test.N, task.peak) == (4, 1, 255)


def test_an_npy_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", np.arange(12.0).reshape(4, 3))
    np.save(tmp_path / "test.npy", np.arange(6.0).reshape(2, 3))
    assert load("npy", tmp_path).classes is None
    np.save(tmp_path / "train_labels.npy", np.array([0, 1, 2, 1]))
    np.save(tmp_path / "test_labels.npy", np.array([1, 3], np.uint8))
    task = load("npy", tmp_path)
    assert task.classes == ("0", "1", "2", "3") and task.train.labels is not None
    assert task.train.labels.tolist() == [0, 1, 2, 1] and task.peak == 11
    np.save(tmp_path / "test_labels.npy", np.array([1]))
    refused("npy", tmp_path, "2 rows", "labels file holds 1")
    np.save(tmp_path / "test_labels.npy", np.array([1, -1]))
    refused("npy", tmp_path, "labels -1..1", "0..65535 are allowed")
    np.save(tmp_path / "test_labels.npy", np.array([0.5, 1]))
    refused("npy", tmp_path, "labels are N integers")
    os.unlink(tmp_path / "test_labels.npy")
    np.save(tmp_path / "test.npy", np.arange(8.0).reshape(2, 4))
    refused("npy", tmp_path, "test.npy", "shape 4", "train.npy 3")
    os.unlink(tmp_path / "test.npy")
    refused("npy", tmp_path, "test.npy", "no such file")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    "array, words",
    [
        (np.array([[Evil(), 1], [2, 3]], dtype=object), ("pickled Python objects", "never loaded")),
        (np.zeros((0, 5)), ("holds no rows", "0x5")),
        (np.zeros((5, 0)), ("holds no values",)),
        (np.zeros(5), ("shape 5", "N x D")),
        (np.float64(3), ("shape ()", "N x D")),
        (np.zeros((5, 2, 2, 4)), ("5x2x2x4", "N x H x W x 3")),
        (np.zeros((5, 2, 2, 3, 1)), ("5x2x2x3x1", "N x H x W x 3")),
        (np.zeros((5, 2), complex), ("complex128", "allowed are")),
        (np.full((5, 2), "a"), ("<U1", "allowed are")),
        (np.zeros((5, 2), "u8"), ("uint64", "allowed are")),
        (np.zeros((5, 2), [("a", "f4")]), ("allowed are",)),
        (np.zeros((1, 2)), ("holds 1 row", "at least 2")),
        (np.full((50, 2), np.nan), ("row 0 holds NaN",)),
        (np.array([[1, 2], [3, np.inf]]), ("row 1 holds inf",)),
        (np.zeros((5, 1)), ("one value a sample",)),
    ],
)
def test_arrays_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: Any, words: Any) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    refused("npy", tmp_path / "x.npy", *words)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", ("not an .npy file",)),
        (b"a,b\n1,2\n", ("not an .npy file",)),
        (pickle.dumps([1, 2]), ("not an .npy file",)),
        (b"\x93NUMPY\x09\x00", ("version 9.0",)),
        (b"\x93NUMPY\x01\x00\xff\xff{", ("broken .npy header",)),
        (header("__import__('os').mkdir('pwned')\n"), ("broken .npy header",)),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 784), }\n"), ("cut short",)),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 784), }\n"), ("broken .npy header",)),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2), }\n") + b"123", ("cut short", "4 bytes")),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2), }\n") + b"12345", ("1 bytes follow",)),
    ],
)
def test_files_that_are_refused(tmp_path: Path, raw: bytes, words: Any) -> None:
    (tmp_path / "x.npy").write_bytes(raw)
    refused("npy", tmp_path / "x.npy", "x.npy", *words)


def test_paths_that_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "digits.npy", np.zeros((5, 2)))
    refused("npy", tmp_path / "digit.npy", "no such file", "did you mean 'digits.npy'")
    np.savez(tmp_path / "x.npz", a=np.zeros((5, 2)), b=np.zeros((5, 3)))
    refused("npy", tmp_path / "x.npz", "2 arrays; add #NAME", "a (5x2)")
    os.mkfifo(tmp_path / "pipe")
    refused("npy", tmp_path / "pipe", "not a regular file")
    refused("images", tmp_path / "digits.npy", "not a folder")
    for name in ("npy:", "npy:a\0b", "images:"):
        with pytest.raises(InputError, match="a path is expected"):
            load_task(name, Path("data"))


def draw(path: Path, mode: str = "L", size: tuple[int, int] = (5, 4), seed: int = 0, **options: Any) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *colour), dtype=np.uint8)
    Image.fromarray(values).save(path, **options)
    return values


@pytest.mark.parametrize("mode, shape", [("L", (4, 5)), ("RGB", (4, 5, 3))])
def test_images_in_class_folders(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    drawn = [draw(tmp_path / "ab"[i // 6] / f"{i:02}.png", mode, seed=i) for i in range(12)]
    (tmp_path / "a" / "README.txt").write_text("not an image")
    (tmp_path / "a" / "._00.png").write_text("left by a file manager")
    task = load("images", tmp_path)
    assert task.shape == shape and task.classes == ("a", "b") and task.peak == 255
    assert (task.train.N, task.test.N) == (11, 1)
    np.testing.assert_array_equal(task.test.stored_rows().numpy()[0], drawn[9].ravel())
    assert task.train.labels is not None and task.train.labels.tolist() == [0] * 6 + [1] * 5


def test_images_without_classes_and_of_many_formats(tmp_path: Path) -> None:
    values = draw(tmp_path / "a.png", "RGB")
    for suffix in ("bmp", "ppm", "tif"):
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    Image.fromarray(values).save(tmp_path / "deep.webp", lossless=True)
    (tmp_path / "sub").mkdir()
    Image.fromarray(np.dstack([values, values[:, :, 0]])).save(tmp_path / "sub" / "a.PNG")
    task = load("images", tmp_path)
    assert task.classes is None and task.train.labels is None and (task.train.N, task.test.N) == (5, 1)
    assert (task.train.stored_rows() == task.test.stored_rows()).all()


def test_images_with_train_and_test_folders(tmp_path: Path) -> None:
    for i in range(4):
        draw(tmp_path / "train" / "ba"[i % 2] / f"{i}.png", seed=i)
    draw(tmp_path / "test" / "b" / "0.png", seed=9)
    draw(tmp_path / "other" / "0.png", size=(9, 9))
    task = load("images", tmp_path)
    assert (task.train.N, task.test.N, task.classes) == (4, 1, ("a", "b"))
    assert task.test.labels is not None and task.test.labels.tolist() == [1] and "train/ and test/" in task.source


def test_images_that_do_not_agree(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png", size=(6, 4))
    refused("images", tmp_path, "b.png: 6x4 greyscale", "a.png is 5x4 greyscale")
    draw(tmp_path / "b.png", "RGB")
    refused("images", tmp_path, "b.png: 5x4 colour", "a.png is 5x4 greyscale")
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(tmp_path / "b.png")
    refused("images", tmp_path, "b.png: mode I;16", "8-bit")


def test_broken_images(tmp_path: Path) -> None:
    refused("images", tmp_path / "none", "no such file or folder")
    refused("images", tmp_path, "no images")
    draw(tmp_path / "a.png")
    refused("images", tmp_path, "holds 1 image", "at least 2")
    draw(tmp_path / "b.png", seed=1)
    whole = (tmp_path / "b.png").read_bytes()
    for raw in (whole[:-30], whole[:20], b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n"):
        (tmp_path / "b.png").write_bytes(raw)
        refused("images", tmp_path, "b.png", "broken image")


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize("side", [5000, 12_000, 60_000])
def test_decompression_bombs(tmp_path: Path, side: int) -> None:
    draw(tmp_path / "a.png")
    ihdr = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = _chunk(b"IHDR", ihdr) + _chunk(b"IDAT", zlib.compress(bytes(1000))) + _chunk(b"IEND", b"")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    refused("images", tmp_path, "b.png", "pixels that are allowed")


def test_links_that_lead_outside(tmp_path: Path) -> None:
    draw(tmp_path / "secret.png")
    for i in range(3):
        draw(tmp_path / "mine" / f"{i}.png", seed=i)
    (tmp_path / "mine" / "inner.png").symlink_to("0.png")
    assert load("images", tmp_path / "mine").train.N == 3
    (tmp_path / "mine" / "z.png").symlink_to(tmp_path / "secret.png")
    refused("images", tmp_path / "mine", "z.png", "a link to a file outside")
    os.unlink(tmp_path / "mine" / "z.png")
    (tmp_path / "mine" / "folder").symlink_to(tmp_path)
    refused("images", tmp_path / "mine", "folder", "link to a folder")


def test_too_many_images_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llgae_cli.tasks import images

    monkeypatch.setattr(images, "MAX_BYTES", 100)
    for i in range(6):
        draw(tmp_path / f"{i}.png")
    refused("images", tmp_path, "120 bytes", "npy:PATH")


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("L", (5, 4), value) for value in (10, 200)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    for name in ("a.gif", "b.gif"):
        (tmp_path / name).write_bytes(out.getvalue())
    assert (load("images", tmp_path).train.stored_rows() == 10).all()
