"""An evaluated checkpoint: its figures, made once, in memory or from the file."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pictured  # tests/pictured.py
import pytest
import torch
from typer.testing import CliRunner

from llgae_cli import experiment, factory, storage
from llgae_cli.cli.app import app
from llgae_cli.config import Config
from llgae_cli.evaluation import Evaluated, encode, evaluate_checkpoint, evaluate_checkpoints, evaluated, mean_l2
from llgae_cli.evaluation.metrics import measure
from llgae_cli.tasks import Samples

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return evaluate_checkpoint(pictured.train(tmp_path_factory.mktemp("trained"), epochs=15, restarts=12))


def test_the_figures_of_samples_are_those_of_the_model(trained: Evaluated) -> None:
    rows = np.array([3, 1])
    v, v_hat = trained.originals(rows), trained.reconstructions(rows)
    assert trained.residual.mean() == pytest.approx(trained.metrics.mean_l2, rel=1e-6)
    assert ((v - v_hat) ** 2).mean(1) == pytest.approx(trained.residual[rows], rel=1e-4)
    test = trained.task.test
    means = test.means(torch.tensor([3, 1])).numpy()
    assert np.allclose(test.rows(torch.tensor([3, 1])).numpy(), v - means[:, None], atol=1e-3)
    assert trained.metrics.mean_l2 == mean_l2(trained.model, test) == pytest.approx(trained.recorded, rel=1e-6)


def test_walks_pass_through_the_mean_and_are_straight(trained: Evaluated) -> None:
    steps = torch.tensor([-2.0, -1, 0, 1, 2])
    for k in range(4):
        walks = np.array([trained.decode(k, trained.axes.walk(k, j, steps)) for j in range(3)])
        centre = trained.decode(k, trained.axes.mean[k][None])[0]
        assert np.allclose(walks[:, 2], centre)
        assert np.allclose(walks[:, 0] + walks[:, 4], 2 * walks[:, 2], atol=1e-3)  # decoded in float32
        step = walks[:, 3] - walks[:, 2]  # one standard deviation
        assert np.allclose((step**2).sum(1), trained.axes.variance[k, :3])
        explained = trained.explained(k)
        assert np.all(np.diff(explained) <= 0) and explained.sum() < 1


def test_explained_variance_of_the_known_subspaces(trained: Evaluated) -> None:
    """The task has standard deviations 40, 30, 20 and noise of 8 in 60 directions: the shares are known."""
    total = 40**2 + 30**2 + 20**2 + 60 * 8**2
    mean = np.mean([trained.explained(k) for k in range(4)], axis=0)
    assert mean == pytest.approx([40**2 / total, 30**2 / total, 20**2 / total], rel=0.15)


class Calls:
    """Counts the calls of functions, and the rows that models encode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        for module, name in ((factory.storage, "load"), (evaluated, "load_task"), (experiment, "load_task")):
            self._count(monkeypatch, module, name)
        encode_chunk = factory.LLGAE.encode

        def counted(model: Any, x: torch.Tensor) -> Any:
            self.counts["rows"] += len(x)
            return encode_chunk(model, x)

        monkeypatch.setattr(factory.LLGAE, "encode", counted)

    def _count(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        call = getattr(module, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            self.counts[name] += 1
            return call(*arguments, **options)

        monkeypatch.setattr(module, name, counted)


def test_train_reads_no_checkpoint_loads_the_data_once_and_encodes_each_split_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text("task: subspaces\nK: 3\nembed-dim: 2\nrestarts: 1\nmoves: 0\nepochs: 2\n")
    calls = Calls(monkeypatch)
    done = CliRunner().invoke(app, ["train", "-c", str(tmp_path / "c.yaml"), "-S", f"checkpoint-dir={tmp_path}"])
    assert done.exit_code == 0, done.output
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert calls.counts["load_task"] == 1 and calls.counts["load"] == 0
    shown = calls.counts["rows"] - 5000  # 4,000 training and 1,000 test samples, and those that the picture shows
    shown -= 4000  # the codec's own pass over training samples
    assert 0 < shown <= 40


def test_the_result_of_train_equals_that_of_its_file(tmp_path: Path) -> None:
    config = Config.model_validate({"task": "subspaces", "K": 3, "embed_dim": 2, "restarts": 1, "moves": 0})
    outcome = experiment.train(config.model_copy(update={"checkpoint_dir": tmp_path}))
    assert outcome.checkpoint is not None and outcome.evaluated is not None
    read = evaluate_checkpoint(outcome.checkpoint)
    assert read.metrics == outcome.evaluated.metrics and read.warnings == outcome.evaluated.warnings == ()
    assert read.rate == outcome.evaluated.rate
    assert read.train_mean_l2 == outcome.train_mean_l2 and read.finished


def test_an_unfinished_runs_latents_are_those_of_the_training_samples(tmp_path: Path) -> None:
    finished = pictured.train(tmp_path, epochs=4, trainer="gradient", save_every=2)
    first = next(path for path in tmp_path.glob("*_2_*.pkl"))
    unfinished = evaluate_checkpoint(first)
    assert not unfinished.finished and storage.load(first).extras == {}
    assert any("unfinished run" in line for line in unfinished.warnings)
    train = unfinished.task.train
    k = torch.cat([chunk.code.k for chunk in encode(unfinished.model, train)])
    assert torch.equal(unfinished.latents.count, torch.bincount(k, minlength=4).float())
    assert unfinished.train_mean_l2 == mean_l2(unfinished.model, train)
    assert evaluate_checkpoint(finished).warnings == ()


def test_checkpoints_of_one_task_share_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [pictured.train(tmp_path, K=K) for K in (1, 2)]
    calls = Calls(monkeypatch)
    one, two = evaluate_checkpoints(paths, one_task=True)
    assert one.task is two.task and calls.counts["load_task"] == 1 and calls.counts["load"] == 2


@pytest.mark.parametrize(("D", "ends"), [(4, [5000]), (256, [4096, 5000]), (600, [2048, 4096, 5000])])
def test_encoding_takes_one_chunk_at_a_time(normal: Any, D: int, ends: list[int]) -> None:
    samples, model = Samples(normal(1, 5000, D), centring="none"), factory.LLGAE(2, D, 1)
    chunks = list(encode(model, samples))
    assert [chunk.rows for chunk in chunks] == [slice(*pair) for pair in zip([0, *ends], ends, strict=False)]
    assert all(torch.equal(chunk.x, samples.rows(chunk.rows)) for chunk in chunks)
    squared = torch.cat([chunk.squared_residual() for chunk in chunks])
    assert float(squared.double().sum()) / 5000 / D == pytest.approx(mean_l2(model, samples))


def test_progress_is_told_the_shares_of_the_work(normal: Any) -> None:
    samples, model = Samples(normal(1, 5000, 600), centring="none"), factory.LLGAE(2, 600, 1)
    for work in (mean_l2, lambda model, samples, advance: measure(model, samples, 1.0, advance)):
        shares: list[float] = []
        work(model, samples, advance=shares.append)
        assert shares == pytest.approx([1 / 3] * 3)
