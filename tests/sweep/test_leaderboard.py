"""The leaderboard of a sweep, and the test samples, which choose nothing: what ranks the cells, and what is printed."""

import csv
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from sweeping_helper import RATE, run, write_record, write_sweep_file

from llgae_cli.cli.sweep import show
from llgae_cli.cli.sweep_progress import make_table
from llgae_cli.errors import InputError
from llgae_cli.formatting import five_digits
from llgae_cli.report import page
from llgae_cli.sweep import Leaderboard, SweepFolder, SweepProgress, read_plan


def write_results(plan_file: Path, out: Path) -> tuple[SweepFolder, list[str]]:
    """Write the results of four cells: two done, one stopped by halving, one failed; return the folder and the ids."""
    halving = {"rungs": [1], "keep": 0.5}
    base = {"trainer": "gradient", "validation": 0.1, "epochs": 3}
    plan = read_plan(write_sweep_file(plan_file, base=base, grid={"batch-size": [1, 2, 3, 4, 5]}, halving=halving))
    folder = SweepFolder(out)
    ids = [cell.id for cell in plan.cells]
    write_record(folder.cell_folder(ids[0]) / "result.json", 5.0, mean_l2=1.0, **RATE)
    write_record(folder.cell_folder(ids[1]) / "result.json", 4.0, mean_l2=6.0, **RATE)
    write_record(folder.cell_folder(ids[2]) / "rung-1.json", 3.0)
    folder.cell_folder(ids[3]).mkdir()
    (folder.cell_folder(ids[3]) / "log.txt").write_text("epoch 1\nout of memory\n\n")
    folder.write_failure(ids[3], "exit code 1")
    return folder, ids


# ---- Its rows, and its files


def test_cells_are_ranked_and_those_that_stopped_failed_or_have_not_run_are_listed_apart(tmp_path: Path) -> None:
    folder, ids = write_results(tmp_path / "s.yaml", tmp_path / "out")
    leaderboard = Leaderboard.collect(read_plan(tmp_path / "s.yaml"), folder)
    assert [(row["cell"], row["status"]) for row in leaderboard.rows] == [
        (ids[1], "done"), (ids[0], "done"), (ids[2], "stopped"),
    ]  # fmt: skip
    assert leaderboard.done == leaderboard.rows[:2] and leaderboard.missing == 1
    assert leaderboard.keys == ["batch_size"] and leaderboard.ranked_by == "validation_mean_l2"
    assert leaderboard.rows[0]["checkpoint"] == str(folder.cell_folder(ids[1]) / "S1.pkl")
    (failure,) = leaderboard.failed
    assert (failure["cell"], failure["label"]) == (ids[3], "batch-size=4")
    assert (failure["reason"], failure["last_line"]) == ("exit code 1", "out of memory")


def test_results_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder, _ = write_results(tmp_path / "s.yaml", tmp_path / "out")
    leaderboard = Leaderboard.collect(read_plan(tmp_path / "s.yaml"), folder)
    leaderboard.write(folder.path)
    assert Leaderboard.read(folder.path) == leaderboard
    document = json.loads((folder.path / "results.json").read_text())
    assert list(document) == ["sweep", "swept", "ranked_by", "heading", "rows", "failed", "missing"]
    with open(folder.path / "results.csv") as table:
        rows = list(csv.DictReader(table))
    assert [row["cell"] for row in rows] == [row["cell"] for row in leaderboard.rows]
    assert list(rows[0]) == list(leaderboard.rows[0])


def test_a_bare_list_of_rows_is_ranked_when_it_is_read(tmp_path: Path) -> None:
    rows = [
        {"checkpoint": "gone.pkl", "mean-l2": 90.5, "K": 2, "note": "a"},
        {"checkpoint": "here.pkl", "mean_l2": 80.25, "K": 4, "note": "b"},
        {"checkpoint": None, "mean_l2": None, "K": 8, "note": "c"},
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    (tmp_path / "here.pkl").write_text("")
    leaderboard = Leaderboard.read(tmp_path)
    assert [row["mean_l2"] for row in leaderboard.rows] == [80.25, 90.5]
    assert [row["K"] for row in leaderboard.failed] == [8]
    assert leaderboard.keys == ["K", "note"] and leaderboard.ranked_by == "mean_l2"
    assert leaderboard.find_checkpoints(tmp_path, 3) == [tmp_path / "here.pkl"]


@pytest.mark.parametrize("text", ["{", '{"rows": 3}', "[1]", '{"rows": [], "failed": [3]}', '[{"mean_l2": -1}]'])
def test_a_file_that_is_no_leaderboard_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"^[^\n]*results.json: [^\n]*$"):
        Leaderboard.read(tmp_path)


def test_a_folder_without_results_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a sweep's folder"):
        Leaderboard.read(tmp_path)


# ---- What ranks a sweep


