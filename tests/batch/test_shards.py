"""Which files are shards, and where their results go."""

from pathlib import Path

import numpy as np
import pytest

from llgae_cli.batch.commands import choose_shards
from llgae_cli.batch.shards import find_compressed_shards, find_data_shards
from llgae_cli.errors import InputError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_folder_has_the_files_of_its_kind_by_name(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", "b.npy", "a.npy", "a_labels.npy", "x.parquet", "notes.txt")
    folder, shards = find_data_shards(f"npy:{data}", ".npz", tmp_path / "out")
    assert folder == data
    assert [shard.name for shard in shards] == ["a.npy", "b.npy"]
    assert shards[0].output == str(tmp_path / "out" / "a.npz") and shards[0].task == f"npy:{data / 'a.npy'}"
    assert [shard.name for shard in find_data_shards(f"parquet:{data}", ".npz", tmp_path)[1]] == ["x.parquet"]


def test_a_pattern_keeps_the_folders_below_the_common_one(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", "2025/01.parquet", "2026/01.parquet")
    for task in (f"parquet:{data}/*/*.parquet", f"{data}/**/*.parquet"):
        folder, shards = find_data_shards(task, ".llgae", tmp_path / "out")
        assert folder == data and [shard.name for shard in shards] == ["2025/01.parquet", "2026/01.parquet"]
        assert shards[1].output == str(tmp_path / "out" / "2026" / "01.llgae")


def test_what_cannot_be_shards_is_refused(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", "a.csv", "a.csv.gz", "part.npz", "old/empty.txt")
    with pytest.raises(InputError, match="2 files whose results would have the name"):
        find_data_shards(f"csv:{data}", ".npz", tmp_path)
    with pytest.raises(InputError, match="its result would replace it"):
        find_data_shards(f"{data}/*.npz", ".npz", data)
    with pytest.raises(InputError, match=r"no \.npy files"):
        find_data_shards(f"npy:{data}", ".npz", tmp_path)
    with pytest.raises(InputError, match=r"no \.llgae files; did you mean 'data'"):
        find_compressed_shards(str(tmp_path / "dta"), ".npy", tmp_path)
    with pytest.raises(InputError, match="a folder or a pattern of files"):
        find_data_shards("fashion-mnist", ".npz", tmp_path)


def test_a_result_may_not_replace_the_manifest(tmp_path: Path) -> None:
    np.save(tmp_path / "manifest.npy", np.zeros((3, 2)))
    with pytest.raises(InputError, match="manifest.json, which is taken"):
        find_data_shards(f"npy:{tmp_path}", ".json", tmp_path / "out")


@pytest.mark.parametrize("n", [3, 200])
def test_larger_shards_give_more_rows_to_choose_settings_from(tmp_path: Path, n: int) -> None:
    for i in range(n):
        np.save(tmp_path / f"{i:03}.npy", np.zeros((50_000 if i == 1 else 500, 1), np.uint8))
    _, shards = find_data_shards(f"npy:{tmp_path}", ".llgae", tmp_path / "out")
    shares = {Path(shard.source).stem: share for shard, share in choose_shards(shards)}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["001"] == pytest.approx(50_000 / (50_000 + (n - 1) * 500), abs=0.1)
