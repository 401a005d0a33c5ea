"""Rates and errors are measured alike for all methods, and the peers get what they need."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pictured  # tests/pictured.py
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llgae_cli.bench import Row, rate, rate_peers, run_benches
from llgae_cli.bench.rate_peers import Coder, Pixels
from llgae_cli.cli.app import app
from llgae_cli.errors import InputError
from llgae_cli.tasks import Task, load_task

SHAPE = (8, 8)


def draw_images(n: int, seed: int = 3) -> Pixels:
    """Smooth images with noise, (n, 64): a plane of random slope each."""
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 8))
    a, b, c = rng.uniform(-40, 40, (3, n, 1, 1))
    planes = 128 + a * across + b * down + c + rng.normal(0, 4, (n, 8, 8))
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8).reshape(n, 64)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    for name, n in (("train", 600), ("test", 90)):
        np.save(tmp_path / f"{name}.npy", draw_images(n, seed=n).reshape(n, *SHAPE))
    return load_task(f"npy:{tmp_path}", tmp_path, "sample", scaling=None)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One size of each quantiser, and two settings of each image codec."""
    rate_peers.check_libraries()
    for name in ("PRODUCT_BITS", "OPTIMISED_BITS", "RESIDUAL_BITS", "LOCAL_BITS"):
        monkeypatch.setattr(rate_peers, name, (16,))
    for name in ("JPEG_STEPS", "JPEG_2000_DECIBELS", "WEBP_QUALITIES", "AVIF_QUALITIES", "JXL_QUALITIES"):
        monkeypatch.setattr(rate_peers, name, (getattr(rate_peers, name)[0], getattr(rate_peers, name)[-1]))


