"""Samples: centring is numpy's, and how and where the values are kept never shows in the rows."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llgae_cli.errors import InputError, RunError
from llgae_cli.tasks import Samples
from llgae_cli.tasks.npy_file import DTYPES
from llgae_cli.tasks.task import fingerprint

pytestmark = pytest.mark.numeric
N, H, W = 53, 4, 5


def values(dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype).newbyteorder("=")
    if kind.kind == "b":
        return np.asarray(rng.random((N, H, W)) < 0.5)
    if kind.kind == "f":
        return rng.normal(3, 10, (N, H, W)).astype(kind)
    info = np.iinfo(kind)
    low, high = max(info.min, -(10**12)), min(info.max, 10**12)
    return np.asarray(rng.integers(low, high, (N, H, W), dtype=kind, endpoint=True))


def centred(array: np.ndarray) -> np.ndarray:
    flat: np.ndarray = array.reshape(len(array), -1).astype(np.float64)
    return np.asarray(flat - flat.mean(1, keepdims=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_numpys_centring(dtype: str) -> None:
    array = values(dtype)
    samples = Samples(array)
    assert (samples.N, samples.D, len(samples)) == (N, H * W, N)
    rows = samples.rows(slice(None), torch.float64)
    np.testing.assert_allclose(rows.numpy(), centred(array), rtol=1e-12, atol=1e-10 * np.abs(centred(array)).max())
    whole = rows + samples.means(slice(None), torch.float64)[:, None]
    np.testing.assert_allclose(whole.numpy(), array.reshape(N, -1).astype(np.float64), rtol=1e-12)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [*DTYPES, ">i4", ">f8", ">u2"])
def test_disk_and_memory_agree(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.asarray(values(dtype).astype(dtype), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "x.npy", array)
    disk, memory = Samples(tmp_path / "x.npy"), Samples(array)
    assert disk.on_disk and not memory.on_disk and disk.stored == memory.stored == np.dtype(dtype).name
    scattered = torch.tensor([52, 3, 3, 0, 17, 18, 19, 51])
    for index in (slice(None), slice(5, 40), slice(1, 50, 7), scattered, scattered.numpy(), torch.arange(0)):
        assert torch.equal(disk.rows(index), memory.rows(index))
        assert torch.equal(disk.means(index), memory.means(index))
    np.testing.assert_allclose(
        disk.rows(scattered, torch.float64).numpy(),
        centred(array)[scattered.numpy()],
        atol=1e-10 * np.abs(centred(array)).max(),
    )
    assert disk.extent() == memory.extent() == (float(array.min()), float(array.max()))
    assert fingerprint(disk, disk, (H, W)) == fingerprint(memory, memory, (H, W))


def test_rows_far_apart_on_disk(tmp_path: Path) -> None:
    array = np.random.default_rng(1).integers(0, 256, (200, 3000), dtype=np.uint8)
    np.save(tmp_path / "x.npy", array)
    index = np.random.default_rng(2).integers(0, 200, 64)
    assert torch.equal(Samples(tmp_path / "x.npy").rows(index), Samples(array).rows(index))


@pytest.mark.parametrize("size", [1, 7, 53, 1000])
def test_chunks_join_to_rows(size: int) -> None:
    samples = Samples(values("uint8"))
    pieces = [(where, x.clone()) for where, x in samples.chunks(size, out=torch.empty(size, H * W))]
    assert [i for where, _ in pieces for i in range(N)[where]] == list(range(N))
    assert torch.equal(torch.cat([x for _, x in pieces]), samples.rows(slice(None)))
    inner = torch.cat([x for _, x in samples.chunks(size, start=10, stop=31)])
    assert torch.equal(inner, samples.rows(slice(10, 31)))


def test_out_is_used_and_checked() -> None:
    samples, out = Samples(values("uint8")), torch.empty(60, H * W)
    rows = samples.rows(slice(0, 9), out=out)
    assert rows.data_ptr() == out.data_ptr() and rows.shape == (9, H * W)
    for wrong in (torch.empty(5, H * W), torch.empty(60, 3), torch.empty(60, H * W, dtype=torch.float64)):
        with pytest.raises(ValueError, match="expected"):
            samples.rows(slice(0, 9), out=wrong)


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_shares_of_shares(tmp_path: Path, kept: str) -> None:
    array, labels = values("uint16"), np.arange(N) % 3
    np.save(tmp_path / "x.npy", array)
    samples = Samples(tmp_path / "x.npy" if kept == "disk" else array, labels)
    x = torch.from_numpy(centred(array).astype(np.float32))
    picks = np.array([40, 2, 2, 9, 30])
    expected = {
        "part": (samples.part(7, 31), np.arange(7, 31)),
        "part of part": (samples.part(7, 31).part(3, 9), np.arange(10, 16)),
        "subset": (samples.subset(picks), picks),
        "subset of part": (samples.part(7, 51).subset(picks), picks + 7),
        "part of subset": (samples.subset(picks).part(1, 4), picks[1:4]),
        "every": (samples.every(10, 9), np.arange(9, N, 10)),
        "subset of every": (samples.every(10, 9).subset(torch.tensor([3, 1])), np.array([39, 19])),
        "subset of subset": (samples.subset(picks).subset(np.array([4, 0])), picks[[4, 0]]),
        "empty": (samples.part(5, 5), np.arange(0)),
    }
    for share, rows in expected.values():
        assert len(rows) == share.N and share.labels is not None
        torch.testing.assert_close(share.rows(slice(None)), x[rows], rtol=1e-5, atol=1e-2)
        assert share.labels.tolist() == labels[rows].tolist()
        moved = share.to("cpu")
        assert torch.equal(moved.rows(slice(None)), share.rows(slice(None)))


def test_a_share_copies_nothing_and_memory_is_not_copied() -> None:
    array = values("uint8")
    samples = Samples(array)
    assert samples.stored_rows().data_ptr() == array.ctypes.data
    assert samples.part(1, 9).to("cpu").stored_rows().data_ptr() == array[1:].ctypes.data


def test_read_only_values_are_taken_and_left_alone() -> None:
    array = values("float64")
    array.flags.writeable = False
    before = array.copy()
    Samples(array).rows(slice(None), torch.float64)
    np.testing.assert_array_equal(array, before)


def test_outside_the_rows_is_an_error() -> None:
    part = Samples(values("uint8")).part(10, 20)
    for index in (torch.tensor([10]), torch.tensor([-1]), np.array([3, 99])):
        with pytest.raises(IndexError, match=r"rows 0\.\.9"):
            part.rows(index)
    with pytest.raises(TypeError, match="integers"):
        part.rows(torch.ones(10, dtype=torch.bool))
    with pytest.raises(ValueError, match="positive step"):
        part.rows(slice(None, None, -1))


def test_no_centring_leaves_the_values() -> None:
    array = values("int16")
    samples = Samples(array, centring="none")
    np.testing.assert_array_equal(samples.rows(slice(None)).numpy(), array.reshape(N, -1))
    assert not samples.means(slice(None)).any()


def test_small_values_on_a_large_mean_survive() -> None:
    small = np.random.default_rng(0).normal(size=(5, 100))
    rows = Samples(small + 1e9).rows(slice(None))
    np.testing.assert_allclose(rows.numpy(), small - small.mean(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("bad, word", [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf"), (1e30, "beyond")])
@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_the_first_bad_row_is_named(tmp_path: Path, bad: float, word: str, kept: str) -> None:
    array = values("float32")
    array[17, 2, 1] = array[40, 0, 0] = bad
    np.save(tmp_path / "x.npy", array)
    samples = Samples(tmp_path / "x.npy") if kept == "disk" else Samples(array)
    with pytest.raises(InputError, match=f"row 17 holds .*{word}"):
        samples.check_finite()
    samples.part(0, 17).check_finite()


@pytest.mark.parametrize("dtype", ["complex64", "uint64", "U3", "object"])
def test_other_types_are_refused(dtype: str) -> None:
    with pytest.raises(InputError, match="allowed are bool, uint8"):
        Samples(np.zeros((3, 4), dtype))


def test_labels_must_be_one_a_row() -> None:
    with pytest.raises(InputError, match="52 labels for 53 rows"):
        Samples(values("uint8"), np.zeros(52))


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, values("uint8"))
    samples = Samples(path)
    np.save(path, values("uint8")[:20])
    with pytest.raises(RunError, match="changed while it was in use"):
        samples.rows(slice(0, 3))
    path.unlink()
    with pytest.raises(RunError, match="can no longer be read"):
        samples.rows(slice(0, 3))


PEAK = """
import re, sys, torch
from pathlib import Path
from llgae_cli.tasks import Samples
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
samples = Samples(Path(sys.argv[1]))
for index in (slice(0, 4096), torch.randint(samples.N, (4096,))):  # one request of each kind, and the libraries' own
    samples.rows(index)
before = peak()
for where, x in samples.chunks(4096):
    pass
samples.rows(torch.randint(samples.N, (4096,)))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_streaming_stays_small(tmp_path: Path) -> None:
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.dtype(np.uint8), (250_000, 784))  # 187 MiB, sparse
    array[::1000] = 7
    del array
    # Every large buffer returned to the system as soon as it is freed: what malloc keeps depends on the machine.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"}
    command = [sys.executable, "-c", PEAK, str(tmp_path / "x.npy")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 32  # MiB; a chunk takes 15
