"""Commands over shards: the same bytes in any order and by any command, what --resume keeps, what it refuses."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batching_helper import Inline, make_shards, read_results, run_inline, train  # tests/batching_helper.py

from llgae_cli.batch.commands import COMMANDS
from llgae_cli.batch.manifest import Manifest, read_manifest
from llgae_cli.errors import InputError, Interrupted
from llgae_cli.evaluation.encoding import write_codes
from llgae_cli.factory import describe_loading, restore
from llgae_cli.tasks import load_samples

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and the folder of its eight shards."""
    folder = tmp_path_factory.mktemp("batch")
    shards = make_shards(folder / "data", 8)
    return train(folder, shards), shards


def manifest_of(out: Path) -> Manifest:
    found = read_manifest(out)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("encode", {}),
        ("score", {"score": "nll", "quantile": 0.99}),
        ("compress", {"bits": 30}),
        ("compress", {"max_abs": [4.0]}),
    ],
)
def test_the_order_and_the_number_of_threads_do_not_change_a_byte(
    tmp_path: Path, made: tuple[Path, Path], command: str, options: dict[str, Any]
) -> None:
    checkpoint, data = made
    suffix = COMMANDS[command].suffix
    threads = torch.get_num_threads()
    first = run_inline(command, checkpoint, data, tmp_path / "one", **options)
    torch.set_num_threads(2)
    try:
        second = run_inline(command, checkpoint, data, tmp_path / "two", Inline(backwards=True), **options)
    finally:
        torch.set_num_threads(threads)
    assert read_results(tmp_path / "one", suffix) == read_results(tmp_path / "two", suffix)
    assert first.entries == second.entries and len(first.done) == 8 and not first.failed
    assert first.rows == sum(len(np.load(path)) for path in data.glob("*.npy"))


def test_a_shard_is_coded_as_the_command_for_one_file_does(tmp_path: Path, made: tuple[Path, Path]) -> None:
    checkpoint, data = made
    outcome = run_inline("encode", checkpoint, data, tmp_path / "codes")
    model, stored, config = restore(checkpoint)
    how = describe_loading(config, stored, other=True)
    samples = load_samples(f"npy:{data / 'part-03.npy'}", "all", Path(), **how)
    mean_l2 = write_codes(model, samples, tmp_path / "alone.npz")
    assert (tmp_path / "alone.npz").read_bytes() == (tmp_path / "codes" / "part-03.npz").read_bytes()
    assert outcome.entries[3].figures == {"mean_l2": mean_l2}


def test_what_is_compressed_comes_back(tmp_path: Path, made: tuple[Path, Path]) -> None:
    checkpoint, data = made
    run_inline("compress", checkpoint, data, tmp_path / "small", lossless=True, embed_model=True, verify=True)
    for given, name in ((checkpoint, "back"), (None, "alone")):
        run_inline("decompress", given, tmp_path / "small", tmp_path / name)
        assert read_results(tmp_path / name, ".npy") == read_results(data, ".npy")
    assert manifest_of(tmp_path / "alone").checkpoint is None


def test_a_bad_shard_fails_alone_and_runs_again(tmp_path: Path, made: tuple[Path, Path]) -> None:
    checkpoint, _ = made
    data = make_shards(tmp_path / "data", 5)
    whole = (data / "part-02.npy").read_bytes()
    (data / "part-02.npy").write_bytes(whole[:-7])
    np.save(data / "part-04.npy", np.zeros((9, 3), np.uint8))
    for command, options in {"encode": {}, "compress": {"step": 5.0}}.items():
        outcome = run_inline(command, checkpoint, data, tmp_path / command, **options)
        assert [entry.name for entry in outcome.failed] == ["part-02.npy", "part-04.npy"]
        assert "cut short" in outcome.failed[0].error and "of 3 values" in outcome.failed[1].error
        assert len(read_results(tmp_path / command, COMMANDS[command].suffix)) == 3
    (data / "part-02.npy").write_bytes(whole)
    outcome = run_inline("encode", checkpoint, data, tmp_path / "encode", resume=True)
    assert (len(outcome.done), outcome.skipped, len(outcome.failed)) == (4, 3, 1)