def code_by_rounding(*arguments: object) -> Iterator[Coder]:
    """In place of our codec: the upper 4 or 6 bits of every pixel, a byte each."""
    for kept in (4, 6):
        low = 1 << (8 - kept)
        yield Coder(rate.OURS, f"{kept} bits", lambda x, low=low: (x // low * low + low // 2).tobytes(), read_rows)


def read_rows(data: bytes) -> Pixels:
    return np.frombuffer(data, np.uint8).reshape(-1, 64)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_a_mosaic_is_cut_into_the_same_rows(n: int, H: int, W: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 256, (n, H * W), dtype=np.uint8)
    mosaic = rate_peers.arrange_mosaic(x, (H, W))
    assert mosaic.size < n * H * W + (math.isqrt(n) + 1) * H * W
    assert np.array_equal(rate_peers.cut_mosaic(mosaic, n, (H, W)), x)


def test_a_row_counts_the_bytes_of_the_file_and_clips_and_rounds_what_was_decoded() -> None:
    test = np.array([[0, 255, 7, 8]] * 2, np.uint8)
    coder = Coder("m", "s", lambda x: b"12345", lambda data: np.array([[-9.0, 400, 7.4, 10.4]] * 2), 5, 6, 7.0)
    row = rate.measure(coder, test)
    assert row.at == 8 * 5 / 2 and row.value == (10 - 8) ** 2 / 4
    assert row.coding is not None and (row.coding.train_rows, row.coding.model_bytes) == (5, 6)
    assert row.coding.train_seconds == 7.0 and row.coding.code_seconds >= 0 <= row.coding.decode_seconds


@pytest.mark.numeric
def test_every_image_codec_is_closer_to_the_images_at_a_higher_rate(few: None) -> None:
    x = draw_images(90)
    points: dict[str, list[tuple[float, float]]] = {}
    for coder in rate_peers.make_image_coders(len(x), SHAPE):
        row = rate.measure(coder, x)
        assert row.at is not None
        points.setdefault(coder.method, []).append((row.at, row.value))
    assert {name for name, kind in rate.KINDS.items() if kind == "image codec"} == points.keys()
    for method, those in points.items():
        (low, far), (high, near) = sorted(those)
        assert low < high and near < far < x.astype(float).var() + 1000, method
        assert near < 400, method


@pytest.mark.slow
@pytest.mark.numeric
def test_every_quantiser_beats_the_mean_at_its_size(few: None) -> None:
    train, test = draw_images(3000), draw_images(100, seed=4)
    coders = list(rate_peers.train_quantisers(train))
    assert [coder.method for coder in coders] == [name for name, kind in rate.KINDS.items() if kind == "quantiser"]
    for coder in coders:
        row = rate.measure(coder, test)
        assert row.at == 16 and row.value < 0.5 * np.square(test - train.mean(0)).mean(), coder.method
        assert row.coding is not None and row.coding.model_bytes >= 4 * 256 * 64 and row.coding.train_seconds > 0


@pytest.mark.slow
@pytest.mark.numeric
def test_the_first_codebooks_of_a_residual_quantiser_are_those_of_a_smaller_one() -> None:
    train, test = draw_images(3000), draw_images(100, seed=4)
    first, _ = rate_peers.train_residual_quantisers(train, [1, 2])
    (alone,) = rate_peers.train_residual_quantisers(train, [1])
    errors = [rate.measure(coder, test).value for coder in (first, alone)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_a_product_quantiser_may_have_parts_that_do_not_divide_the_row() -> None:
    coder = rate_peers.train_product_quantiser(draw_images(600), 3)
    assert coder.model_bytes == 4 * 256 * 66
    assert coder.decode(coder.encode(draw_images(5))).shape == (5, 64)


@pytest.mark.numeric
def test_curves_leave_out_dominated_points_and_are_interpolated_in_the_logarithm() -> None:
    curves = rate.trace_curves([("a", 40, 100), ("a", 20, 400), ("a", 30, 500), ("b", 1, 2)])
    assert curves == {"a": [(20, 400), (40, 100)], "b": [(1, 2)]}
    assert rate.interpolate(curves["a"], 30) == pytest.approx(200)
    assert rate.interpolate(curves["a"], 40.5) == pytest.approx(100)
    assert rate.interpolate(curves["a"], 50) is None and rate.interpolate([], 50) is None


def test_a_task_without_grey_images_of_bytes_is_refused() -> None:
    with pytest.raises(InputError, match="grey images"):
        next(run_benches(["rate"], load_task("subspaces", Path("data"))))


@pytest.mark.parametrize("library", ["faiss", "pillow_jxl"])
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match="bench"):
        rate_peers.check_libraries()


@pytest.mark.slow
@pytest.mark.numeric
def test_our_checkpoints_are_trained_and_code_the_rows(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text("task: subspaces\nmodel: pca\nembed-dim: 3\ncentring: none\ndevice: cpu\n")
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(rate, "shipped_folder", lambda: tmp_path)
    monkeypatch.setattr(rate, "CHECKPOINTS", ((rate.PCA, "c.yaml", ("seed=3",), (24, 40)),))
    test = rate.read_pixels(task.test)
    coders = rate.train_own_coders(task, rate.read_pixels(task.train), test, tmp_path / "work")
    low, high = (rate.measure(coder, test) for coder in coders)
    assert low.at is not None and high.at is not None and low.at < high.at < 48 and high.value < low.value < 300
    assert low.coding is not None and low.coding.train_rows == 600 and low.coding.model_bytes > 0


@pytest.mark.slow
def test_the_benchmark_compares_us_with_the_best_peer(task: Task, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "train_own_coders", code_by_rounding)
    monkeypatch.setattr(rate, "COMPARED_BITS", (512,))
    rows = list(run_benches(["rate"], task))
    assert {row.coding.method for row in rows if row.coding} == rate.KINDS.keys() - {rate.PCA}
    assert all(math.isfinite(row.value) and row.value >= 0 for row in rows)


@pytest.fixture
def network(task: Task, tmp_path: Path) -> Path:
    """The checkpoint of a small autoencoder that was trained for 40 bits on the task's images."""
    keys: dict[str, object] = {
        "task": task.name, "model": "gae", "K": 1, "trainer": "gradient", "decoder": "mlp", "latent_start": "learnt",
        "ascent": "later", "ascent_method": "bfgs", "width": 16, "bits": 40.0, "epochs": 8, "batch_size": 50,
    }  # fmt: skip
    return pictured.train(tmp_path, **keys)


@pytest.mark.slow
@pytest.mark.numeric
def test_a_checkpoint_is_a_curve_around_the_rate_that_it_was_trained_for(
    task: Task, network: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "make_image_coders", lambda n, shape: ())
    monkeypatch.setattr(rate, "train_quantisers", lambda train: ())
    monkeypatch.setattr(rate, "train_own_coders", code_by_rounding)
    rows = list(rate.measure_rate(task, [network]))
    own = [row for row in rows if row.coding and row.coding.method == "autoencoder"]
    assert len(own) == 3 and len(rows) == 5  # no rate of it is on the other curve
    for row, bits in zip(own, (20, 40, 60), strict=True):
        assert row.at is not None and 0.8 * bits < row.at <= bits and row.value < 1000
        assert row.coding is not None and row.coding.train_rows == 600 and row.coding.model_bytes > 0


def test_checkpoints_without_codec_or_of_other_data_are_refused(task: Task, tmp_path: Path) -> None:
    plain = pictured.train(tmp_path / "plain", model="autoencoder", K=1, n_step=0, trainer="gradient", epochs=1)
    with pytest.raises(InputError, match="has no codec"):
        rate.load_coders(task, [plain])
    other = pictured.train(tmp_path / "other")
    with pytest.raises(InputError, match=f"{other.name}: was trained on other data \\(subspaces\\) than npy:"):
        rate.load_coders(task, [other])


def test_a_checkpoint_not_trained_for_a_rate_has_a_name_that_is_not_ours(task: Task, tmp_path: Path) -> None:
    path = pictured.train(tmp_path, task=task.name)
    coders = rate.load_coders(task, [path, path])
    assert {coder.method for coder in coders} == {"llgae (checkpoint)"}
    assert rate.find_kind("llgae (checkpoint)") == "checkpoint"
    listed = [coder.setting for coder in coders[:3]]
    assert [text.split(", ")[-1] for text in listed] == ["for 40 bits", "for 80 bits", "for 120 bits"]


@pytest.mark.slow
def test_the_command_prints_a_table_and_draws_the_curves(
    task: Task, network: Path, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "train_own_coders", code_by_rounding)
    arguments = ["bench", "rate", "-q", "--task", task.name, "--checkpoint", str(network), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    lines = [line.split("\t") for line in done.output.splitlines()]
    assert lines[0][:4] == ["method", "setting", "bits", "squared error"]
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert len([row for row in document["rows"] if row["coding"]]) == len([one for one in lines if len(one) == 9]) - 1
    assert (tmp_path / "out" / "rate.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "out" / "bench.png").exists()


@pytest.mark.numeric
def test_our_error_is_compared_where_both_curves_have_a_value() -> None:
    def point(method: str, bits: float, error: float) -> Row:
        return rate.measure(
            Coder(method, "", lambda x: bytes(round(bits)), lambda data: np.full((8, 1), error**0.5)),
            np.zeros((8, 1), np.uint8),
        )

    rows = [point(rate.OURS, 40, 100), point(rate.OURS, 160, 25), point("PQ", 80, 100), point("OPQ", 80, 225)]
    (compared,) = rate.compare(rows)
    assert "at 80 bits" in compared.what and compared.what.endswith(" PQ") and compared.against == pytest.approx(100)
    assert compared.ratio == pytest.approx(compared.value / 100) and 25 < compared.value < 100
    networks = [point("autoencoder", 80, 4), point("autoencoder", 200, 4), point("gae", 40, 25)]
    peer, near, far = rate.compare([*rows, *networks])
    assert peer == compared
    assert near.what.endswith("at 80.0 bits: autoencoder; llgae") and near.value == pytest.approx(4)
    assert near.against == pytest.approx(compared.value) and near.ratio == pytest.approx(4 / compared.value)
    assert far.what.endswith("at 40.0 bits: gae; llgae") and far.ratio == pytest.approx(0.25)
