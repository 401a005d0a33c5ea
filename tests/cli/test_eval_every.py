"""When the test mean L2 is measured, what an interrupt and a divergence report, and the newest finished checkpoint."""

import json
import math
import os
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
from llgae_cli.evaluation import evaluate_checkpoint, metrics
from llgae_cli.figures.training_curve import training_curve
from llgae_cli.storage import Checkpoint, find_finished, load
from llgae_cli.training import Gradient

SMALL = {"task": "subspaces", "K": 4, "embed_dim": 3, "trainer": "gradient", "epochs": 5, "figures": False}


def make_config(folder: Path, **keys: Any) -> Config:
    return Config.model_validate({**SMALL, "checkpoint_dir": folder, **keys})


def train(folder: Path, resume: str | None = None, **keys: Any) -> Checkpoint:
    path = experiment.train(make_config(folder, **keys), resume).checkpoint
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
    chunks = metrics.list_chunks
    monkeypatch.setattr(metrics, "list_chunks", lambda *ranges: calls.append(1) or chunks(*ranges))
    checkpoint = train(tmp_path, **keys)
    splits = [figure for figure in ("test_mean_l2", "validation_mean_l2") if keys.get("validation") or "test" in figure]
    assert len(calls) == len(epochs) * len(splits) + 1  # the training samples once, at the end
    assert all(measured(checkpoint, figure) == epochs for figure in splits)
    assert [row["epoch"] for row in checkpoint.history] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(row["train_mean_l2"]) for row in checkpoint.history)
    assert checkpoint.history[-1]["test_mean_l2"] == checkpoint.mean_l2
    for path in tmp_path.glob("*.pkl"):  # the mean L2 in a name is that of the file
        saved = load(path)
        assert f"_{saved.epoch}_{saved.mean_l2:.5f}.pkl" in path.name
        assert evaluate_checkpoint(path).metrics.mean_l2 == pytest.approx(saved.mean_l2, rel=1e-5)


def test_eval_every_changes_no_bit_of_the_result(tmp_path: Path) -> None:
    one, other = train(tmp_path / "one"), train(tmp_path / "other", eval_every=1)
    assert one.mean_l2 == other.mean_l2 and one.train_mean_l2 == other.train_mean_l2
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


@pytest.mark.parametrize("eval_every", [0, 2])
def test_an_interrupt_in_an_epoch_saves_the_last_complete_one_with_its_own_mean_l2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eval_every: int
) -> None:
    whole = train(tmp_path / "whole", eval_every=eval_every)
    epoch = Gradient.epoch

    def interrupted(self: Any) -> Any:
        if self.epochs_done < 2:
            return epoch(self)
        with torch.no_grad():
            self.parameters[0].fill_(1e6)  # as half an epoch may leave them
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as during, pytest.raises(Interrupted) as caught:
        during.setattr(Gradient, "epoch", interrupted)
        train(tmp_path / "cut", eval_every=eval_every)
    assert caught.value.saved is not None
    saved = load(caught.value.saved)
    assert saved.epoch == 2 and saved.train_mean_l2 is None
    assert measured(saved) == ([2] if eval_every else [])
    assert evaluate_checkpoint(caught.value.saved).metrics.mean_l2 == pytest.approx(saved.mean_l2, rel=1e-5)

    resumed = train(tmp_path / "cut", "last", eval_every=eval_every)
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in c.history] for c in (whole, resumed)]
    assert timeless[0] == timeless[1] and resumed.mean_l2 == whole.mean_l2
    assert all(torch.equal(whole.state[name], resumed.state[name]) for name in whole.state)


@pytest.mark.parametrize(("eval_every", "call", "saved", "resumed"), [(2, 2, [2, 4], [2, 4, 5]), (0, 1, [], [5])])
def test_an_interrupt_while_an_epoch_is_measured_loses_neither_the_epoch_nor_its_mean_l2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eval_every: int, call: int, saved: list[int], resumed: list[int]
) -> None:
    encode, calls = metrics.encode_rows, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise Interrupted(signal.SIGTERM)
        return encode(*arguments)

    with monkeypatch.context() as during, pytest.raises(Interrupted) as caught:
        during.setattr(metrics, "encode_rows", interrupted)
        train(tmp_path, eval_every=eval_every)
    assert caught.value.saved is not None and measured(load(caught.value.saved)) == saved
    assert load(caught.value.saved).epoch == (saved or resumed)[-1]
    assert measured(train(tmp_path, "last", eval_every=eval_every)) == resumed


@pytest.mark.parametrize("what", ["train mean L2", "parameters"])
def test_divergence_is_an_error_in_its_epoch_without_the_test_samples(
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
        train(tmp_path)
    assert not list(tmp_path.glob("*.pkl"))


def test_the_training_curve_and_the_report_allow_a_history_with_gaps(tmp_path: Path) -> None:
    checkpoint = train(tmp_path)
    by_epoch = training_curve(checkpoint.history).axes[0]
    drawn = {line.get_label(): len(line.get_xdata()) for line in by_epoch.lines}
    assert drawn == {"train": 5, "test": 1} and f"{checkpoint.mean_l2:.2f} on test" in by_epoch.get_title("left")
    assert training_curve(checkpoint.history[:3]).axes[0].get_title("left")
    (path,) = tmp_path.glob("*.pkl")
    done = CliRunner().invoke(app, ["report", str(path), "-o", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    assert f"after 5 epochs it is {checkpoint.mean_l2:.2f} on the test samples" in (tmp_path / "r.html").read_text()


def test_a_validation_fraction_of_no_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="validation: 0.0001 of 4000 training samples is less than one"):
        train(tmp_path, validation=1e-4)


# ---- Which checkpoint is used


def test_the_newest_finished_checkpoint_of_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    config = make_config(folder, epochs=2)
    with pytest.raises(InputError, match="no finished checkpoint of this config"):
        find_finished(folder, config)
    first = experiment.train(config).checkpoint
    second = experiment.train(make_config(folder, epochs=3, save_every=1), "last").checkpoint
    assert first is not None and second is not None
    train(folder, K=8)  # a lower test mean L2, of another config
    for at, path in enumerate([first, second]):
        os.utime(path, (1e9 + at, 1e9 + at))
    assert find_finished(folder, config) == second

    def interrupted(*arguments: Any) -> Any:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as during, pytest.raises(Interrupted):
        during.setattr(experiment, "measure", interrupted)
        experiment.train(make_config(folder, epochs=4), "last")
    assert find_finished(folder, config) == second

    (tmp_path / "c.yaml").write_text("task: subspaces\nK: 4\nembed-dim: 3\ntrainer: gradient\n")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["eval", "-c", "c.yaml", "--json"])
    assert result.exit_code == 0 and Path(json.loads(result.stdout)["checkpoint"]).name == second.name
    result = CliRunner().invoke(app, ["report", "-c", "c.yaml", "-o", "r.html"])
    assert result.exit_code == 0 and second.name in (tmp_path / "r.html").read_text()
    for arguments in (["eval"], ["eval", str(first), "-c", "c.yaml"], ["report"]):
        error = CliRunner().invoke(app, arguments).exception
        assert isinstance(error, InputError) and "--config FILE" in str(error)
