"""`rows: N`: which training samples a model is fitted to, and over which its figures are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command, check_refused

from llgae_cli import experiment
from llgae_cli.config import parse_config
from llgae_cli.evaluation import mean_l2
from llgae_cli.factory import restore
from llgae_cli.storage import load
from llgae_cli.tasks import Samples, draw_rows, load_task


@pytest.mark.parametrize("n", [1, 40, 399, 900, 1000])
def test_drawn_rows_are_distinct_in_order_and_follow_the_seed(n: int) -> None:
    samples = Samples(np.arange(2000).reshape(1000, 2))
    drawn = draw_rows(samples, n, seed=3).stored_array()[:, 0]
    assert len(drawn) == n and (np.diff(drawn) > 0).all()
    assert (drawn == draw_rows(samples, n, seed=3).stored_array()[:, 0]).all()
    assert n == 1000 or (drawn != draw_rows(samples, n, seed=4).stored_array()[:, 0]).any()


@pytest.mark.parametrize("n", [2, 7])
def test_every_row_is_drawn_equally_often(n: int) -> None:
    samples = Samples(np.arange(10).reshape(10, 1))
    drawn = np.concatenate([draw_rows(samples, n, seed).stored_array()[:, 0] for seed in range(3000)])
    count = np.bincount(drawn, minlength=10)
    assert abs(count - 300 * n).max() < 5 * (3000 * n / 10 * (1 - n / 10)) ** 0.5  # five standard deviations


@pytest.mark.numeric
def test_the_model_is_that_of_the_drawn_rows_and_the_figures_are_of_all(tmp_path: Path) -> None:
    values = {"task": "subspaces", "K": 4, "embed-dim": 3, "restarts": 1, "moves": 0, "epochs": 3, "figures": False}
    few = experiment.train(parse_config({**values, "rows": 500, "checkpoint-dir": str(tmp_path)}))
    assert few.checkpoint is not None
    model, checkpoint, config = restore(few.checkpoint)
    train = load_task("subspaces", Path("data")).train
    assert few.train_mean_l2 == pytest.approx(mean_l2(model, train), rel=1e-6)
    assert checkpoint.data["N"] == train.N and int(checkpoint.extras["count"].sum()) == config.rows == 500
    drawn = draw_rows(train, 500, config.seed)
    np.save(tmp_path / "train.npy", drawn.stored_array())
    np.save(tmp_path / "test.npy", train.stored_array(slice(0, 9)))
    alone = {
        **values,
        "task": f"npy:{tmp_path}",
        "centring": "sample",
        "scaling": "none",
        "checkpoint-dir": str(tmp_path),
    }
    outcome = experiment.train(parse_config(alone))
    assert outcome.checkpoint is not None
    torch.testing.assert_close(load(outcome.checkpoint).state["mu"], checkpoint.state["mu"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["rows=0"], ("rows: 0", "greater than or equal to 1")),
        (["rows=1.5"], ("rows: 1.5", "integer")),
        (["rows=many"], ("rows:", "integer")),
        (["rows=1e6"], ("rows: 1000000 of 4000 training samples", "at most their number")),
        (["rows=3"], ("K: 4 components for 3 training samples",)),
    ],
)
def test_numbers_of_rows_that_do_not_fit_are_refused(llgae: Command, values: list[str], words: tuple[str, ...]) -> None:
    check_refused(llgae("train", "-c", "fast.yaml", "-S", *values), *words)
