"""Activity classes: rows whose latents are large or small together."""

from dataclasses import replace

import numpy as np
import pytest
from coded import make_codec  # tests/coded.py

from llgae_cli.codec.activity import CLASSES, fit_activity
from llgae_cli.codec.codec import mean_bits
from llgae_cli.codec.exact import NO_ACTIVITY, SCALES, SPREADS, ExactDecoder, Level, Step
from llgae_cli.codec.model import CodecModel
from llgae_cli.tasks import Samples

pytestmark = pytest.mark.numeric


def make_model(contrast: np.ndarray) -> tuple[CodecModel, Samples]:
    """Two components at 0 and 40 with 12 latents each; the latents of a row are `contrast` times a standard normal."""
    draw = np.random.default_rng(1)
    E, D = 12, 16
    U = np.linalg.qr(draw.normal(size=(2, D, E)))[0]
    mu = np.array([np.zeros(D), np.full(D, 40.0)])
    k = draw.integers(2, size=len(contrast))
    z = draw.normal(size=(len(contrast), E)) * contrast[:, None]
    rows = mu[k] + np.einsum("nde,ne->nd", U[k], z)
    scale = np.full((2, E), round(SCALES * float(np.log2(np.sqrt(2 * (contrast**2).mean())))))
    level = Level.round(mu, U, np.full((2, E), 3), scale)
    counts = (np.bincount(k, minlength=2),)
    codec = make_codec(rows, 2, E)
    return CodecModel(ExactDecoder((level,)), counts, None, codec.model.grid, Step.nearest(0.5)), Samples(rows)


def bits_of(model: CodecModel, samples: Samples) -> float:
    y, _ = model.grid.round(samples.stored_array().astype(np.float64))
    return mean_bits(model.encoder.choose(y, model.encoder.prepare(model.step, 0)))


def test_rows_of_several_contrasts_cost_fewer_bits() -> None:
    contrast = np.array([0.5, 4.0])[np.random.default_rng(0).integers(2, size=2000)]
    model, samples = make_model(contrast)
    fitted = fit_activity(model, samples)
    assert fitted.decoder.levels[0].A == CLASSES and fitted.counts[0].shape == (2 * CLASSES,)
    assert bits_of(fitted, samples) < bits_of(model, samples) - 2
    again = CodecModel.unpack(fitted.pack())
    assert again.identity == fitted.identity != model.identity
    assert np.array_equal(again.decoder.levels[0].activity, fitted.decoder.levels[0].activity)


def test_rows_of_one_contrast_have_one_class() -> None:
    model, samples = make_model(np.full(2000, 2.0))
    fitted = fit_activity(model, samples)
    assert fitted.decoder.levels[0].A == 1 and fitted.counts[0].shape == (2,)


def test_the_spread_is_the_standard_deviation_over_the_step() -> None:
    alpha = np.array([0.01, 0.2, 1.0, 3.0, 100.0])
    scale = np.rint(SCALES * np.log2(alpha)).astype(np.int64)[None]
    level = Level.round(np.zeros((1, 8)), np.zeros((1, 8, 5)), np.full((1, 5), 3), scale)  # Gaussian: alpha = sqrt 2 sd
    octave = np.floor(np.log2(alpha / np.sqrt(2) / 0.25))
    expected = np.clip(octave + SPREADS // 2, 0, SPREADS - 1)
    assert level.spreads(Step.nearest(0.25))[0].tolist() == expected.tolist()
    moved = replace(level, activity=np.stack([NO_ACTIVITY[0], np.arange(SPREADS)]))
    plain, shifted = moved.table_ids(Step.nearest(0.25))
    assert (shifted - plain)[1:4].tolist() == expected[1:4].tolist()