def test_a_validation_fraction_of_no_sample_is_refused_before_the_sweep_starts(tmp_path: Path) -> None:
    file = write_sweep_file(tmp_path / "s.yaml", grid={"K": [2, 3]}, base={"validation": 1e-4})
    with pytest.raises(InputError, match="cell K=2: validation: 0.0001 of 4000 training samples is less than one"):
        run(file, tmp_path / "out")
    assert not (tmp_path / "out" / "cells").exists()


@pytest.mark.parametrize("validation", [[0.2, 0.2], [0.0, 0.2]], ids=["held out", "mixed"])
def test_only_a_ranking_by_validation_is_called_a_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], validation: list[float]
) -> None:
    by_test = validation[0] != validation[1]
    file = write_sweep_file(tmp_path / "s.yaml", zip={"K": [2, 4], "validation": validation}, base={"embed-dim": 3})
    out = tmp_path / "out"
    leaderboard = run(file, out)
    by = "mean_l2" if by_test else "validation_mean_l2"
    assert leaderboard.ranked_by == by and leaderboard.rows[0][by] < leaderboard.rows[1][by]
    capsys.readouterr()
    show(leaderboard)
    printed = capsys.readouterr().out
    document = json.loads((out / "results.json").read_text())
    assert document["ranked_by"] == ("test_mean_l2" if by_test else "validation_mean_l2")
    assert Leaderboard.read(out) == leaderboard
    html = page.render([], leaderboard, out)
    for text in (printed, document["heading"], html):
        assert ("ranked by test mean L2: no choice of a model" in text) == by_test
    assert bool(re.search(r"\bbest\b", printed)) == (not by_test)
    ranked = [five_digits(row[by]) for row in leaderboard.rows]
    assert re.findall(r'<td class="number">([\d.]+\.\d\d+)</td>', html) == ranked


@pytest.mark.parametrize("validation", [0.2, 0.0])
def test_the_best_so_far_is_by_the_figure_that_ranks(tmp_path: Path, validation: float) -> None:
    plan = read_plan(write_sweep_file(tmp_path / "s.yaml", grid={"K": [2, 4]}, base={"validation": validation}))
    progress = SweepProgress(plan, SweepFolder(tmp_path), plan.cells)
    results = [{"mean_l2": 5.0, "validation_mean_l2": 7.0}, {"mean_l2": 6.0, "validation_mean_l2": 4.0}]
    for cell, result in zip(plan.cells, results, strict=True):
        progress.add_result(cell, result)
    assert progress.best == ((4.0, "K=4") if validation else (5.0, "K=2"))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(make_table(progress, console.width))
    text = captured.get()
    assert ("best so far, by validation" in text) == bool(validation)
    assert ("lowest test mean L2 so far (no choice)" in text) == (not validation)


def test_the_live_table_cuts_lines_of_logs_before_names_of_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = read_plan(write_sweep_file(tmp_path / "s.yaml", grid={"K": [2, 4]}))
    progress = SweepProgress(plan, SweepFolder(tmp_path), plan.cells)
    monkeypatch.setattr(progress, "last_lines", lambda: {"K=4 embed-dim=20 prior=gaussian": "epoch 1/30 " * 20})
    console = Console(width=80)
    with console.capture() as captured:
        console.print(make_table(progress, console.width))
    assert "K=4 embed-dim=20 prior=gaussian  epoch 1/30" in captured.get()


def test_progress_counts_cells_and_reports_each_that_ends(tmp_path: Path, messages: list[str]) -> None:
    folder, ids = write_results(tmp_path / "s.yaml", tmp_path / "out")
    plan = read_plan(tmp_path / "s.yaml")
    progress = SweepProgress(plan, folder, plan.cells)
    assert (progress.total, progress.done, progress.failed, list(progress.waiting)) == (5, 2, 1, [ids[2], ids[4]])
    assert progress.seconds_left() is None and progress.describe_time_left() == ""
    progress.start(plan.cells[2])
    assert list(progress.running) == [ids[2]] and list(progress.waiting) == [ids[4]]
    write_record(folder.cell_folder(ids[2]) / "result.json", 3.0, **RATE)
    progress.finish(plan.cells[2], 0)
    assert messages[0].startswith("4/5  batch-size=3: validation mean L2 3.0000, 3 epochs, about ")
    progress.start(plan.cells[4])
    folder.cell_folder(ids[4]).mkdir()
    progress.finish(plan.cells[4], -9)
    assert messages[1].startswith("5/5  batch-size=5: failed, killed by SIGKILL")
    assert (progress.done, progress.failed, progress.running, progress.waiting) == (3, 2, {}, {})
    assert progress.describe_time_left() == ""


def test_halving_refuses_cells_that_hold_out_different_fractions(tmp_path: Path) -> None:
    base = {"trainer": "gradient", "epochs": 3}
    file = write_sweep_file(tmp_path / "s.yaml", base=base, grid={"validation": [0.1, 0.2]}, halving={"rungs": [1]})
    with pytest.raises(InputError, match="needs one task and one validation fraction"):
        read_plan(file)
