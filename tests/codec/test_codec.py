"""Round trips of the codec: a promised error holds for every row of every type, and bytes depend on nothing else."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coded import make_codec, recode  # tests/coded.py
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llgae_cli.codec.codec import Codec
from llgae_cli.codec.density import COST_UNIT, integer_log2
from llgae_cli.codec.settings import RAW
from llgae_cli.errors import InputError
from llgae_cli.storage.compressed_file import CompressedFile

pytestmark = pytest.mark.numeric

INTEGERS = ("bool", "uint8", "int8", "int16", "uint16", "int32", "int64")
FLOATS = ("float16", "float32", "float64")
KINDS: dict[str, dict[str, Any]] = {
    "llgae": {"K": 3, "E": 2},
    "one component": {"K": 1, "E": 3},
    "k-means": {"K": 5, "E": 0},
    "residual": {"K": 3, "E": 2, "L": 2},
    "k-means residual": {"K": 4, "E": 0, "L": 3},
    "shift": {"K": 2, "E": 2, "V": 3},
}


def ordinary_rows(dtype: str, n: int, D: int, seed: int) -> np.ndarray:
    """Rows near a curve, of a size that the type holds."""
    draw = np.random.default_rng(seed)
    if dtype == "bool":
        return draw.random((n, D)) < draw.random((n, 1))
    t = draw.random((n, 1)) * 6
    values = np.sin(t + np.arange(D)) + draw.normal(size=(n, D)) * 0.05
    size = 100.0 if dtype in ("uint8", "int8") else 3000.0 if dtype in INTEGERS else 1.0
    offset = size if dtype.startswith("uint") else 0.0
    return (values * size * 0.8 + offset).astype(dtype)


def extreme_rows(dtype: str, D: int, seed: int) -> np.ndarray:
    """Rows that no model expects: the ends of the type, denormals, constants, rows far away, single spikes."""
    draw = np.random.default_rng(seed)
    if dtype == "bool":
        return draw.random((6, D)) < 0.5
    if dtype in INTEGERS:
        info = np.iinfo(dtype)
        beyond = [value for value in (2**53, 2**53 + 1) if value <= info.max]  # float64 rounds the second to the first
        ends = np.array([info.min, info.max, info.min + 1, info.max - 1, 0, 1, *beyond])
        rows = draw.choice(ends, (12, D)).astype(dtype)
        rows[0], rows[1], rows[2] = info.max, info.min, 7
        return rows
    finfo = np.finfo(dtype)
    ends = np.array([finfo.max, -finfo.max, finfo.tiny, float(finfo.smallest_subnormal), 0.0, -0.0, 1.0, 3.7, -1e4])
    rows = draw.choice(ends, (12, D)).astype(dtype)
    rows[0], rows[1], rows[2], rows[3] = finfo.max, finfo.smallest_subnormal, 0.3, -0.0
    return rows


def largest_errors(x: np.ndarray, x_hat: np.ndarray) -> np.ndarray:
    """|x - x_hat|, from Python's integers for integers; float64 for floats."""
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.abs(x.astype(np.float64) - x_hat.astype(np.float64))
    return np.abs(x.astype(object) - x_hat.astype(object)).astype(np.float64)


@pytest.mark.slow
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(sorted(KINDS)),
    dtype=st.sampled_from(("uint8", "uint16", "int32", "int64", "float16", "float32", "float64")),
    D=st.integers(1, 9),
    bound=st.floats(1e-6, 30),
    each=st.booleans(),
)
def test_an_absolute_error_holds_for_every_value(
    seed: int, kind: str, dtype: str, D: int, bound: float, each: bool
) -> None:
    check_absolute_error(seed, kind, dtype, D, bound, each)


def check_absolute_error(seed: int, kind: str, dtype: str, D: int, bound: float, each: bool) -> None:
    rows = ordinary_rows(dtype, 40, D, seed)
    codec = make_codec(rows, **{**KINDS[kind], "E": min(KINDS[kind]["E"], D)}, seed=seed)
    x = np.concatenate([ordinary_rows(dtype, 40, D, seed + 1), extreme_rows(dtype, D, seed)])
    bounds = bound * np.random.default_rng(seed).choice([1.0, 0.1, 3.0], D if each else 1)
    chosen = codec.choose_settings(rows, max_abs=bounds)
    _, x_hat = recode(codec, x, chosen, 16)
    assert x_hat.dtype == x.dtype and (largest_errors(x, x_hat) <= bounds).all()
    assert type(chosen).unpack(chosen.pack(), D).pack() == chosen.pack()


@pytest.mark.slow
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(sorted(KINDS)),
    dtype=st.sampled_from(("uint8", "int32", "int64", "float32", "float64")),
    D=st.integers(1, 9),
    bound=st.floats(1e-9, 300),
)
def test_a_squared_error_holds_for_every_row(seed: int, kind: str, dtype: str, D: int, bound: float) -> None:
    rows = ordinary_rows(dtype, 40, D, seed)
    codec = make_codec(rows, **{**KINDS[kind], "E": min(KINDS[kind]["E"], D)}, seed=seed)
    x = np.concatenate([ordinary_rows(dtype, 40, D, seed + 1), extreme_rows(dtype, D, seed)])
    _, x_hat = recode(codec, x, codec.choose_settings(rows, max_l2=bound), 16)
    assert (np.square(largest_errors(x, x_hat)).mean(1) <= bound).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "float32", "float64"])
