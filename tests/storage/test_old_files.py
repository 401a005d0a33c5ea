"""Files written by earlier versions: they load, and hold what they held when they were written.

tests/files/version-1 was written by the commit before the package `storage` (fd9f847): a closed-form checkpoint on
`subspaces` and its codes, a gradient run saved after 2 and after 4 of its 4 epochs, and a finished sweep.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command  # tests/command_line.py

from llgae_cli import experiment
from llgae_cli.config import parse_config
from llgae_cli.evaluation import evaluate_checkpoint
from llgae_cli.factory import restore
from llgae_cli.storage import codes, compare_name, load
from llgae_cli.tasks import load_task

FILES = Path(__file__).parents[1] / "files" / "version-1"
CHECKPOINTS = sorted(path.relative_to(FILES) for path in FILES.rglob("*.pkl"))
CLOSED = next((FILES / "closed").iterdir())
HALF, DONE = sorted((FILES / "gradient").iterdir())
pytestmark = pytest.mark.numeric


def test_the_files_are_there() -> None:
    assert len(CHECKPOINTS) == 5 and (load(HALF).epoch, load(DONE).epoch) == (2, 4)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: str(path.parent))
def test_a_checkpoint_has_the_mean_l2_that_it_records(path: Path) -> None:
    checkpoint = load(FILES / path)
    assert compare_name(path, checkpoint) is None
    evaluated = evaluate_checkpoint(FILES / path)
    assert evaluated.metrics.mean_l2 == pytest.approx(checkpoint.mean_l2, rel=1e-5)
    if checkpoint.train_mean_l2 is not None:
        assert evaluated.latents.covariance.shape == (evaluated.model.K, evaluated.model.E, evaluated.model.E)


def test_codes_decode_to_the_recorded_residuals() -> None:
    model, checkpoint, config = restore(CLOSED)
    file = codes.CodesFile(FILES / "codes.npz", model)
    decoded = torch.cat(list(codes.decode_file(model, file)))
    test = load_task("subspaces", config.data_dir, config.centring, config.seed).test
    values = test.rows(slice(None)) + test.means(slice(None))[:, None]
    residual = (values - decoded).double().square().mean(1)
    recorded = torch.from_numpy(np.load(FILES / "codes.npz")["residual"]).double()
    torch.testing.assert_close(residual, recorded, rtol=1e-3, atol=1e-3)
    assert float(residual.mean()) == pytest.approx(checkpoint.mean_l2, rel=1e-5)


def test_an_unfinished_run_resumes_to_the_finished_one(tmp_path: Path) -> None:
    half = tmp_path / HALF.name
    shutil.copy(HALF, half)
    config = parse_config({**load(half).config, "checkpoint-dir": str(tmp_path)})
    outcome = experiment.train(config, resume=str(half))
    assert outcome.checkpoint is not None
    resumed, finished = load(outcome.checkpoint), load(DONE)
    assert resumed.epoch == finished.epoch and resumed.mean_l2 == pytest.approx(finished.mean_l2, rel=1e-5)
    for name, tensor in finished.state.items():
        scale = float(tensor.abs().max())
        torch.testing.assert_close(resumed.state[name], tensor, rtol=0, atol=1e-5 * scale)


def test_a_finished_sweep_has_nothing_to_run_and_a_report(llgae: Command, tmp_path: Path) -> None:
    shutil.copytree(FILES / "sweep", tmp_path / "sweep")
    cells = {path: path.read_bytes() for path in Path("sweep/cells").rglob("*") if path.is_file()}
    rows = [json.loads(path.read_text()) for path in sorted(Path("sweep/cells").glob("*/result.json"))]
    ended = llgae("sweep", "--config", FILES / "sweep.yaml", "--out", "sweep", "--resume", "--json")
    assert ended.code == 0, ended.err
    board = json.loads(ended.out)
    assert sorted(row["mean_l2"] for row in board) == sorted(row["mean_l2"] for row in rows) and len(board) == 2
    assert cells == {path: path.read_bytes() for path in Path("sweep/cells").rglob("*") if path.is_file()}
    ended = llgae("report", "sweep", "-o", "report.html")
    assert ended.code == 0, ended.err
    assert all(f"{row['mean_l2']:.2f}" in Path("report.html").read_text() for row in rows)
