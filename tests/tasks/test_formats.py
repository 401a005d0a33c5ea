"""CSV, Parquet, HDF5, Zarr, npz, npy and shards: the same data gives the same model, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from llgae_cli.errors import InputError
from llgae_cli.storage import load
from llgae_cli.tasks import TableOptions, Task, load_task, load_whole, npy
from llgae_cli.tasks.table import hold_out_evenly

pytestmark = pytest.mark.numeric

NAMES = ["temperature", "pressure", "CO", "a.b"]
TASKS = [
    "npy:x.npy", "npy:shards", "npy:shards/part*.npy", "npy:x.npz", "x.npz#values", "x.csv", "csv:x.csv", "x.tsv",
    "x.csv.gz", "parquet:x.parquet", "parquet:tables", "parquet:tables/part*.parquet",
    "hdf5:x.h5#group/values", "x.h5", "zarr:x.zarr", "group.zarr#values",
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write the same 300 x 4 values in every format, and go to their folder."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(300, 4)) * [1, 10, 100, 3]
    write(tmp_path, x)
    return x


def columns(x: np.ndarray, **more: Any) -> pa.Table:
    return pa.table({name: x[:, j] for j, name in enumerate(NAMES)} | more)


def write(folder: Path, x: np.ndarray) -> None:
    np.save(folder / "x.npy", x)
    np.savez_compressed(folder / "x.npz", values=x, other=np.arange(len(x)))
    (folder / "shards").mkdir()
    (folder / "tables").mkdir()
    for k, part in enumerate(np.split(x, [7, 120])):
        np.save(folder / "shards" / f"part{k}.npy", part)
        pq.write_table(columns(part), folder / "tables" / f"part{k}.parquet", row_group_size=64)
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("group/values", data=x, chunks=(32, 4), compression="gzip")
        file["group/kind"] = np.arange(len(x)) % 3
    zarr.save_array(str(folder / "x.zarr"), x)
    zarr.open_group(str(folder / "group.zarr"), mode="w").create_array("values", data=x, chunks=(50, 4))
    frame = columns(x)
    pq.write_table(frame, folder / "x.parquet", row_group_size=64)
    pa.csv.write_csv(frame, folder / "x.csv")
    pa.csv.write_csv(frame, folder / "x.tsv", pa.csv.WriteOptions(delimiter="\t"))
    with pa.CompressedOutputStream(str(folder / "x.csv.gz"), "gzip") as out:
        pa.csv.write_csv(frame, out)


def read(task: str, **options: Any) -> Task:
    return load_task(task, Path("data"), "none", scaling=None, options=TableOptions(**options))


def refused(task: str, *words: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        read(task, **options)
    said = str(caught.value)
    assert "\n" not in said and caught.value.exit_code == 2
    for word in words:
        assert word in said


@pytest.mark.parametrize("streamed", [False, True])
def test_all_formats_give_the_same_rows(
    data: np.ndarray, monkeypatch: pytest.MonkeyPatch, messages: list[str], streamed: bool
) -> None:
    if streamed:
        monkeypatch.setattr(npy, "IN_MEMORY_BYTES", 0)
    prints = set()
    for name in TASKS * 2:  # the second time from what was converted
        task = read(name)
        held = np.arange(300) % 10 == 9
        np.testing.assert_array_equal(task.train.stored_array(), data[~held])
        np.testing.assert_array_equal(task.test.stored_array([5, 0, 29]), data[held][[5, 0, 29]])
        assert task.train.on_disk == streamed and task.shape == (4,)
        assert task.train.names == (tuple(NAMES) if "csv" in name or "parquet" in name or "tsv" in name else None)
        prints.add(task.fingerprint)
    assert len(prints) == 1
    assert Path("data/converted").exists() == streamed
    converted = [text for text in messages if "converted once, to" in text]
    assert bool(converted) == streamed and len(converted) == len(set(converted))


def test_conversions_that_were_killed_leave_nothing_for_ever(data: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npy, "IN_MEMORY_BYTES", 0)
    folder = Path("data/converted")
    folder.mkdir(parents=True)
    old, running = folder / ".part-old", folder / ".part-running"
    for part in (old, running):
        part.write_bytes(b"x")
    os.utime(old, (0, 0))
    read("csv:x.csv")
    assert not old.exists() and running.exists()


def test_folders_of_ranks_are_one_data_set_for_a_single_process(data: np.ndarray) -> None:
    for rank, part in enumerate(np.split(data, [100])):
        Path(f"ranks/{rank}").mkdir(parents=True)
        np.save(f"ranks/{rank}/part{rank}.npy", part)
    whole = load_whole("npy:ranks/{rank}", Path("data"), TableOptions(own=True))[0]
    np.testing.assert_array_equal(whole.stored_array(), data)
    Path("ranks/1/part1.npy").rename("ranks/1/part0.npy")
    with pytest.raises(InputError, match="two shards of this name"):
        load_whole("npy:ranks/{rank}", Path("data"), TableOptions(own=True))


@pytest.mark.slow
def test_all_formats_give_the_same_model(data: np.ndarray, llgae: Any) -> None:
    states = []
    for number, name in enumerate(TASKS):
        args = [f"task={name}", "K=3", "embed-dim=1", "centring=none", f"checkpoint-dir=c{number}", "figures=false"]
        said = llgae("train", "-c", "fast.yaml", *(part for arg in args for part in ("-S", arg)))
        assert said.code == 0, said.err
        states.append(load(next(Path(f"c{number}").rglob("*.pkl"))).state)
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[key], states[0][key]) for key in state)


def test_columns_labels_and_test(data: np.ndarray) -> None:
    kind = ["gas", "liquid", "solid"] * 100
    held = [i % 4 == 1 for i in range(300)]
    frame = columns(data, kind=kind, held=held)
    pq.write_table(frame, "t.parquet")
    pa.csv.write_csv(frame, "t.csv")
    for name in ("t.parquet", "t.csv"):
        task = read(name, columns=("CO", "temperature"), labels="kind", test="held")
        np.testing.assert_array_equal(task.test.stored_array(), data[1::4][:, [2, 0]])
        assert task.train.names == ("CO", "temperature") and task.classes == ("gas", "liquid", "solid")
        assert task.test.labels is not None
        np.testing.assert_array_equal(task.test.labels, np.arange(300)[1::4] % 3)
        left = read(name, columns=("-CO", "-a*"), labels="kind", test="held")
        assert left.train.names == ("temperature", "pressure")
    assert read("x.h5", labels="group/kind").classes == ("0", "1", "2")
    np.save("x_labels.npy", np.arange(300) % 2)
    for name in ("x.npy", "x.csv", "x.parquet", "x.zarr"):
        assert read(name).classes == ("0", "1")
    share = read("x.csv", test=0.25)
    np.testing.assert_array_equal(share.test.stored_array(), data[3::4])


def test_a_test_file_is_read_by_name(data: np.ndarray) -> None:
    pa.csv.write_csv(columns(data[:20] + 1).select(NAMES[::-1]), "test.csv")
    task = read("x.parquet", test="test.csv")
    assert task.train.N == 300 and task.test.N == 20
    np.testing.assert_allclose(task.test.stored_array(), data[:20] + 1, rtol=1e-12)


def test_a_checkpoint_s_columns_in_another_file(data: np.ndarray) -> None:
    pa.csv.write_csv(columns(data).select(NAMES[::-1]), "other.csv")
    options = TableOptions(tuple(NAMES), "kind", "held.csv", stored=True)
    rows, shape = load_whole("other.csv", Path("data"), options)
    np.testing.assert_array_equal(rows.stored_array(), data)
    assert shape == (4,) and load_whole("x.npy", Path("data"), options)[0].N == 300


def test_types_follow_numpy_promotion(data: np.ndarray) -> None:
    one = np.arange(20)
    types = [("int8", "int16", "int16"), ("int32", "float32", "float64"), ("bool", "uint8", "uint8"),
             ("int16", "float32", "float32"), ("bool", "bool", "bool"), ("uint32", "uint32", "int64")]  # fmt: skip
    for first, second, expected in types:
        pq.write_table(pa.table({"a": one.astype(first), "b": one.astype(second)}), "t.parquet")
        assert read("t.parquet").train.stored == expected


def test_missing_values(data: np.ndarray) -> None:
    holes = data.copy()
    holes[17, 2] = np.nan
    pq.write_table(columns(holes), "t.parquet")
    pa.csv.write_csv(columns(holes), "t.csv")
    np.save("t.npy", holes)
    for name in ("t.parquet", "t.csv"):
        refused(name, "row 17", "'CO'", "missing")
    for name in ("t.parquet", "t.csv", "t.npy"):
        assert read(name, missing="drop").train.N + read(name, missing="drop").test.N == 299
    whole = pa.table({"a": pa.array([1, None, 3]), "b": [True, False, True]})
    pq.write_table(whole, "n.parquet")
    refused("n.parquet", "row 1", "'a'")
    assert read("n.parquet", missing="drop").train.stored == "int64"


BAD_CSV = [
    ("a,b\n1,2\n3\n", ("Expected 2 columns",)),
    ("a;b\n1;2\n", ("';'", "comma")),
    ("a\tb\n1\t2\n", ("tab", "comma")),
    ("a,a\n1,2\n", ("2 columns are named 'a'",)),
    ("1,2\n3,4\n", ("first line holds numbers",)),
    ("a,b\n1,2\n3,warm\n", ("row 1", "'b'", "'warm'", "-b")),
    ("a,b\n1,2024-01-31\n", ("row 0", "'b'", "'2024-01-31'")),
    ("a,b\n", ("no rows",)),
    ("", ("CSV",)),
    ("a,b\n1,2\n", ("1 row",)),
    ("a,b\n1,\n2,3\n", ("row 0", "'b'", "missing")),
    ("a,\n1,2\n", ("column 1 has no name",)),
]


@pytest.mark.parametrize("text, words", BAD_CSV, ids=range(len(BAD_CSV)))
def test_bad_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text(text)
    refused("x.csv", "x.csv", *words)


def test_text_after_many_rows_is_found(tmp_path: Path) -> None:
    rows = ["1,2"] * 1_500_000
    rows[1_400_000] = "1,warm"
    (tmp_path / "x.csv").write_text("a,b\n" + "\n".join(rows))
    refused(str(tmp_path / "x.csv"), "row 1400000", "'b'", "'warm'")


def test_bad_options(data: np.ndarray) -> None:
    refused("x.csv", "no column 'presure'", "did you mean 'pressure'", columns=("presure",))
    refused("x.csv", "given twice", columns=("CO", "CO"))
    refused("x.parquet", "no column 'Pressure'", "did you mean", labels="Pressure")
    refused("x.parquet", "no column", test="Co")
    refused("x.npy", "columns", columns=("a",))
    refused("fashion-mnist", "columns", "no effect", columns=("a",))
    np.save("few.npy", np.arange(9))
    refused("x.csv", "300 rows", "9", labels="few.npy")
    pq.write_table(columns(data, held=[3] * 300), "t.parquet")
    refused("t.parquet", "row 0", "'held'", "'3'", test="held")
    assert list(np.flatnonzero(hold_out_evenly(30, 0.1))) == [9, 19, 29]


def test_bad_containers(data: np.ndarray) -> None:
    refused("x.h5#group", "is a group", "group/values")
    refused("x.h5#group/value", "did you mean 'group/values'")
    refused("x.npz#x", "values (300x4)")
    zarr.open_group("empty.zarr", mode="w")
    refused("empty.zarr", "no array")
    refused("group.zarr#valves", "did you mean 'values'")
    Path("y.h5").write_bytes(b"not HDF5")
    refused("y.h5", "HDF5")
    Path("cut.parquet").write_bytes(Path("x.parquet").read_bytes()[:-100])
    refused("cut.parquet", "Parquet")
    pq.write_table(pa.table({"a": [1, 2], "day": pa.array([0, 1], pa.date32())}), "t.parquet")
    refused("t.parquet", "'day'", "date32", "1970-01-01")
    refused("x.parquett", "unknown task")
    refused("parquet:x.parque", "did you mean 'x.parquet'")
    np.save("shards/part9.npy", np.zeros((3, 5)))
    refused("npy:shards", "part9.npy", "rows of 5")
    refused("npy:{rank}.npy", "{rank}", "shards: own")
    pq.write_table(pa.table({name: [1.0] for name in reversed(NAMES)}), "tables/part9.parquet")
    refused("parquet:tables", "part9.parquet", "columns are named otherwise")
    pq.write_table(columns(data.astype(np.float32)), "tables/part9.parquet")
    refused("parquet:tables", "part9.parquet", "rows of 4 float32")
    refused("parquet:shards", "no .parquet files")


def test_a_missing_library_is_one_line(data: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    for library, name in (("pyarrow", "x.csv"), ("h5py", "x.h5"), ("zarr", "x.zarr")):
        monkeypatch.setitem(sys.modules, library, None)
        refused(name, library, "pip install 'llgae[data]'")


MEASURE = """
import resource, sys
from pathlib import Path
from llgae_cli.tasks import load_task, TableOptions
import pyarrow, pyarrow.parquet, pyarrow.csv
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
task = load_task(sys.argv[1], Path(sys.argv[2]), "none", scaling=None)
assert task.train.on_disk and task.train.N == 1_080_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_parquet_is_streamed_within_bounded_memory(tmp_path: Path) -> None:
    frame = pa.table({f"c{j}": np.random.default_rng(j).normal(size=100_000) for j in range(40)})
    with pq.ParquetWriter(tmp_path / "x.parquet", frame.schema) as writer:
        for _ in range(12):  # 384 MB of values
            writer.write_table(frame)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "x.parquet"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 360_000  # KiB: up to 256 MiB are collected before the file is written


def test_a_file_of_labels_is_the_training_rows_alone(data: np.ndarray) -> None:
    np.save("own.npy", np.arange(300) % 3)
    pa.csv.write_csv(columns(data[:20]).select(NAMES), "other.csv")
    task = read("x.csv", labels="own.npy", test="other.csv", columns=tuple(NAMES))
    assert task.train.labels is not None and task.train.labels.tolist() == (np.arange(300) % 3).tolist()
    assert task.test.N == 20 and task.test.labels is None
