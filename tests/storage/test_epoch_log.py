"""Figures of epochs and tables of runs, as other programs read them."""

import csv
import gc
import json
from pathlib import Path

import pytest
from command_line import Command, check_refused  # tests/command_line.py
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llgae_cli.config import parse_config
from llgae_cli.storage import load
from llgae_cli.storage.epoch_log import name_of_log
from llgae_cli.storage.run_table import COLUMNS

GRADIENT = ("train", "-c", "gradient.yaml", "-q")


def test_a_log_does_not_change_a_configs_identity() -> None:
    plain = parse_config({"task": "subspaces"})
    logged = parse_config({"task": "subspaces", "log": "tensorboard"})
    assert plain.identity() == logged.identity() and "log" not in plain.plain()
    assert name_of_log(plain) == f"subspaces-llgae-K11-E20-cfg{plain.identity()}"


def test_json_lines_are_the_history(llgae: Command) -> None:
    assert llgae(*GRADIENT, "-S", "log=jsonl").code == 0
    (log,) = Path("checkpoints/logs").glob("*.jsonl")
    (checkpoint,) = Path("checkpoints").glob("*.pkl")
    history = load(checkpoint).history
    assert [json.loads(line) for line in log.read_text().splitlines()] == history
    assert llgae(*GRADIENT, "-S", "log=jsonl").code == 0  # again: the file is that of the last run
    assert len(log.read_text().splitlines()) == 3
    assert llgae(*GRADIENT, "-S", "log=jsonl", "-S", "epochs=5", "--resume", "last").code == 0
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_event_files_hold_the_history(llgae: Command) -> None:
    assert llgae(*GRADIENT, "-S", "log=tensorboard").code == 0
    (folder,) = Path("checkpoints/logs").iterdir()
    (checkpoint,) = Path("checkpoints").glob("*.pkl")
    events = EventAccumulator(str(folder))
    events.Reload()
    points = events.Scalars("train_mean_l2")
    history = load(checkpoint).history
    assert [point.step for point in points] == [1, 2, 3]
    assert [point.value for point in points] == pytest.approx([row["train_mean_l2"] for row in history])
    assert "test_mean_l2" in events.Tags()["scalars"]
    del events
    gc.collect()  # TensorBoard's reader leaves the file open until then: within this test, which ignores it


def test_a_log_that_does_not_exist_is_one_line(llgae: Command) -> None:
    check_refused(llgae(*GRADIENT, "-S", "log=tensorbord"), "log:", "did you mean 'tensorboard'")


def test_the_table_of_runs_as_csv_and_parquet(llgae: Command) -> None:
    assert llgae(*GRADIENT, "-S", "save-every=1").code == 0
    rows = json.loads(llgae("runs", "--json").out)
    assert llgae("runs", "--export", "csv").out == "3 rows in runs.csv\n"
    with open("runs.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]
    assert llgae("runs", "--export", "parquet", "-o", "my.parquet", "--where", "epoch>1").code == 0
    table = parquet.read_table("my.parquet")
    assert table.column_names == list(COLUMNS)
    assert table.to_pylist() == [row for row in rows if row["epoch"] > 1]
    check_refused(llgae("runs", "--export", "parket"), "--export parket", "did you mean 'parquet'")
