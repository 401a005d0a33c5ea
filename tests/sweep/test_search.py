"""Searches: their files, the trials that are proposed, and a conductor that is killed again and again."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweeping_helper import RATE, run, write_record, write_sweep_file

from llgae_cli.errors import InputError
from llgae_cli.figures.search import parallel_coordinates
from llgae_cli.sweep import Leaderboard, Plan, SweepFolder, read_plan
from llgae_cli.sweep.folder import result_name
from llgae_cli.sweep.local_engine import LocalEngine
from llgae_cli.sweep.plan import Cell
from llgae_cli.sweep.process import Share, choose_jobs
from llgae_cli.sweep.search import Choice, Range, read_space
from llgae_cli.sweep.study import Study, spread
from llgae_cli.sweep.surrogate import fit, measure_gain
from llgae_cli.sweep.trials import SearchProgress

HELPER = Path(__file__).parents[1] / "sweeping_helper.py"
KEYS = {"K": {"low": 1, "high": 8, "log": True}, "embed-dim": {"low": 0, "high": 6}}


def write_search(
    path: Path, base: dict[str, Any] | None = None, halving: dict[str, Any] | None = None, **section: Any
) -> Path:
    halved = {} if halving is None else {"halving": halving}
    search = {"keys": KEYS, "trials": 6, "objectives": ["rate", "mean-l2"], **section}
    search = {name: value for name, value in search.items() if value is not None}
    return write_sweep_file(path, base={"validation": 0.1, **(base or {})}, search=search, **halved)


def plan_of(tmp_path: Path, **section: Any) -> Plan:
    return read_plan(write_search(tmp_path / "s.yaml", **section))


def pretend(K: int, E: int) -> dict[str, float]:
    """Results as of a search over K and E: both lower the mean L2 and raise the rate."""
    return {"validation_bits_coded": K**0.5 + 3.0 * E, "validation_mean_l2": 1000.0 / (K**0.5 * (1 + E))}


def replay(plan: Plan, folder: Path, trials: int) -> list[tuple[int, int]]:
    """Run a search on these results; return K and E of its trials."""
    folder.mkdir(exist_ok=True)
    study, results = Study(plan, folder), []
    for number in range(trials):
        cell = study.add_trial(results)
        if cell is None:
            break
        results.append(pretend(cell.config.K, cell.config.embed_dim))
        study.finish(number, results[-1])
    return [(cell.config.K, cell.config.embed_dim) for cell in study.list_cells()]


# ---- Sweep files


@pytest.mark.parametrize(
    ("section", "error"),
    [
        ({"trails": 3}, "search: unknown key 'trails'; did you mean 'trials'?"),
        ({"keys": {"embed-dmi": [1, 2]}}, "unknown key 'embed-dmi'; did you mean 'embed-dim'?"),
        ({"keys": {"K": {"low": 9, "high": 3}}}, "K: low: 9 has to be below high: 3"),
        ({"keys": {"embed-dim": {"low": 0, "high": 3, "log": True}}}, "embed-dim: low: 0 has to be above 0"),
        ({"keys": {"K": {"low": 1, "hihg": 3}}}, "did you mean 'high'?"),
        ({"keys": {"K": {"low": 1}}}, "K: high is missing"),
        ({"keys": {"K": {"low": 1.5, "high": 3}}}, "K: takes whole numbers only"),
        ({"keys": {"K": {"low": 0, "high": 3}}}, "K: 0 is not allowed"),
        ({"keys": {"K": 3}}, "a range {low: ..., high: ...} or a list of choices"),
        ({"keys": {"K": [3]}}, "two values or more"),
        ({"keys": {"prior": {"low": 1, "high": 2}}}, "takes no numbers"),
        ({"keys": {"threads": [1, 2]}}, "does not change a result"),
        ({"keys": {"seed": [1, 2]}}, "cannot be compared"),
        ({"keys": {"lr": {"low": 1e-3, "high": 1e-2}}}, "lr: has no effect with trainer closed-form"),
        ({"keys": {"K": {"low": 1, "high": 9, "log": True, "step": 2}}}, "remove it, or log"),
        ({"trials": None}, "give trials, or minutes"),
        ({"trials": 0}, "trials: 0 is not allowed"),
        ({"objectives": ["rate"]}, "mean-l2, alone or with one of rate and seconds"),
        ({"objectives": ["rat", "mean-l2"]}, "did you mean 'rate'?"),
        ({"sampler": "tpee"}, "did you mean 'tpe'?"),
        ({"base": {"validation": 0.0}}, "needs 'validation' above 0"),
    ],
)
def test_a_wrong_search_is_refused_in_one_line(tmp_path: Path, section: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError) as refusal:
        plan_of(tmp_path, **section)
    assert error in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("other", [{"grid": {"K": [1]}}, {"zip": {"K": [1]}}, {"repeat": 2}])
def test_a_sweep_is_a_grid_or_a_search(tmp_path: Path, other: dict[str, Any]) -> None:
    file = write_sweep_file(tmp_path / "s.yaml", base={"validation": 0.1}, search={"keys": KEYS, "trials": 2}, **other)
    with pytest.raises(InputError, match=f"{next(iter(other))} and search: a sweep is a grid or a search"):
        read_plan(file)


def test_an_override_of_a_searched_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="varies K"):
        read_plan(write_search(tmp_path / "s.yaml"), ["K=3"])


def test_ranges_hold_the_values_that_they_name() -> None:
    space = read_space({"K": {"low": 1, "high": 100, "log": True}, "beta": {"low": 0, "high": 1, "step": 0.25}}, "s")
    space |= read_space({"trainer": ["closed-form", "gradient"]}, "s")
    K, beta, trainer = space.values()
    assert isinstance(K, Range) and isinstance(beta, Range) and isinstance(trainer, Choice)
    assert [K.place(share) for share in (0.0, 0.5, 1.0)] == [1, 10, 100] and K.size == 100
    assert [beta.place(share) for share in (0.0, 0.4, 1.0)] == [0.0, 0.5, 1.0] and len(beta.list_values()) == 5
    assert [trainer.place(share) for share in (0.0, 1.0)] == ["closed-form", "gradient"]


# ---- Trials


def test_the_first_trials_are_the_corners_of_the_ranges(tmp_path: Path) -> None:
    points = [tuple(one.values()) for one in spread(plan_of(tmp_path).space, 5, 0)]
    assert points[:4] == [(1, 0), (8, 6), (8, 0), (1, 6)] and points[4] not in points[:4]


@pytest.mark.parametrize("sampler", ["tpe", "nsga-ii"])
def test_no_cell_is_tried_twice_and_a_small_space_ends_the_search(tmp_path: Path, sampler: str) -> None:
    keys = {"K": [1, 2, 4], "embed-dim": {"low": 0, "high": 3}}
    points = replay(plan_of(tmp_path, keys=keys, trials=20, sampler=sampler), tmp_path / "out", 20)
    assert len(points) == len(set(points)) == 12


def test_a_proposal_depends_on_the_results_and_not_on_the_process(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, trials=10, sampler="tpe")
    whole = replay(plan, tmp_path / "whole", 10)
    parts = tmp_path / "parts"
    parts.mkdir()
    results: list[dict[str, float] | None] = []
    for number in range(10):
        study = Study(plan, parts)  # as in a process of its own
        cell = study.add_trial(results)
        assert cell is not None
        results.append(pretend(cell.config.K, cell.config.embed_dim))
        study.finish(number, results[-1])
    assert [(cell.config.K, cell.config.embed_dim) for cell in study.list_cells()] == whole


def test_a_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    replay(plan_of(tmp_path), tmp_path / "out", 2)
    for other in ({"keys": {"K": [1, 2]}}, {"base": {"validation": 0.2}}, {"objectives": ["mean-l2"]}):
        with pytest.raises(InputError, match="choose another folder with --out"):
            Study(plan_of(tmp_path, **other), tmp_path / "out").list_cells()
    (tmp_path / "out" / "search.log").write_text("{}\n[]\n")
    with pytest.raises(InputError, match="not the journal of a search"):
        Study(plan_of(tmp_path), tmp_path / "out")


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    points = replay(plan, tmp_path / "out", 3)
    with open(tmp_path / "out" / "search.log", "a") as journal:
        journal.write('{"op_code":4,"worker')
    study = Study(plan, tmp_path / "out")
    assert [(cell.config.K, cell.config.embed_dim) for cell in study.list_cells()] == points
    assert study.add_trial([pretend(*point) for point in points]) is not None
    assert len(Study(plan, tmp_path / "out").list_cells()) == 4


def test_importance_finds_the_key_that_matters(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, trials=20, sampler="tpe")
    replay(plan, tmp_path / "out", 20)
    study = Study(plan, tmp_path / "out")
    results = [
        {"validation_bits_coded": 3.0 * c.config.embed_dim, "validation_mean_l2": 9.0} for c in study.list_cells()
    ]
    importance = study.measure_importance(results)
    assert importance["rate"]["embed-dim"] > importance["rate"]["K"]


# ---- How many trials it takes: the finished cells of configs/sweeps/fashion_mnist.yaml, rows by K, columns by E

K_OF_GRID, E_OF_GRID = (1, 2, 5, 11, 20, 50, 100), (0, 5, 10, 20, 40)
BITS = [  # bits a validation sample, as coded
    [0.0, 7.1, 16.5, 29.6, 58.3],
    [1.0, 9.1, 19.4, 32.3, 64.3],
    [2.3, 13.4, 21.1, 47.2, 87.3],
    [3.4, 14.5, 27.3, 54.9, 87.4],
    [4.3, 16.1, 27.5, 45.5, 99.9],
    [5.5, 17.1, 29.0, 48.7, 104.3],
    [6.5, 18.2, 30.5, 56.6, 113.9],
]
MEAN_L2 = [  # validation
    [4653, 2139, 1585, 1223, 887],
    [3677, 1762, 1372, 1031, 725],
    [2929, 1502, 1156, 851, 584],
    [2360, 1278, 997, 753, 513],
    [2075, 1170, 920, 685, 477],
    [1776, 1045, 829, 631, 450],
    [1614, 988, 787, 609, 446],
]


def interpolate(table: list[list[float]], K: int, E: int) -> float:
    """Interpolate linearly in log K and E."""
    by_k = [np.interp(E, E_OF_GRID, row) for row in table]
    return float(np.interp(np.log(K), np.log(K_OF_GRID), by_k))


def hypervolume(points: list[tuple[float, float]], right: float, top: float) -> float:
    """The area that the points dominate, up to `right` and `top`."""
    area, lowest = 0.0, top
    for x, y in sorted(points):
        area, lowest = area + max(0.0, right - x) * max(0.0, lowest - y), min(lowest, y)
    return area


def measured(K: int, E: int) -> tuple[float, float]:
    """Bits and mean L2 as of the finished sweep."""
    return interpolate(BITS, K, E), interpolate(MEAN_L2, K, E)


def falling_exponentially(K: int, E: int) -> tuple[float, float]:
    """Made up: the mean L2 falls by a share a latent, and by more where K is large."""
    bits = 0.8 * np.log2(K) + 2.4 * E**0.9 * (1 + 0.03 * np.log2(K))
    error = 900 * np.exp(-0.07 * E) * (1 - 0.09 * np.log(K)) + 60 * np.exp(-0.02 * E) / (1 + 0.2 * np.log(K)) + 20
    return float(bits), float(error)


def falling_as_a_power(K: int, E: int) -> tuple[float, float]:
    """Made up: the mean L2 falls as a power of the latents, whose bits grow with K."""
    bits = 0.95 * np.log2(K) + 2.0 * E * (1 + 0.02 * np.log(K))
    error = 5000 * (1 + 0.3 * E) ** -0.8 * (1 + 0.5 * np.log(K)) ** -0.6 + 50 * np.exp(-E / 30)
    return float(bits), float(error)


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("surface", [measured, falling_exponentially, falling_as_a_power])
def test_twelve_trials_reach_most_of_the_hypervolume_of_35_cells(
    tmp_path: Path, surface: Callable[[int, int], tuple[float, float]], seed: int
) -> None:
    keys = {"K": {"low": 1, "high": 100, "log": True}, "embed-dim": {"low": 0, "high": 40}}
    study, results = Study(plan_of(tmp_path, keys=keys, trials=12, seed=seed), tmp_path), []
    for _ in range(12):
        cell = study.add_trial(results)
        assert cell is not None
        bits, error = surface(cell.config.K, cell.config.embed_dim)
        results.append({"validation_bits_coded": bits, "validation_mean_l2": error})
    grid = [surface(K, E) for K in K_OF_GRID for E in E_OF_GRID]
    ends = max(x for x, _ in grid), max(y for _, y in grid)
    share = hypervolume([tuple(one.values()) for one in results], *ends) / hypervolume(grid, *ends)
    print(f"{share:.4f}", [(cell.config.K, cell.config.embed_dim) for cell in study.list_cells()])
    assert share >= 0.98  # 12 random trials reach 0.930 on the first surface, in the median of 200 seeds


@pytest.mark.numeric
def test_the_gain_of_a_point_is_the_area_that_it_adds() -> None:
    values, right, top = np.array([[0.0, 9.0], [4.0, 4.0], [6.0, 5.0], [10.0, 0.0]]), 10.0, 9.0
    x, y = np.random.default_rng(0).uniform(-1, 11, (2, 50))
    before = hypervolume([tuple(one) for one in values], right, top)
    after = [hypervolume([*map(tuple, values), point], right, top) for point in zip(x, y, strict=True)]
    np.testing.assert_allclose(measure_gain(values, x, y), np.array(after) - before, atol=1e-12)


@pytest.mark.numeric
def test_a_process_interpolates_its_results_and_is_less_sure_farther_away() -> None:
    u = np.random.default_rng(1).uniform(size=(9, 2))
    process = fit(u, np.sqrt(u[:, 0]) + u[:, 1])
    mean, deviation = process.predict(np.concatenate([u, [[0.5, 0.5], [1.0, 0.0]]]))
    np.testing.assert_allclose(mean[:9], np.sqrt(u[:, 0]) + u[:, 1], atol=1e-2)
    assert deviation[:9].max() < deviation[9:].min()


def test_the_share_of_a_value_is_undone_by_place() -> None:
    space = read_space({"K": {"low": 1, "high": 100, "log": True}, "beta": {"low": 0, "high": 1}}, "s")
    for one, values in zip(space.values(), ((1, 7, 100), (0.0, 0.3, 1.0)), strict=True):
        assert isinstance(one, Range)
        assert [one.place(*one.coordinates(value)) for value in values] == pytest.approx(list(values))
    assert Choice(("a", 1, True)).coordinates(1) == [0.0, 1.0, 0.0]


# ---- Running one


@pytest.mark.slow
def test_a_search_ends_in_a_board_with_a_front(tmp_path: Path) -> None:
    out = tmp_path / "out"
    board = run(write_search(tmp_path / "s.yaml", trials=5), out)
    assert sorted(row["trial"] for row in board.rows) == list(range(5)) and not board.failed
    front = sorted((row["validation_bits_coded"], row["validation_mean_l2"]) for row in board.rows if row["front"])
    assert len(front) > 1 and [y for _, y in front] == sorted((y for _, y in front), reverse=True)
    assert Leaderboard.read(out) == board and set(board.importance) == {"rate", "mean-l2"}
    with pytest.raises(InputError, match="5 of this sweep's 5 are done; continue with --resume"):
        run(tmp_path / "s.yaml", out)
    more = run(write_search(tmp_path / "s.yaml", trials=6), out, resume=True)
    assert sorted(row["trial"] for row in more.rows) == list(range(6))


def test_the_time_left_of_a_search_counts_the_trial_that_runs_and_those_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, folder = [0.0], SweepFolder(tmp_path / "out")
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plan = plan_of(tmp_path, trials=4)
    folder.path.mkdir()
    progress = SearchProgress(plan, folder, Study(plan, folder.path), threads=1)
    (small,) = progress.waiting.values()
    progress.start(small)
    assert progress.seconds_left() is None
    now[0] = 10.0
    write_record(folder.cell_folder(small.id) / "result.json", 5.0, validation_bits_coded=3.0, **RATE)
    progress.finish(small, 0)
    (large,) = progress.waiting.values()
    expected = 10.0 * large.work / small.work
    assert progress.seconds_left() == pytest.approx(expected + 2 * (10.0 + expected) / 2)
    progress.start(large)
    now[0] = 14.0
    assert progress.seconds_left() == pytest.approx(expected - 4.0 + 2 * (10.0 + expected) / 2)


HALVED = {
    "base": {"trainer": "gradient", "beta": 0.2, "lr": 0.02, "epochs": 4},
    "objectives": ["mean-l2"],
    "trials": 4,
    "halving": {"rungs": [1, 2], "keep": 0.5},
}


@pytest.mark.slow
def test_halving_stops_the_trials_that_are_worse_than_those_before(tmp_path: Path) -> None:
    file, out = write_search(tmp_path / "s.yaml", **HALVED), tmp_path / "out"
    board = run(file, out, jobs=1)
    assert sorted(row["trial"] for row in board.rows) == list(range(4)) and not board.failed and not board.missing
    by_trial = sorted(board.rows, key=lambda row: row["trial"])
    assert {row["status"]: row["epoch"] for row in by_trial if row["status"] == "done"} == {"done": 4}
    stopped = [row["trial"] for row in by_trial if row["status"] == "stopped"]
    assert stopped and all(row["epoch"] in (1, 2) for row in by_trial if row["trial"] in stopped)
    for rung in (1, 2):  # one at a time: each trial ends before the next one starts
        reached: list[float] = []
        for row in by_trial:
            figures = out / "cells" / row["cell"] / f"rung-{rung}.json"
            if not figures.exists():
                continue
            reached.append(json.loads(figures.read_text())["validation_mean_l2"])
            best = sorted(reached)[: -(-len(reached) // 2)]
            assert (reached[-1] in best) == (row["epoch"] > rung)
    files = [path for name in ("*.pkl", "rung-*.json", "result.json") for path in out.glob(f"cells/*/{name}")]
    times = {path: path.stat().st_mtime_ns for path in files}
    assert run(file, out, resume=True) == board
    assert all(path.stat().st_mtime_ns == written for path, written in times.items())


def test_trials_that_stopped_stay_stopped_and_the_others_continue(tmp_path: Path, messages: list[str]) -> None:
    file, folder = write_search(tmp_path / "s.yaml", **{**HALVED, "trials": 3}), SweepFolder(tmp_path / "out")
    folder.path.mkdir()

    def resume() -> SearchProgress:
        plan = read_plan(file)
        study = Study(plan, folder.path)
        return SearchProgress(replace(plan, cells=tuple(study.list_cells())), folder, study, threads=1)

    def complete(progress: SearchProgress, validation: float) -> Cell:
        (cell,) = progress.waiting.values()
        goal = progress.find_goal(cell)
        progress.start(cell)
        figures = RATE if goal is None else {}
        write_record(folder.cell_folder(cell.id) / result_name(goal), validation, **figures)
        progress.finish(cell, 0)
        return cell

    progress = resume()
    assert complete(progress, 10.0) == complete(progress, 20.0)  # the first at both rungs, so it continues
    progress = resume()  # after a kill
    first = complete(progress, 30.0)
    second = complete(progress, 15.0)
    assert (progress.done, progress.failed) == (2, 0) and "after epoch 1, stopped" in messages[-1]
    assert progress.best is not None and progress.best[0] == 30.0  # figures at a rung are no result
    progress = resume()
    assert (progress.done, list(progress.waiting)) == (2, [progress.plan.cells[2].id])
    (third,) = progress.waiting.values()
    for rung, value in ((1, 12.0), (2, 25.0)):  # both reached, but the sweep was killed before it compared
        write_record(folder.cell_folder(third.id) / f"rung-{rung}.json", value)
    progress = resume()
    assert (progress.done, progress.waiting) == (3, {})
    board = Leaderboard.collect(progress.plan, folder)
    assert {row["cell"]: row["status"] for row in board.rows} == {
        first.id: "done", second.id: "stopped", third.id: "stopped",
    }  # fmt: skip
    assert not board.missing
    write_search(tmp_path / "s.yaml", **{**HALVED, "halving": {"rungs": [3]}})
    with pytest.raises(InputError, match="has another halving"):
        resume()


@pytest.mark.slow
def test_a_search_that_halves_goes_on_after_kills(tmp_path: Path) -> None:
    section = {**HALVED, "base": {**HALVED["base"], "epochs": 20}, "halving": {"rungs": [5], "keep": 0.5}}
    file, out, rng = write_search(tmp_path / "s.yaml", **section), tmp_path / "out", random.Random(5)
    for _ in range(2):
        conductor = subprocess.Popen([sys.executable, HELPER, file, out])
        end, before = time.monotonic() + 180, len(list(out.glob("cells/*/rung-*.json")))
        while len(list(out.glob("cells/*/rung-*.json"))) == before and conductor.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.3))
        conductor.kill()
        conductor.wait()
    board = run(file, out, resume=True)
    assert sorted(row["trial"] for row in board.rows) == list(range(4)) and not board.failed and not board.missing
    assert len({row["cell"] for row in board.rows}) == 4 == len(list(out.glob("cells/*")))
    assert {row["epoch"] for row in board.rows if row["status"] == "done"} == {20}


@pytest.mark.parametrize(
    ("section", "error"),
    [
        ({"objectives": ["rate", "mean-l2"]}, "halving: compares trials only by mean L2"),
        ({"base": {}}, "halving: needs trainer gradient; closed-form stops on its own"),
        ({"halving": {"rungs": [4]}}, "halving: the last rung, 4, has to be below epochs: 4"),
        ({"halving": {"rungs": [1], "kep": 0.5}}, "halving: unknown key 'kep'; did you mean 'keep'?"),
    ],
)
def test_a_search_that_cannot_halve_is_refused(tmp_path: Path, section: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError) as refusal:
        plan_of(tmp_path, **{**HALVED, **section})
    assert error in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.slow
def test_ten_kills_of_the_conductor_and_every_trial_is_there_once(tmp_path: Path) -> None:
    base = {"trainer": "gradient", "beta": 0.2, "lr": 0.02, "epochs": 30}
    file, out, rng = write_search(tmp_path / "s.yaml", base=base), tmp_path / "out", random.Random(3)
    times: dict[Path, int] = {}
    for _ in range(10):
        conductor = subprocess.Popen([sys.executable, HELPER, file, out])
        end, before = time.monotonic() + 60, len(list(out.glob("cells/*/*.pkl")))
        while len(list(out.glob("cells/*/*.pkl"))) == before and conductor.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.7))
        conductor.kill()
        conductor.wait()
        for path, written in times.items():  # a finished cell is not touched again
            assert path.stat().st_mtime_ns == written
        times |= {path: path.stat().st_mtime_ns for path in out.glob("cells/*/result.json")}
    board = run(file, out, resume=True)
    assert sorted(row["trial"] for row in board.rows) == list(range(6))
    assert not board.failed and not board.missing
    assert len({row["cell"] for row in board.rows}) == 6 == len(list(out.glob("cells/*")))
    assert all(path.stat().st_mtime_ns == written for path, written in times.items())
    journal = [json.loads(line) for line in (out / "search.log").read_text().splitlines()]
    ended = [line["trial_id"] for line in journal if line["op_code"] == 6]
    assert sorted(ended) == list(range(6))


def test_cells_are_spread_over_several_gpus_and_one_job_a_core_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(3, Share(1), ["0", "1"])
    assert [engine.choose_gpu(in_use) for in_use in ([], ["0"], ["0", "1", "1"])] == ["0", "1", "0"]
    assert LocalEngine(3, Share(1), ["0"]).choose_gpu([]) is None
    monkeypatch.setattr("llgae_cli.sweep.process.usable_cores", lambda: 16)
    assert [choose_jobs(0, None, 99), choose_jobs(0, 4, 99), choose_jobs(2, None, 99), choose_jobs(0, None, 3)] == [
        8, 4, 2, 3,
    ]  # fmt: skip


@pytest.mark.numeric
def test_axes_of_the_trials_have_whole_numbers_and_names() -> None:
    rows = [{"K": K, "validation_bits_coded": bits, "front": True} for K, bits in ((1, 1e-5), (4, 9.0), (12, 22.0))]
    axes = parallel_coordinates(rows, ["K"], ["validation_bits_coded"]).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["K", "bits a sample (validation)"]
    assert [text.get_text() for text in axes.texts][:5] == ["1", "4", "6", "9", "12"]
    assert axes.lines[-2].get_ydata()[1] == pytest.approx(9 / 22, abs=1e-3)  # linear: the least is nearly zero
