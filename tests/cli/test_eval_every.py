"""When the test mean L2 is measured, and what an interrupt and a divergence are told without it."""

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from llgae_cli import experiment
from llgae_cli.cli.app import app
from llgae_cli.config import Config
from llgae_cli.errors import InputError, Interrupted, RunError
from llgae_cli.evaluation import metrics
from llgae_cli.figures.training_curve import training_curve
from llgae_cli.storage import Checkpoint, load
from llgae_cli.training import Gradient

SMALL = {"task": "subspaces", "K": 4, "embed_dim": 3, "trainer": "gradient", "epochs": 5, "figures": False}


def a_config(folder: Path, **keys: Any) -> Config:
    return Config.model_validate({**SMALL, "checkpoint_dir": folder, **keys})


def trained(folder: Path, resume: str | None = None, **keys: Any) -> Checkpoint:
    path = experiment.train(a_config(folder, **keys), resume).checkpoint
    assert path is not None
    return load(path)


def measured(checkpoint: Checkpoint, figure: str = "test_mean_l2") -> list[int]:
    """The epochs whose row in the history has the figure."""
    return [int(row["epoch"]) for row in checkpoint.history if figure in row]


@pytest.mark.parametrize(
    ("keys", "epochs"),
    [
        ({}, [5]),
        ({"eval_every": 1}, [1, 2, 3, 4, 5]),
        ({"eval_every": 2}, [2, 4, 5]),
        ({"save_every": 2}, [2, 4, 5]),
        ({"eval_every": 3, "save_every": 2, "validation": 0.1}, [2, 3, 4, 5]),
    ],
)
def test_the_test_mean_l2_is_measured_when_asked_when_saved_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], epochs: list[int]
) -> None:
    calls: list[int] = []
    mean_l2 = metrics.mean_l2
    monkeypatch.setattr(metrics, "mean_l2", lambda model, samples: calls.append(samples.N) or mean_l2(model, samples))
    checkpoint = trained(tmp_path, **keys)
    splits = [figure for figure in ("test_mean_l2", "validation_mean_l2") if keys.get("validation") or "test" in figure]
    assert len(calls) == len(epochs) * len(splits)
    assert all(measured(checkpoint, figure) == epochs for figure in splits)
    assert [row["epoch"] for row in checkpoint.history] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(row["train_mean_l2"]) for row in checkpoint.history)
    assert checkpoint.history[-1]["test_mean_l2"] == checkpoint.mean_l2
    for path in tmp_path.glob("*.pkl"):  # the figure in a name is the file's own
        saved = load(path)
        assert f"_{saved.epoch}_{saved.mean_l2:.5f}.pkl" in path.name
        assert evaluate_checkpoint(path).metrics.mean_l2 == pytest.approx(saved.mean_l2, rel=1e-5)


def test_how_often_it_is_measured_changes_no_bit_of_the_result(tmp_path: Path) -> None:
    one, other = trained(tmp_path / "one"), trained(tmp_path / "other", eval_every=1)
    assert one.mean_l2 == other.mean_l2 and one.train_mean_l2 == other.train_mean_l2
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


@pytest.mark.parametrize("eval_every", [0, 2])
def test_an_interrupt_amid_an_epoch_saves_the_last_complete_one_with_its_own_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eval_every: int
) -> None:
    whole = trained(tmp_path / "whole", eval_every=eval_every)
    epoch = Gradient.epoch

    def interrupted(self: Any) -> Any:
        if self.epochs_done < 2:
            return epoch(self)
        with torch.no_grad():
            self.parameters[0].fill_(1e6)  # half an epoch's work
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as during, pytest.raises(Interrupted) as caught:
        during.setattr(Gradient, "epoch", interrupted)
        trained(tmp_path / "cut", eval_every=eval_every)
    assert caught.value.saved is not None
    saved = load(caught.value.saved)
    assert saved.epoch == 2 and saved.train_mean_l2 is None
    assert measured(saved) == ([2] if eval_every else [])
    assert evaluate_checkpoint(caught.value.saved).metrics.mean_l2 == pytest.approx(saved.mean_l2, rel=1e-5)

    resumed = trained(tmp_path / "cut", "last", eval_every=eval_every)
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in c.history] for c in (whole, resumed)]
    assert timeless[0] == timeless[1] and resumed.mean_l2 == whole.mean_l2
    assert all(torch.equal(whole.state[name], resumed.state[name]) for name in whole.state)


@pytest.mark.parametrize(("eval_every", "call", "saved", "resumed"), [(2, 2, [2, 4], [2, 4, 5]), (0, 1, [], [5])])
def test_an_interrupt_while_an_epoch_is_measured_loses_neither_it_nor_its_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eval_every: int, call: int, saved: list[int], resumed: list[int]
) -> None:
    mean_l2, calls = metrics.mean_l2, []

    def interrupted(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) == call:
            raise Interrupted(signal.SIGTERM)
        return mean_l2(*arguments)

    with monkeypatch.context() as during, pytest.raises(Interrupted) as caught:
        during.setattr(metrics, "mean_l2", interrupted)
        trained(tmp_path, eval_every=eval_every)
    assert caught.value.saved is not None and measured(load(caught.value.saved)) == saved
    assert load(caught.value.saved).epoch == (saved or resumed)[-1]
    assert measured(trained(tmp_path, "last", eval_every=eval_every)) == resumed


@pytest.mark.parametrize("what", ["train mean L2", "parameters"])
def test_divergence_is_seen_in_its_epoch_without_the_test_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    epoch = Gradient.epoch

    def diverged(self: Any) -> Any:
        record = epoch(self)
        if self.epochs_done == 2 and what == "parameters":
            with torch.no_grad():
                self.parameters[1].view(-1)[0] = math.inf
        elif self.epochs_done == 2:
            record["train_mean_l2"] = math.nan
        return record

    monkeypatch.setattr(Gradient, "epoch", diverged)
    with pytest.raises(RunError, match=f"{what} became .* in epoch 2: lower lr or beta"):
        trained(tmp_path)
    assert not list(tmp_path.glob("*.pkl"))


def test_pictures_and_words_take_a_history_with_gaps(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    by_epoch = training_curve(checkpoint.history).axes[0]
    drawn = {line.get_label(): len(line.get_xdata()) for line in by_epoch.lines}
    assert drawn == {"train": 5, "test": 1} and f"{checkpoint.mean_l2:.2f} on test" in by_epoch.get_title("left")
    assert training_curve(checkpoint.history[:3]).axes[0].get_title("left")
    (path,) = tmp_path.glob("*.pkl")
    done = CliRunner().invoke(app, ["report", str(path), "-o", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    assert f"after 5 epochs it is {checkpoint.mean_l2:.2f} on the test samples" in (tmp_path / "r.html").read_text()


def test_a_share_that_holds_out_no_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="validation: 0.0001 of 4000 training samples is less than one"):
        trained(tmp_path, validation=1e-4)
