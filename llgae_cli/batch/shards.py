"""The shards of a data set: the files that a folder or a pattern names, and the file that each one's result goes to."""

import glob
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from llgae_cli.batch.manifest import NAME as MANIFEST
from llgae_cli.errors import InputError, printable, show_path
from llgae_cli.tasks.npy_file import nearest_in_folder
from llgae_cli.tasks.registry import parse_task
from llgae_cli.tasks.table import ENDINGS

COMPRESSED = "llgae"  # kind of the files that `llgae compress` writes
FILES = ("npy", "npz", "csv", "parquet", "hdf5")  # kinds of data that are files, one a shard


@dataclass(frozen=True)
class Shard:
    """A file and the one that its result goes to.

    name    path below the folder that all shards have in common
    source  absolute path of the file, output of its result
    kind    how it is read: one of FILES or COMPRESSED
    """

    name: str
    source: str
    output: str
    kind: str

    @property
    def task(self) -> str:
        """The file as the name of a task, as npy:/data/part-3.npy."""
        return f"{self.kind}:{self.source}"

    def measure_size(self) -> int:
        """Return the bytes of the file, at least 1; 1 where it cannot be read, which its own work reports."""
        try:
            return max(1, Path(self.source).stat().st_size)
        except OSError:
            return 1


def find_data_shards(task: str, suffix: str, out: Path) -> tuple[Path, list[Shard]]:
    """Return the shards of a task, as npy:FOLDER or parquet:PATTERN, and the folder that holds them all.

    Results get the same names with `suffix`, in `out`. Raises InputError for data that is not files, and where there
    are none.
    """
    kind, where = parse_task(task)
    if kind not in FILES:
        raise InputError(
            f"--task {printable(task)}: with -o FOLDER, a folder or a pattern of files is expected, as npy:FOLDER or "
            f"'parquet:FOLDER/*.parquet'; known are {', '.join(FILES)}"
        )
    endings = tuple(ending for ending, known in ENDINGS.items() if known == kind)
    return find_shards(where, kind, endings, suffix, out)


def find_compressed_shards(where: str, suffix: str, out: Path) -> tuple[Path, list[Shard]]:
    """Return the compressed files of a folder or a pattern, as `find_data_shards` does for data."""
    return find_shards(where, COMPRESSED, (f".{COMPRESSED}",), suffix, out)


def find_shards(where: str, kind: str, endings: tuple[str, ...], suffix: str, out: Path) -> tuple[Path, list[Shard]]:
    """Return the files of a folder with one of the endings, or those that fit a pattern, by name, and their folder."""
    try:
        place = Path(where).expanduser()
        if place.is_dir():
            found = [path for path in place.iterdir() if path.name.lower().endswith(endings)]
        elif place.exists():
            found = [place]
        else:
            found = [path for path in map(Path, glob.glob(str(place), recursive=True)) if path.is_file()]
    except (OSError, RuntimeError, ValueError):  # a name that is too long, ~nobody, a null byte
        raise InputError(f"{show_path(where)}: cannot be read as a folder or a pattern of files") from None
    if kind == "npy":
        found = [path for path in found if not path.stem.endswith("_labels")]
    paths = sorted(Path(os.path.abspath(path)) for path in found)
    if not paths:
        missing = "" if place.is_dir() or glob.has_magic(where) else nearest_in_folder(place)
        raise InputError(f"{show_path(where)}: no {' or '.join(endings)} files{missing}")
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    shards = []
    for path in paths:
        name = path.relative_to(folder)
        ending = next((end for end in endings if path.name.lower().endswith(end)), path.suffix)
        output = Path(os.path.abspath(out)) / name.with_name(path.name[: len(path.name) - len(ending)] + suffix)
        shards.append(Shard(name.as_posix(), str(path), str(output), kind))
        if output == Path(os.path.abspath(out)) / MANIFEST:
            raise InputError(f"{show_path(path)}: its result would have the name {MANIFEST}, which is taken: rename it")
        if output == path:
            raise InputError(f"{show_path(path)}: its result would replace it: choose another folder with -o")
    result, times = Counter(shard.output for shard in shards).most_common(1)[0]
    if times > 1:
        raise InputError(f"{show_path(where)}: {times} files whose results would have the name {show_path(result)}")
    return folder, shards