def test_resume_checks_results_and_shards(tmp_path: Path, made: tuple[Path, Path]) -> None:
    checkpoint, _ = made
    data, out = make_shards(tmp_path / "data", 5), tmp_path / "out"
    with pytest.raises(Interrupted):
        run_inline("encode", checkpoint, data, out, Stopping(after=3))
    assert [entry.state for entry in manifest_of(out).shards] == ["done"] * 3 + ["waiting"] * 2
    with pytest.raises(InputError, match="3 of 5 shards are done here already; continue with --resume"):
        run_inline("encode", checkpoint, data, out)
    before = read_results(out, ".npz")
    (out / "part-00.npz").write_bytes(b"damaged")
    (out / "part-01.npz").unlink()
    changed = np.load(data / "part-02.npy")[::-1]
    np.save(data / "part-02.npy", changed)
    outcome = run_inline("encode", checkpoint, data, out, resume=True)
    assert outcome.skipped == 0 and len(outcome.done) == 5
    after = read_results(out, ".npz")
    assert [after[f"part-0{i}.npz"] == before[f"part-0{i}.npz"] for i in range(3)] == [True, True, False]
    assert run_inline("encode", checkpoint, data, out, resume=True).skipped == 5
    (data / "part-00.npy").unlink()  # what was done stays in the manifest
    assert run_inline("encode", checkpoint, data, out, resume=True).entries == outcome.entries


class Stopping(Inline):
    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def run(self, job: Any, tasks: Any, finish: Any) -> None:
        super().run(job, tasks[: self.after], finish)
        raise Interrupted(2)


def test_other_work_is_not_mixed_with_what_is_there(tmp_path: Path, made: tuple[Path, Path]) -> None:
    checkpoint, data = made
    out = tmp_path / "out"
    run_inline("compress", checkpoint, data, out, step=5.0)
    other = train(tmp_path, make_shards(tmp_path / "other", 8, rows=70))
    for command, model, place, options, words in [
        ("encode", checkpoint, data, {}, "made with command compress, not encode"),
        ("compress", other, data, {"step": 5.0}, "made with model"),
        ("compress", checkpoint, tmp_path / "other", {"step": 5.0}, "made with source"),
        ("compress", checkpoint, data, {"step": 6.0}, "made with --step 5.0, not 6.0"),
        ("compress", checkpoint, data, {"step": 5.0, "verify": True}, "made with --verify not given, not True"),
    ]:
        with pytest.raises(InputError, match=words):
            run_inline(command, model, place, out, resume=True, **options)


def test_a_manifest_that_is_not_one_is_refused(tmp_path: Path, made: tuple[Path, Path]) -> None:
    checkpoint, data = made
    out = tmp_path / "out"
    run_inline("encode", checkpoint, data, out)
    content = json.loads((out / "manifest.json").read_text())
    content["shards"][0]["rows"] = "many"
    (out / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"manifest.json: shards\.0\.rows"):
        run_inline("encode", checkpoint, data, out, resume=True)


def test_rows_of_all_shards_choose_one_step_for_all(tmp_path: Path, made: tuple[Path, Path]) -> None:
    checkpoint, data = made
    outcome = run_inline("compress", checkpoint, data, tmp_path / "out", bits=30)
    assert 24 < 8 * outcome.bytes / outcome.rows <= 31
    alone = tmp_path / "alone"
    alone.mkdir()
    np.save(alone / "part-05.npy", np.load(data / "part-05.npy"))
    run_inline("compress", checkpoint, alone, tmp_path / "single", bits=30)
    assert manifest_of(tmp_path / "single").prepared != manifest_of(tmp_path / "out").prepared


def test_shards_of_parquet_files_are_coded_as_those_of_arrays(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow") if os.environ.get("CI") != "true" else None
    import pyarrow as pa
    from pyarrow import parquet

    arrays, tables = make_shards(tmp_path / "arrays", 3), tmp_path / "tables"
    tables.mkdir()
    for path in arrays.glob("*.npy"):
        columns = {f"v{j}": column for j, column in enumerate(np.load(path).T)}
        parquet.write_table(pa.table(columns), tables / f"{path.stem}.parquet")
    checkpoint = train(tmp_path, arrays)
    run_inline("compress", checkpoint, arrays, tmp_path / "one", max_abs=[3.0])
    run_inline("compress", checkpoint, f"parquet:{tables}/*.parquet", tmp_path / "two", max_abs=[3.0])
    assert read_results(tmp_path / "one", ".llgae") == read_results(tmp_path / "two", ".llgae")
