"""Rate and distortion of a codec: its parts, its curve over steps, and the size of the file that it writes."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pictured  # tests/pictured.py
import pytest
import torch
from typer.testing import CliRunner

from llgae_cli.cli.app import app
from llgae_cli.errors import InputError
from llgae_cli.evaluation import Evaluated, evaluate_checkpoint
from llgae_cli.evaluation.rate import compute_costs, find_pareto_front, measure_curve, read_codec

pytestmark = [pytest.mark.numeric, pytest.mark.slow]
SHAPE, N = (6, 8), 1500
MEMBERS: dict[str, dict[str, Any]] = {
    "llgae, centred": {"model": "llgae", "centring": "sample"},
    "llgae": {"model": "llgae", "centring": "none"},
    "for a rate": {"model": "llgae", "centring": "none", "bits": 12.0},
    "kmeans": {"model": "kmeans", "embed_dim": 0, "centring": "none"},
    "residual": {"model": "residual", "levels": 2, "centring": "none"},
    "shift": {"model": "shift", "centring": "sample"},
}


def spots(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of a bright spot, of one of three widths, and their widths as labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, n)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    at = generator.uniform(1, 5, (n, 2))
    width = np.array([1.0, 2.0, 4.0])[labels][:, None, None]
    light = np.exp(-((y - at[:, :1, None]) ** 2 + (x - at[:, 1:, None]) ** 2) / (2 * width**2))
    return np.clip(220 * light + generator.normal(12, 6, (n, *SHAPE)), 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Evaluated]:
    """Trains a member on the spots, once, and evaluates it."""
    data = tmp_path_factory.mktemp("spots")
    for seed, (part, n) in enumerate((("train", 3000), ("test", N))):
        images, labels = spots(n, seed)
        np.save(data / f"{part}.npy", images)
        np.save(data / f"{part}_labels.npy", labels)
    known: dict[str, Evaluated] = {}

    def evaluate(member: str) -> Evaluated:
        if member not in known:
            keys = {"task": f"npy:{data}", "figures": False, **MEMBERS[member]}
            known[member] = evaluate_checkpoint(pictured.train(tmp_path_factory.mktemp("run"), **keys))
        return known[member]

    return evaluate


@pytest.mark.parametrize("member", MEMBERS)
def test_the_parts_add_up_to_the_size_of_the_file_that_the_codec_writes(
    evaluate: Callable[[str], Evaluated], member: str
) -> None:
    found = evaluate(member)
    split = found.bit_split
    assert split is not None and found.codec is not None and split.n == N
    assert split.bits + split.framing == pytest.approx(sum(split.parts().values()))
    x = found.split_samples.stored_rows().numpy().reshape(N, *SHAPE)
    file = found.codec.encode(x, step=split.step)
    # The settings are chosen by other samples than the file's: it may be a little larger or smaller.
    assert split.bits + split.framing == pytest.approx(8 * len(file) / N, rel=0.01, abs=0.1)
    error = np.square(found.codec.decode(file).astype(float) - x).mean()
    assert split.mean_squared_error == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("member", MEMBERS)
def test_the_parts_are_those_of_the_model(evaluate: Callable[[str], Evaluated], member: str) -> None:
    found = evaluate(member)
    split, keys = found.bit_split, MEMBERS[member]
    assert split is not None
    assert (split.mean > 0.5) == (keys["centring"] == "sample") and (split.shifts > 0) == (keys["model"] == "shift")
    assert (split.latents > 0) == (keys["model"] != "kmeans")
    assert 0 < split.k + split.raw and split.k < 2 * math.log2(4) + 1
    assert len(split.per_latent) == (2 if keys["model"] == "residual" else 1)
    # Means over the components, weighted by their use, are the bits of all latents.
    total = sum(float((own @ bits).sum()) for own, bits in zip(split.use, split.per_latent, strict=True))
    assert total == pytest.approx(split.latents + split.mean)
    assert all(use.sum() == pytest.approx(1) for use in split.use)
    assert split.per_class is not None
    share = np.bincount(found.labels) / N if found.labels is not None else np.zeros(3)
    assert sum(share[label] * bits for label, (bits, _) in split.per_class.items()) == pytest.approx(split.bits)
    errors = sum(share[label] * error for label, (_, error) in split.per_class.items())
    assert errors == pytest.approx(split.mean_squared_error)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_finer_step_takes_more_bits_and_leaves_less_error(evaluate: Callable[[str], Evaluated], member: str) -> None:
    curve = evaluate(member).rate_curve
    bits, error = np.array([point.bits for point in curve]), np.array([point.mean_squared_error for point in curve])
    assert [point.step for point in curve] == sorted(point.step for point in curve) and len(curve) == 7
    if MEMBERS[member]["model"] == "kmeans":  # no latent depends on the step
        return
    assert (np.diff(bits) < 0).all() and np.diff(error).min() > -0.01 * error.min()
    assert error[-1] > error[0]


def test_the_own_step_is_on_the_curve(evaluate: Callable[[str], Evaluated]) -> None:
    found = evaluate("for a rate")
    split, rate = found.bit_split, found.rate
    assert split is not None and N <= 2000  # so that the curve and the parts are of the same samples
    own = next(point for point in found.rate_curve if point.step == split.step)
    assert own.bits == pytest.approx(split.bits) and own.mean_squared_error == pytest.approx(split.mean_squared_error)
    assert (rate.bits_coded, rate.mean_l2_coded, rate.step) == (split.bits, split.mean_squared_error, split.step)
    assert rate.bits_k == split.k and not rate.bits_estimated
    assert rate.bits_coded == pytest.approx(12, rel=0.1)  # what the model was trained for


def test_a_row_beyond_the_grid_costs_its_bytes_and_has_no_error(evaluate: Callable[[str], Evaluated]) -> None:
    found = evaluate("llgae")
    assert found.codec is not None
    settings = found.codec.choose_settings(np.zeros((1, 48), np.float64), step=5.0)
    x = np.stack([np.full(48, 100.0), np.full(48, 1e12)])
    costs = compute_costs(found.codec, x, settings)
    assert costs.raw[1] == pytest.approx(48 * 64 + 24, abs=1) and costs.raw[0] < 0.01
    assert costs.error[1] == 0 and costs.error[0] > 0 and costs.k[1] == costs.latents[1].sum() == 0


def test_a_checkpoint_without_a_codec_has_an_estimate(evaluate: Callable[[str], Evaluated]) -> None:
    found = evaluate("llgae")
    extras = {name: value for name, value in found.checkpoint.extras.items() if name != "codec"}
    old = replace(found, checkpoint=replace(found.checkpoint, extras=extras))
    assert old.codec is None and old.bit_split is None and old.rate_curve == ()
    assert old.rate.bits_estimated and old.rate.bits_coded > 0


def test_a_damaged_codec_is_refused_in_one_line(evaluate: Callable[[str], Evaluated]) -> None:
    packed = evaluate("llgae").checkpoint.extras["codec"]
    for wrong in (packed[:-5], packed.flip(0), torch.zeros(3, dtype=torch.uint8)):
        with pytest.raises(InputError, match=r"^m\.pkl: its codec is damaged$"):
            read_codec({"codec": wrong}, 48, "m.pkl")
    with pytest.raises(InputError, match="damaged"):
        read_codec({"codec": packed}, 47, "m.pkl")


def test_the_curve_needs_few_samples_only(evaluate: Callable[[str], Evaluated]) -> None:
    found = evaluate("llgae")
    assert found.codec is not None
    for n in (1, 2, 7):
        curve = measure_curve(found.codec, found.split_samples.part(0, n))
        assert all(point.n == n and point.bits > 0 for point in curve)


def test_eval_prints_the_curve_and_the_parts(evaluate: Callable[[str], Evaluated]) -> None:
    found = evaluate("llgae, centred")
    split = found.bit_split
    assert split is not None
    done = CliRunner().invoke(app, ["eval", str(found.path), "--json"])
    assert done.exit_code == 0, done.output
    rate = json.loads(done.stdout)["rate"]
    assert rate["bits_coded"] == pytest.approx(split.bits) and len(rate["curve"]) == 7
    assert sum(rate["split"]["parts"].values()) == pytest.approx(split.bits + split.framing)
    assert np.shape(rate["split"]["per_latent"][0]) == (4, 4) and len(rate["split"]["per_class"]) == 3
    text = CliRunner().invoke(app, ["eval", str(found.path)]).stdout
    assert f"{split.bits:.2f} a sample" in text and "mean of the sample" in text and f"bits ({N} samples)" in text


def test_eval_of_a_network_prints_an_estimate(tmp_path: Path) -> None:
    path = pictured.train(tmp_path, model="gae", decoder="mlp", beta=1e-5, width=8)
    done = CliRunner().invoke(app, ["eval", str(path)])
    assert done.exit_code == 0 and "bits, estimated" in done.stdout and "there is no codec" in done.stdout
    rate = json.loads(CliRunner().invoke(app, ["eval", str(path), "--json"]).stdout)["rate"]
    assert rate["bits_estimated"] and rate["split"] is None and rate["curve"] == []


def test_the_pareto_front_is_what_no_point_beats() -> None:
    generator = np.random.default_rng(0)
    points = [(float(a), float(b)) for a, b in generator.integers(0, 12, (60, 2))]
    beaten = {
        p for p in points for q in points if q[0] <= p[0] and q[1] <= p[1] and (q[0] < p[0] or q[1] < p[1])
    }  # the definition, pair by pair
    assert {points[i] for i in find_pareto_front(points)} == set(points) - beaten