def test_an_absolute_error_holds_for_every_type(dtype: str) -> None:
    check_absolute_error(3, "llgae", dtype, 3, 0.3, True)


@pytest.mark.parametrize(("dtype", "kind"), [*((each, "llgae") for each in INTEGERS), *(("uint8", k) for k in KINDS)])
def test_lossless_is_lossless(dtype: str, kind: str) -> None:
    rows = ordinary_rows(dtype, 60, 7, 1)
    codec = make_codec(rows, **KINDS[kind])
    x = np.concatenate([ordinary_rows(dtype, 60, 7, 2), extreme_rows(dtype, 7, 3)])
    _, x_hat = recode(codec, x, codec.choose_settings(rows, lossless=True), 16)
    assert x_hat.dtype == x.dtype and np.array_equal(x, x_hat)


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_not_coded_losslessly(dtype: str) -> None:
    rows = ordinary_rows(dtype, 20, 3, 1)
    with pytest.raises(InputError, match=f"lossless coding is for integers; these rows hold {dtype}"):
        make_codec(rows).choose_settings(rows, lossless=True)


@pytest.mark.parametrize("target", [{"bits": 30.0}, {"step": 0.1}, {"max_abs": 0.01}, {"max_l2": 0.01}])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_no_numbers_come_back(target: dict[str, float], value: float) -> None:
    rows = ordinary_rows("float32", 40, 4, 1)
    codec = make_codec(rows)
    x = rows.copy()
    x[3, 2] = value
    _, x_hat = recode(codec, x, codec.choose_settings(rows, **target))
    assert np.array_equal(x[3], x_hat[3], equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("n", [0, 1, 256, 257])
def test_any_number_of_rows(kind: str, n: int) -> None:
    rows = ordinary_rows("uint8", 300, 6, 4)
    codec = make_codec(rows, **KINDS[kind])
    for target in ({"step": 4.0}, {"max_abs": 2.0}, {"lossless": True}, {"bits": 40.0}):
        payloads, x_hat = recode(codec, rows[:n], codec.choose_settings(rows[:n], **target))
        assert len(payloads) == -(-n // 256) and x_hat.shape == (n, 6)


# ---- What bytes depend on


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_row_is_coded_as_it_is_alone(kind: str) -> None:
    rows = ordinary_rows("float32", 2100, 6, 5)
    codec = make_codec(rows, **KINDS[kind])
    for target in ({"step": 0.05}, {"max_abs": 0.01}):
        chosen = codec.choose_settings(rows[:500], **target)
        together = codec.encode_blocks(rows, chosen, 100)
        for number in (0, 7, 20):
            assert codec.encode_blocks(rows[100 * number : 100 * number + 100], chosen, 100) == [together[number]]
        alone = [codec.encode_blocks(rows[i : i + 1], chosen)[0] for i in range(30)]
        assert alone == codec.encode_blocks(rows[:30], chosen, 1)


def test_bytes_do_not_depend_on_how_rows_are_stored(tmp_path: Path) -> None:
    rows = ordinary_rows("float32", 700, 6, 6)
    codec = make_codec(rows)
    chosen = codec.choose_settings(rows, max_abs=0.02)
    expected = codec.encode_blocks(rows, chosen)
    np.save(tmp_path / "rows.npy", rows)
    for same in (np.asfortranarray(rows), np.load(tmp_path / "rows.npy", mmap_mode="r"), rows[::-1][::-1]):
        assert codec.encode_blocks(same, chosen) == expected
        assert codec.choose_settings(same, max_abs=0.02).pack() == chosen.pack()
    plain = codec.choose_settings(rows, step=0.05)
    assert codec.encode_blocks(rows.astype(np.float64), plain) == codec.encode_blocks(rows, plain)


def test_packed_models_code_alike() -> None:
    for kind in KINDS.values():
        rows = ordinary_rows("uint8", 200, 6, 7)
        codec = make_codec(rows, **kind)
        other = Codec.unpack(codec.pack())
        assert other.identity == codec.identity and other.pack() == codec.pack()
        chosen = codec.choose_settings(rows, step=3.0)
        assert other.encode_blocks(rows, chosen) == codec.encode_blocks(rows, chosen)


def exact_rows(n: int) -> np.ndarray:
    """Rows of 40 bytes from integer arithmetic only."""
    i, d = np.arange(n)[:, None], np.arange(40)
    return ((i * i * 31 + 17 * i * d + 5 * d * d) // 7 % 97 + (i % 5) * 30 + d).astype(np.uint8)


def exact_codec() -> Codec:
    """A codec from integers only, the same wherever it is made: bases are columns of a Hadamard matrix."""
    from llgae_cli.codec.exact import ExactDecoder, Level, Step
    from llgae_cli.codec.grid import Grid
    from llgae_cli.codec.model import CodecModel

    H = np.ones((1, 1))
    while len(H) < 32:
        H = np.block([[H, H], [H, -H]])
    U = np.zeros((3, 40, 8))
    for k in range(3):
        U[k, 4 * k : 4 * k + 32] = H[:, 8 * k : 8 * k + 8] * np.array([185364]) * 2.0**-20  # 2^20 / sqrt(32), rounded
    mu = exact_rows(300)[[10, 121, 203]] + 0.25
    shape, scale = np.arange(24).reshape(3, 8) % 4, 320 - 32 * np.arange(24).reshape(3, 8) % 230
    levels = (Level.round(mu, U, shape, scale),)
    grid = Grid.fit(np.full(40, 110.0), 900.0)
    return Codec(CodecModel(ExactDecoder(levels), (np.array([5, 1, 3]),), None, grid, Step(640, -6)))


def digest_of_bytes() -> str:
    """Of payloads and settings of the exact codec, for all targets."""
    codec, rows = exact_codec(), exact_rows(3000)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(codec.pack())
    rough = rows.copy()
    rough[::50] = np.arange(40) * 6
    targets: tuple[dict[str, Any], ...] = ({"step": 9.0}, {"max_abs": 3.0}, {"lossless": True}, {"max_l2": 9.0})
    for x, target in zip((rows, rows, rough, rows), targets, strict=True):
        chosen = codec.choose_settings(x, **target)
        payloads, x_hat = recode(codec, x, chosen)
        for part in (chosen.pack(), *payloads, x_hat.tobytes()):
            digest.update(part)
    return digest.hexdigest()


MODES = {
    "two threads": {"OMP_NUM_THREADS": "2"},
    "no instruction sets": {"ATEN_CPU_CAPABILITY": "default", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F"},
    "MKL compatible": {"MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": "Prescott"},
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", sorted(MODES))
def test_other_processors_and_threads_write_the_same_bytes(mode: str) -> None:
    here = Path(__file__)
    folders = os.pathsep.join(map(str, (here.parents[2], here.parents[1], here.parent)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import test_codec; print(test_codec.digest_of_bytes())"],
        env={**os.environ, "PYTHONPATH": folders, **MODES[mode]}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == digest_of_bytes()


def test_threads_change_no_byte() -> None:
    threads = torch.get_num_threads()
    try:
        found = set()
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            codec, rows = exact_codec(), exact_rows(3000)
            found.add(b"".join(codec.encode_blocks(rows, codec.choose_settings(rows, bits=60))))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


# ---- Sizes


@pytest.mark.parametrize("kind", ["llgae", "k-means", "residual", "shift"])
def test_blocks_are_as_long_as_the_codes_cost(kind: str) -> None:
    rows = ordinary_rows("float32", 5000, 8, 8)
    codec = make_codec(rows, **KINDS[kind])
    chosen = codec.choose_settings(rows, step=0.01)
    payloads = codec.encode_blocks(rows, chosen)
    mode_cost = len(rows) * (24 - int(integer_log2(chosen.modes[:1])[0]) / COST_UNIT)
    expected = float(codec.rate(rows, chosen).cost.sum()) / COST_UNIT + mode_cost
    assert abs(8 * sum(map(len, payloads)) - expected) <= 60 * len(payloads)
    assert 8 * sum(map(len, payloads)) <= 1.01 * expected + 32 * len(payloads)


def test_bits_are_kept() -> None:
    rows = ordinary_rows("float32", 3000, 8, 9)
    codec = make_codec(rows, 6, 4)
    for bits in (15.0, 25.0, 40.0):
        payloads, _ = recode(codec, rows, codec.choose_settings(rows, bits=bits))
        assert 0.9 * bits <= 8 * sum(map(len, payloads)) / len(rows) <= 1.01 * bits
    with pytest.raises(InputError, match="^bits: too few, this model's codes alone take at least"):
        codec.choose_settings(rows, bits=0.2)


def test_most_rows_of_a_bound_are_not_raw() -> None:
    rows = ordinary_rows("float64", 600, 8, 10)
    codec = make_codec(rows)
    chosen = codec.choose_settings(rows, max_abs=1e-3)
    payloads, _ = recode(codec, rows, chosen)
    assert sum(map(len, payloads)) < rows.nbytes / 3 and chosen.modes[RAW] < chosen.modes.sum() / 50


def test_threads_read_the_blocks_of_a_file_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ordinary_rows("uint8", 2000, 6, 1)
    codec, before = make_codec(rows), torch.get_num_threads()
    data = codec.encode(rows, step=codec.model.step.value)
    read, reading = CompressedFile.read_block, threading.Lock()

    def read_alone(file: CompressedFile, block: int) -> bytes:
        assert reading.acquire(blocking=False), "two threads read at the same time"
        time.sleep(0.002)  # long enough for the other threads to come
        try:
            return read(file, block)
        finally:
            reading.release()

    monkeypatch.setattr(CompressedFile, "read_block", read_alone)
    torch.set_num_threads(2)
    try:
        assert codec.decode(data).shape == rows.shape
    finally:
        torch.set_num_threads(before)
