"""Every benchmark runs on small data and gives finite figures."""

import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from llgae_cli.bench import BENCHES, benchmarks, bounds, run_benches, steady, tables, timing
from llgae_cli.bench.output import GROWTHS
from llgae_cli.cli.app import main
from llgae_cli.tasks import Task, load_task

Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("subspaces", Path("data"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rate from small products, and files of a thousandth of the rows."""
    write = benchmarks.write_random_uint8
    monkeypatch.setattr(benchmarks, "sgemm_rate", partial(timing.sgemm_rate, n=64))
    monkeypatch.setattr(benchmarks, "write_random_uint8", lambda path, n, d: write(path, n // 1000, d))
    monkeypatch.setattr(benchmarks, "E", 5)
    monkeypatch.setattr(steady, "PROCESSES", 2)
    states = np.random.default_rng(0).normal(size=(300, 6)) ** 3
    monkeypatch.setattr(tables, "load_states", lambda name: states)
    monkeypatch.setattr(tables, "SETTINGS", ((3, 2),))
    monkeypatch.setattr(bounds, "load_states", lambda name: states)
    monkeypatch.setattr(bounds, "STRETCH", 20)
    monkeypatch.setattr(bounds, "K", 3)
    monkeypatch.setattr(bounds, "BOUNDS", (1e-2,))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*BENCHES} - {"rate"}))  # in test_rate.py
def test_a_benchmark_gives_figures(name: str, task: Task, small: None, messages: list[str]) -> None:
    rows = list(run_benches([name], task))
    assert rows and messages[0] == f"measuring {name}"
    assert len({(row.bench, row.what) for row in rows}) == len(rows)
    for row in rows:
        assert row.bench.startswith(name) and row.what, row
        figures = [row.value, *(figure for figure in (row.against, row.ratio) if figure is not None)]
        assert all(math.isfinite(figure) for figure in figures), row
        assert all(figure > 0 for figure in figures) or row.unit == "B", row
        if row.ratio is not None:
            assert row.against is not None, row
    if name == "growth":
        for curve in GROWTHS:
            at = [row.at for row in rows if row.bench == curve and row.at is not None]
            assert len(at) > 2 and at == sorted(set(at))
    if name == "candidates":  # shortlists score fewer components, so the objective is never lower
        (compared,) = [row for row in rows if "exact" in row.what]
        assert compared.ratio is not None and 1 - 1e-5 < compared.ratio < 1.5


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    """`llgae bench` in this process: its exit code, and what it wrote on stdout and stderr."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llgae", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    yield run
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.slow
def test_the_command_writes_what_it_prints(tmp_path: Path, small: None, bench: Bench) -> None:
    code, out, err = bench("growth", "steps", "--task", "subspaces", "-o", tmp_path, "--json", "-q")
    assert code == 0 and err == ""
    document = json.loads(out)
    assert document == json.loads((tmp_path / "bench.json").read_text())
    assert document["task"] == "subspaces" and {row["bench"] for row in document["rows"]} == {*GROWTHS, "steps"}
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_each_figure_is_one_line_as_soon_as_it_is_measured(tmp_path: Path, small: None, bench: Bench) -> None:
    code, _, messages = bench("iteration", "--task", "subspaces", "-o", tmp_path)
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    lines = messages.splitlines()[-len(rows) :]
    assert code == 0 and [line.partition(": ")[0] for line in lines] == [row["what"] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        numbers = line.removeprefix(row["what"] + ": ").split("; ")
        assert len(numbers) == 1 + (row["against"] is not None) + (row["ratio"] is not None)


def test_the_help_names_every_benchmark(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    *names, last = BENCHES
    assert f"{', '.join(names)} or {last}" in bench("--help")[1]


@pytest.mark.slow
def test_benchmarks_with_data_of_their_own_load_no_task(tmp_path: Path, small: None, bench: Bench) -> None:
    code, out, _ = bench("bounds", "--task", "npy:missing", "-o", tmp_path, "--json", "-q")
    assert code == 0 and json.loads(out)["task"] is None


@pytest.mark.parametrize("names", [(), ("growth", "tables")])
def test_a_checkpoint_is_for_rate_only(names: tuple[str, ...], bench: Bench) -> None:
    code, out, err = bench(*names, "--checkpoint", "some.pkl")
    assert code == 2 and "--checkpoint" in err and "rate" in err
    assert out == "" and err.count("\n") == 1


def test_an_unknown_benchmark_is_one_line(bench: Bench) -> None:
    code, out, err = bench("growht")
    assert code == 2 and "bench growht" in err and "growth" in err
    assert out == "" and err.count("\n") == 1
