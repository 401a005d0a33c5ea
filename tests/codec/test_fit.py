"""Codecs fitted to trained models of every kind that has one: they exist, code well, and keep what they promise."""

from pathlib import Path

import numpy as np
import pictured  # tests/pictured.py
import pytest
from coded import recode  # tests/coded.py

from llgae_cli.codec.codec import Codec
from llgae_cli.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.numeric]

KINDS: dict[str, dict[str, object]] = {
    "llgae": {},
    "gradient": {"trainer": "gradient", "epochs": 3},
    "for a rate": {"bits": 40.0, "epochs": 5},
    "pca": {"model": "pca", "K": 1},
    "kmeans": {"model": "kmeans", "embed_dim": 0},
    "residual": {"model": "residual"},
    "centring sample": {"centring": "sample"},
    "centring none": {"centring": "none"},
    "deep": {"model": "deep-llgae", "trainer": "gradient", "decoder": "conv", "width": 16, "channels": 4, "epochs": 6},
    "network": {
        "model": "gae", "trainer": "gradient", "decoder": "mlp", "latent_start": "linear", "width": 16, "epochs": 60,
        "beta": 1e-5,
    },
    "autoencoder for a rate": {
        "model": "gae", "K": 1, "trainer": "gradient", "decoder": "conv", "latent_start": "learnt", "ascent": "later",
        "width": 16, "channels": 4, "epochs": 20, "bits": 30.0, "ascent_method": "bfgs", "batch_size": 50, "lr": 3e-3,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_trained_models_keep_bounds(kind: str, tmp_path: Path) -> None:
    task = pictured.colours(tmp_path, 600)
    codec = Codec.load(pictured.train(tmp_path, task=task, **KINDS[kind]))
    x = np.load(tmp_path / "colours.npy").reshape(600, -1)[500:]
    _, x_hat = recode(codec, x, codec.choose_settings(x, max_abs=4.0))
    assert np.abs(x.astype(int) - x_hat.astype(int)).max() <= 4
    payloads, x_hat = recode(codec, x, codec.choose_settings(x, lossless=True))
    assert np.array_equal(x, x_hat) and sum(map(len, payloads)) < 1.02 * x.size  # noise
    payloads, x_hat = recode(codec, x, codec.choose_settings(x, step=10.0))
    error = np.square(x.astype(float) - x_hat.astype(float)).mean()
    assert error < 0.7 * x.var()


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_the_unit_of_the_data_does_not_matter(size: float, tmp_path: Path) -> None:
    x = (np.load(Path(pictured.vectors(tmp_path).removeprefix("npy:"))) * size).astype(np.float64)
    np.save(tmp_path / "scaled.npy", x)
    codec = Codec.load(pictured.train(tmp_path, task=f"npy:{tmp_path / 'scaled.npy'}", centring="none"))
    payloads, x_hat = recode(codec, x, codec.choose_settings(x, max_abs=1e-3 * size))
    assert np.abs(x - x_hat).max() <= 1e-3 * size
    assert sum(map(len, payloads)) < x.nbytes / 4


def test_autoencoders_have_no_codec(tmp_path: Path) -> None:
    path = pictured.train(tmp_path, model="autoencoder", K=1, n_step=0, trainer="gradient", epochs=1)
    with pytest.raises(InputError, match="has no codec"):
        Codec.load(path)
