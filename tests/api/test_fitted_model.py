"""The model on arrays: agrees with the command line, undoes what it prepares, and refuses what does not fit."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llgae_cli as llgae

pytestmark = pytest.mark.numeric
QUICK = {"K": 3, "embed-dim": 2, "restarts": 1, "moves": 0, "epochs": 3, "figures": False}


def make_table(n: int = 300) -> np.ndarray:
    """Rows of three planes in six columns of unlike units."""
    rng = np.random.default_rng(0)
    k = rng.integers(3, size=n)
    rows = 3 * rng.normal(size=(3, 6))[k] + np.einsum(
        "ne,ned->nd", rng.normal(size=(n, 2)), rng.normal(size=(3, 2, 6))[k]
    )
    return (rows + 0.1 * rng.normal(size=(n, 6))) * 10.0 ** np.arange(-2, 4) + 100


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> llgae.TrainingResult:
    folder = tmp_path_factory.mktemp("images")
    return llgae.train({"task": "subspaces", "checkpoint_dir": folder, **QUICK})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[llgae.FittedModel, np.ndarray]:
    folder = tmp_path_factory.mktemp("table")
    X = make_table()
    lines = ["a,b,c,d,e,f", *(",".join(map(repr, row)) for row in X.tolist())]
    (folder / "x.csv").write_text("\n".join(lines) + "\n")
    return llgae.train({"task": f"csv:{folder / 'x.csv'}", "checkpoint-dir": folder, **QUICK}).model, X


def draw_images(images: llgae.TrainingResult) -> np.ndarray:
    return llgae.load_task("subspaces", Path("unused")).test.stored_array()


def test_images_come_back_in_their_units_and_either_shape(images: llgae.TrainingResult) -> None:
    model, X = images.model, draw_images(images)
    codes = model.encode(X)
    assert codes.k.shape == (1000,) and codes.b.shape == (1000, 2) and codes.mean.shape == (1000,)
    assert len(codes[:10]) == 10
    x_hat = model.decode(codes)
    assert x_hat.shape == (1000, 8, 8) and x_hat.dtype == np.float32
    assert np.square(x_hat.reshape(1000, 64) - X).mean() == pytest.approx(images.metrics["mean_l2"], rel=1e-3)
    np.testing.assert_allclose(model.reconstruct(X), x_hat.reshape(1000, 64))
    assert model.reconstruct(X.reshape(1000, 8, 8)).shape == (1000, 8, 8)
    assert model.evaluate(X)["mean_l2"] == pytest.approx(images.metrics["mean_l2"])


def test_a_loaded_model_is_the_trained_one(images: llgae.TrainingResult) -> None:
    model, X = llgae.load(images.checkpoint), draw_images(images)[:50]
    np.testing.assert_array_equal(model.encode(X).k, images.model.encode(X).k)
    assert model.metrics == images.model.metrics
    assert model.metrics["mean_l2"] == images.metrics["mean_l2"]
    assert (model.task, model.config.K, model.shape, model.columns) == ("subspaces", 3, (8, 8), None)


def test_tensors_come_back_as_tensors(images: llgae.TrainingResult) -> None:
    model, X = images.model, torch.from_numpy(draw_images(images)[:20])
    codes = model.encode(X)
    assert isinstance(codes.k, torch.Tensor) and isinstance(model.score_samples(X), torch.Tensor)
    assert isinstance(model.decode(codes), torch.Tensor)
    np.testing.assert_array_equal(model.reconstruct(X).numpy(), model.reconstruct(X.numpy()))


def test_columns_of_a_table_keep_their_own_units(table: tuple[llgae.FittedModel, np.ndarray]) -> None:
    model, X = table
    x_hat = model.decode(model.encode(X))
    assert x_hat.dtype == np.float64
    explained = 1 - np.square(X - x_hat).mean(0) / X.var(0)
    assert explained.min() > 0.5 and model.columns == tuple("abcdef")
    drawn = model.sample(500)
    assert (np.abs(drawn.mean(0) - X.mean(0)) < X.std(0)).all()
    np.testing.assert_array_equal(drawn, model.sample(500))


def test_a_frames_columns_are_found_by_name(table: tuple[llgae.FittedModel, np.ndarray]) -> None:
    model, X = table

    class Frame:
        def __init__(self, columns: list[str], values: np.ndarray):
            self.columns, self.values = columns, values

        def __getitem__(self, names: list[str]) -> "Frame":
            return Frame(names, self.values[:, [self.columns.index(name) for name in names]])

        def to_numpy(self) -> np.ndarray:
            return self.values

    turned = Frame(list("fedcba"), X[:, ::-1])
    np.testing.assert_array_equal(model.reconstruct(turned), model.reconstruct(X))
    with pytest.raises(llgae.InputError, match="X: has no column 'b'"):
        model.encode(Frame(list("acdefg"), X))


def test_rows_that_do_not_belong_score_lower(table: tuple[llgae.FittedModel, np.ndarray]) -> None:
    model, X = table
    far = X[:20] + 10 * X.std(0)
    assert model.score_samples(far).max() < np.median(model.score_samples(X))


def test_a_pair_is_a_code(table: tuple[llgae.FittedModel, np.ndarray]) -> None:
    model, X = table
    codes = model.encode(X)
    assert codes.mean is None
    np.testing.assert_array_equal(model.decode((codes.k, codes.b)), model.decode(codes))


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.zeros((4, 5)), r"X: has shape \(4, 5\); \(N, 6\) is expected"),
        (np.full((4, 6), np.nan), "X: row 0 holds NaN"),
        (np.full((4, 6), "a"), "X: holds str"),
        (np.zeros((0, 6)), "X: has no rows"),
        (np.zeros(6), r"X: has shape \(6,\)"),
    ],
)
def test_rows_that_are_refused(table: tuple[llgae.FittedModel, np.ndarray], X: np.ndarray, words: str) -> None:
    with pytest.raises(llgae.InputError, match=words):
        table[0].encode(X)


@pytest.mark.parametrize(
    ("k", "b", "words"),
    [
        ([3], [[0.0, 0.0]], "k holds integers from 0 to 2"),
        ([0.5], [[0.0, 0.0]], "k holds integers from 0 to 2"),
        ([0], [[0.0]], r"b has shape \(1, 1\); \(1, 2\) is expected"),
        ([0], [[0.0, np.inf]], "b holds NaN or an infinity"),
    ],
)
def test_codes_that_are_refused(table: tuple[llgae.FittedModel, np.ndarray], k: Any, b: Any, words: str) -> None:
    with pytest.raises(llgae.InputError, match=words):
        table[0].decode((np.array(k), np.array(b)))


def test_residual_codes_have_further_symbols(tmp_path: Path) -> None:
    keys = {"task": "subspaces", "model": "residual", "levels": 2, "checkpoint-dir": tmp_path, **QUICK}
    model = llgae.train(keys).model
    X = llgae.load_task("subspaces", tmp_path).test.stored_array()[:30]
    codes = model.encode(X)
    assert codes.s.shape == (30, 1)
    np.testing.assert_allclose(model.decode(codes).reshape(30, 64), model.reconstruct(X))
    with pytest.raises(llgae.InputError, match="only llgae, pca and kmeans"):
        model.score_samples(X)


def test_the_html_has_numbers_and_pictures_for_both_themes(
    images: llgae.TrainingResult, table: tuple[llgae.FittedModel, np.ndarray]
) -> None:
    for model in (images.model, table[0]):
        assert len(repr(model)) < 200 and f"K = {model.module.K}" in repr(model) and model.task in repr(model)
        text = model._repr_html_()
        assert text.count("data:image/png;base64,") == 2 and "prefers-color-scheme: dark" in text
        assert f"{model.metrics['mean_l2']:.4g}"[:4] in text and "script" not in text


def test_progress_and_errors_of_train(tmp_path: Path) -> None:
    seen: list[llgae.Progress] = []
    keys = {"task": "subspaces", "checkpoint_dir": tmp_path, **QUICK, "K": np.int64(3)}
    before = torch.get_rng_state()
    result = llgae.train(keys, on_progress=seen.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(dict.fromkeys(one.epoch for one in seen)) == list(range(len(result.history) + 1))
    last = seen[-1]
    assert seen[0].train_mean_l2 is None and last.epochs == 3
    assert last.done == last.total and last.seconds_left == 0 and last.test_mean_l2 == result.metrics["mean_l2"]
    assert str(last).startswith(f"100 %, epoch {last.epoch} of 3: mean L2 ")
    for wrong, words in (
        ({"embed-dims": 3}, "config: unknown key 'embed-dims'; did you mean 'embed-dim'"),
        ({"K": "many"}, 'K: "many" is not allowed'),
        ({"task": "subspaces", "optimizer": "adamw"}, "optimizer: has no effect"),
    ):
        with pytest.raises(llgae.InputError, match=words):
            llgae.train(wrong)


def test_ctrl_c_saves_and_then_interrupts(tmp_path: Path) -> None:
    keys = {"task": "subspaces", "checkpoint_dir": tmp_path, **QUICK, "trainer": "gradient"}
    del keys["restarts"], keys["moves"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    try:
        with pytest.raises(KeyboardInterrupt, match="saved .*resume='last'"):
            llgae.train(keys, on_progress=lambda progress: progress.epoch and signal.raise_signal(signal.SIGINT))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert llgae.train(keys, resume="last").metrics["epochs"] == 3


def test_what_is_public() -> None:
    for name in llgae.__all__:
        assert getattr(llgae, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = llgae.lode  # type: ignore[attr-defined]
