"""The test set chooses nothing: what ranks a sweep, and which checkpoint is taken."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sweeping_helper import Silent as SilentWatcher
from sweeping_helper import swept, written
from test_eval_every import a_config, trained
from typer.testing import CliRunner

from llgae_cli import experiment
from llgae_cli.cli import sweep_progress
from llgae_cli.cli.app import app
from llgae_cli.cli.sweep import show
from llgae_cli.errors import InputError, Interrupted
from llgae_cli.evaluation import metrics
from llgae_cli.factory import find_finished
from llgae_cli.formatting import five_digits
from llgae_cli.report import page
from llgae_cli.report.sweep_results import read_leaderboard
from llgae_cli.sweep import Board, SweepFolder, read_plan
from llgae_cli.sweep.data import check_data
from llgae_cli.sweep.run import Ledger

# ---- What ranks a sweep


def test_a_sweep_with_such_a_share_is_refused_before_it_starts(tmp_path: Path) -> None:
    file = written(tmp_path / "s.yaml", grid={"K": [2, 3]}, base={"validation": 1e-4})
    with pytest.raises(InputError, match="cell K=2: validation: 0.0001 of 4000 training samples is less than one"):
        swept(file, tmp_path / "out", check=check_data)
    assert not (tmp_path / "out" / "cells").exists()


def shown(board: Board, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    show(board)
    return capsys.readouterr().out


@pytest.mark.parametrize("validation", [[0.2, 0.2], [0.0, 0.2]], ids=["held out", "mixed"])
def test_a_ranking_by_test_is_called_no_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], validation: list[float]
) -> None:
    by_test = validation[0] != validation[1]
    file = written(tmp_path / "s.yaml", zip={"K": [2, 4], "validation": validation}, base={"embed-dim": 3})
    out = tmp_path / "out"
    board = swept(file, out)
    by = "mean_l2" if by_test else "validation_mean_l2"
    assert board.ranked_by == by and board.rows[0][by] < board.rows[1][by]
    said = shown(board, capsys)
    document = json.loads((out / "results.json").read_text())
    assert document["ranked_by"] == ("test_mean_l2" if by_test else "validation_mean_l2")
    leaderboard = read_leaderboard(out)
    assert leaderboard.ranked_by == by
    html = page.render([], leaderboard, out)
    for text in (said, document["heading"], html):
        assert ("ranked by test mean L2: no choice of a model" in text) == by_test
    assert bool(re.search(r"\bbest\b", said)) == (not by_test)
    ranked = [five_digits(row[by]) for row in board.rows]
    assert re.findall(r'<td class="number">([\d.]+\.\d\d+)</td>', html) == ranked


@pytest.mark.parametrize("validation", [0.2, 0.0])
def test_the_lowest_so_far_is_by_the_figure_that_ranks(tmp_path: Path, validation: float) -> None:
    file = written(tmp_path / "s.yaml", grid={"K": [2, 4]}, base={"validation": validation})
    plan = read_plan(file)
    ledger = Ledger(plan, SweepFolder(tmp_path), SilentWatcher(), 1, None, {}, total=2)
    results = [{"mean_l2": 5.0, "validation_mean_l2": 7.0}, {"mean_l2": 6.0, "validation_mean_l2": 4.0}]
    for cell, result in zip(plan.cells, results, strict=True):
        ledger.compare(cell, result)
    assert ledger.lowest == ((4.0, "K=4") if validation else (5.0, "K=2"))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(sweep_progress._table(ledger.state()))
    words = captured.get()
    assert ("best so far, by validation" in words) == bool(validation)
    assert ("lowest test mean L2 so far (no choice)" in words) == (not validation)


def test_halving_refuses_cells_that_hold_out_different_shares(tmp_path: Path) -> None:
    base = {"trainer": "gradient", "epochs": 3}
    halving = {"rungs": [1], "keep": 0.5}
    with pytest.raises(InputError, match="one validation share"):
        read_plan(written(tmp_path / "s.yaml", base=base, grid={"validation": [0.1, 0.2]}, halving=halving))


# ---- Which checkpoint is taken


def test_the_newest_finished_checkpoint_of_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    config = a_config(folder, epochs=2)
    with pytest.raises(InputError, match="no finished checkpoint of this config"):
        find_finished(folder, config)
    first = experiment.train(config).checkpoint
    second = experiment.train(a_config(folder, epochs=3, save_every=1), "last").checkpoint
    trained(folder, K=8)  # a lower test mean L2, of another config
    for at, path in enumerate([first, second]):
        os.utime(path, (1e9 + at, 1e9 + at))  # type: ignore[arg-type]
    assert find_finished(folder, config) == second

    def interrupted(*arguments: Any) -> Any:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as during, pytest.raises(Interrupted):
        during.setattr(metrics, "measure", interrupted)
        experiment.train(a_config(folder, epochs=4), "last")
    assert find_finished(folder, config) == second

    (tmp_path / "c.yaml").write_text("task: subspaces\nK: 4\nembed-dim: 3\ntrainer: gradient\n")
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["eval", "-c", "c.yaml", "--json"])
    assert told.exit_code == 0 and Path(json.loads(told.stdout)["checkpoint"]).name == second.name  # type: ignore
    told = CliRunner().invoke(app, ["report", "-c", "c.yaml", "-o", "r.html"])
    assert told.exit_code == 0 and second.name in (tmp_path / "r.html").read_text()  # type: ignore[union-attr]
    for arguments in (["eval"], ["eval", str(first), "-c", "c.yaml"], ["report"]):
        error = CliRunner().invoke(app, arguments).exception
        assert isinstance(error, InputError) and "--config FILE" in str(error)
