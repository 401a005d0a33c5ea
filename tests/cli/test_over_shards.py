"""`encode`, `compress`, `decompress` and `score` with -o DIR: what they print, their exit codes, what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from batching_helper import make_shards, read_results, train  # tests/batching_helper.py
from command_line import Command, check_refused  # tests/command_line.py

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and the folder of its four shards."""
    folder = tmp_path_factory.mktemp("shards")
    shards = make_shards(folder / "data", 4)
    return train(folder, shards), shards


@pytest.mark.slow
def test_shards_go_through_every_command(llgae: Command, made: tuple[Path, Path]) -> None:
    checkpoint, data = made
    rows = sum(len(np.load(path)) for path in data.glob("*.npy"))
    said = llgae("compress", checkpoint, "--task", f"npy:{data}", "-o", "small", "--lossless", "--embed-model", "-j", 2)
    assert said.code == 0, said.err
    assert "shards   4 of 4 done\n" in said.out and f"rows     {rows}\n" in said.out
    assert "largest of a value 0.00" in said.out
    said = llgae("decompress", "small/*.llgae", "-o", "back", "-j", 1, "--json")
    assert said.code == 0 and json.loads(said.out)["n"] == rows
    assert read_results(Path("back"), ".npy") == read_results(data, ".npy")
    (data.parent / "broken").mkdir(exist_ok=True)
    pattern = data.parent / "*" / "part-0[0-9].npy"
    (data.parent / "broken" / "part-09.npy").write_bytes(b"nothing")
    said = llgae("encode", checkpoint, "--task", f"npy:{pattern}", "-o", "codes", "-j", 1, "--json")
    assert said.code == 1
    document = json.loads(said.out)
    assert (document["done"], document["shards"], document["n"]) == (4, 5, rows)
    assert "broken/part-09.npy: " in said.err and "not an .npy file" in said.err
    assert "1 of 5 shards failed; --resume runs them again" in said.err
    (data.parent / "broken" / "part-09.npy").unlink()
    said = llgae("score", checkpoint, "--task", f"npy:{data}", "-o", "scores", "-j", 1)
    assert said.code == 0 and "novel    " in said.out
    said = llgae("eval", checkpoint, "--task", f"npy:{data}", "-o", "figures", "-j", 2, "--json")
    document = json.loads(said.out)
    assert said.code == 0 and sum(document["count"]) == rows and document["worst_shard"].startswith("part-0")
    with np.load("scores/part-00.npz") as scores:
        assert sorted(scores) == ["above", "k", "nll", "row", "spe", "t2"]


@pytest.mark.slow
def test_no_figure_is_printed_where_every_shard_fails(llgae: Command, made: tuple[Path, Path]) -> None:
    Path("other").mkdir()
    np.save("other/a.npy", np.zeros((5, 3)))
    said = llgae("encode", made[0], "--task", "npy:other", "-o", "codes", "-j", 1)
    assert said.code == 1 and "shards   0 of 1 done" in said.out and "mean L2" not in said.out


def test_what_shards_do_not_allow_is_refused(llgae: Command, made: tuple[Path, Path]) -> None:
    checkpoint, data = made
    task = ("--task", f"npy:{data}")
    check_refused(llgae("encode", checkpoint, *task, "-o", "codes.npz", "-j", 2), "give a folder with -o")
    check_refused(llgae("score", checkpoint, *task, "--resume"), "give a folder with -o")
    check_refused(llgae("encode", checkpoint, *task, "-o", "codes.txt"), "an .npz file or a folder is expected")
    check_refused(llgae("encode", checkpoint, "-o", "codes"), "give --task with a folder or a pattern of files")
    check_refused(llgae("encode", checkpoint, *task, "-o", "codes", "--split", "test"), "shards have no splits")
    check_refused(llgae("encode", checkpoint, *task, "-o", "codes", "--address", "x:1"), "--address needs --engine ray")
    check_refused(llgae("score", checkpoint, *task, "-o", "scores", "--novel", "1"), "for one file, not for shards")
    check_refused(llgae("score", checkpoint, *task, "-o", "scores", "--score", "nl"), "known are nll, spe, t2")
    check_refused(llgae("decompress", "small", "-o", "back", "--salvage"), "for one file, not for shards")
    check_refused(llgae("decompress", data, "-o", "back"), "no .llgae files")
    check_refused(llgae("encode", checkpoint, "--task", "npy:nowhere", "-o", "codes"), "nowhere: no .npy files")
    check_refused(llgae("encode", checkpoint, "--task", "mnist", "-o", "codes"), "a folder or a pattern of files")
    assert not Path("codes").exists()


@pytest.mark.slow
def test_a_wrong_option_is_one_error_and_not_one_for_each_shard(llgae: Command, made: tuple[Path, Path]) -> None:
    checkpoint, data = made
    said = llgae("score", checkpoint, "--task", f"npy:{data}", "-o", "scores", "--quantile", 0.5)
    check_refused(said, "quantile 0.5: thresholds are kept for")
    said = llgae("compress", checkpoint, "--task", f"npy:{data}", "-o", "small", "--bits", 1)
    check_refused(said, "bits 1")
