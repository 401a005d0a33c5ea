"""`llgae runs`, and the ids that it shows: accepted by every command that takes a checkpoint."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from command_line import FAST, Command, check_refused  # tests/command_line.py

from llgae_cli import experiment
from llgae_cli.cli.runs import COLUMNS, describe_age, make_table
from llgae_cli.config import read_config
from llgae_cli.storage import load, save
from llgae_cli.storage.names import CheckpointName

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def row(task: str = "mnist", config_id: str = "aaaaaaaaaa", state: str = "finished", **more: Any) -> dict[str, Any]:
    values = {"model": "denoising-autoencoder", "trainer": "closed-form", "seed": 28, "K": 100, "embed_dim": 784}
    values |= {"mean_l2": 12345.678, "epoch": 1540, "saved": (NOW - timedelta(minutes=59)).isoformat()}
    return {"task": task, "config_id": config_id, "state": state, **values, **more}


def as_lines(rows: list[dict[str, Any]], width: int) -> list[str]:
    headers, table = make_table(rows, width, NOW, by_task=True)
    widths = [max(map(len, column)) for column in zip(headers, *table, strict=True)]
    return ["  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)) for line in [headers, *table]]


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_a_run_is_one_line_that_fits_the_terminal(width: int, state: str) -> None:
    rows = [row("fashion-mnist-compress"), row("npy-measurements-of-this-year-1a2b3c4d", "bbbbbbbbbb", state)]
    lines = as_lines(rows, width)
    assert len(lines) == 4  # two tasks and a gap
    assert all(len(line) <= width for line in lines)
    assert ("unfinished" in lines[3]) == (state == "unfinished")
    assert lines[2].strip() == "" and lines[3].startswith("bbbbbb ") and "59 min ago" in lines[3]


def test_what_does_not_fit_is_left_out_or_cut() -> None:
    assert make_table([row()], 200, NOW, True)[0] == [header for header in COLUMNS if header != "state"]
    headers, table = make_table([row("t" * 40)], 80, NOW, True)
    assert not {"trainer", "seed"} & set(headers)
    assert table[0][headers.index("task")].endswith("…") and table[0][headers.index("mean L2")] == "12345.68"


def test_ids_are_as_long_as_they_must_be() -> None:
    rows = [row(config_id="1234567800"), row(config_id="1234567900"), row(config_id="")]
    assert [line[0] for line in make_table(rows, 100, NOW, True)[1]] == ["12345678", "12345679", "-"]


@pytest.mark.parametrize(
    ("age", "words"),
    [(0, "0 s ago"), (59, "59 s ago"), (60, "1 min ago"), (3599, "59 min ago"), (3600, "1 h ago"), (200000, "2 d ago")],
)
def test_the_age_of_a_file(age: float, words: str) -> None:
    assert describe_age((NOW - timedelta(seconds=age)).isoformat(), NOW) == words
    assert describe_age("2020-01-02T03:04:05+00:00", NOW) == "2020-01-02" and describe_age("", NOW) == "-"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "fast.yaml").write_text(FAST + f"checkpoint-dir: {folder}\n")
    outcome = experiment.train(read_config([folder / "fast.yaml"]))
    assert outcome.checkpoint is not None
    return outcome.checkpoint


@pytest.fixture
def folder(checkpoint: Path, llgae: Command) -> Path:
    """A folder `checkpoints` with a finished run, and an unfinished one of another config."""
    one, name = load(checkpoint), CheckpointName.parse(checkpoint.name)
    save(one, Path("checkpoints"), name)
    one.train_mean_l2 = None
    save(one, Path("checkpoints"), CheckpointName(**{**vars(name), "config_id": "0123456789"}))
    return Path("checkpoints")


def test_a_listing_marks_unfinished_runs_and_prints_paths(llgae: Command, folder: Path) -> None:
    rows = json.loads(llgae("runs", "--json").out)
    assert {row["state"] for row in rows} == {"finished", "unfinished"}
    assert len(json.loads(llgae("runs", "--json", "--where", "state=unfinished").out)) == 1
    lines = llgae("runs").out.splitlines()
    assert lines[0].split("\t") == list(COLUMNS) and len(lines) == 3
    assert llgae("runs", "--paths").out.splitlines() == [row["checkpoint"] for row in rows]
    damaged = next(folder.glob("*cfg0123456789*"))
    damaged.write_bytes(b"PK")
    assert {row["state"] for row in json.loads(llgae("runs", "--json").out)} == {"finished", "unknown"}


def test_every_command_takes_an_id_for_a_checkpoint(llgae: Command, folder: Path, checkpoint: Path) -> None:
    id = CheckpointName.parse(checkpoint.name).config_id
    wanted = load(checkpoint).mean_l2
    for text in (id[:4], id, f"checkpoints/{id[:3]}", checkpoint):
        assert json.loads(llgae("eval", text, "--json").out)["mean_l2"] == wanted
    for arguments in (
        ("encode", id, "-o", "codes.npz"),
        ("decode", id, "codes.npz", "-o", "x_hat.npy"),
        ("sample", id, "-o", "samples.npy"),
        ("score", id),
        ("compress", id, "-o", "x.llgae", "--bits", "9"),
        ("decompress", id, "x.llgae", "-o", "x.npy"),
        ("compare", id, id, "--kind", "svg"),
        ("figures", id, "-o", "drawn", "--only", "usage", "--kind", "svg"),
        ("report", id),
        ("train", "-c", "fast.yaml", "--resume", id),
    ):
        said = llgae(*arguments)
        assert said.code == 0, (arguments, said.err)


def test_an_id_of_no_run_or_of_several_is_one_line_with_candidates(llgae: Command, folder: Path) -> None:
    check_refused(llgae("eval", "ffffff0000"), "no run with this id in checkpoints", "subspaces llgae K 4 E 3")
    check_refused(llgae("eval", "checkpoints/fffff"), "no run with this id in checkpoints", "012345")
    for path in sorted(folder.glob("S*.pkl")):
        id = CheckpointName.parse(path.name).config_id
        path.rename(str(path).replace(f"-cfg{id}", f"-cfg0123{id[4:]}"))
    check_refused(llgae("eval", "01"), "begins the ids of several runs", "0123")
    check_refused(llgae("train", "-c", "fast.yaml", "--resume", "01"), "begins the ids of several runs")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    check_refused(llgae("eval", "01"), "no such file", "no such folder")


def test_an_id_means_the_checkpoint_with_most_epochs(llgae: Command, folder: Path) -> None:
    source = next(folder.glob("*cfg0123456789*"))
    for epoch in (2, 10, 9):
        name = CheckpointName(**{**vars(CheckpointName.parse(source.name)), "epoch": epoch})
        source.with_name(name.format()).write_bytes(source.read_bytes())
    assert "_10_" in json.loads(llgae("eval", "0123", "--json").out)["checkpoint"]


def test_train_needs_no_file_where_keys_say_enough(llgae: Command) -> None:
    check_refused(llgae("train"), "--config FILE", "-S task=mnist")
    options = [word for line in FAST.splitlines() for word in ("-S", line.replace(": ", "="))]
    assert llgae("train", *options).code == 0
