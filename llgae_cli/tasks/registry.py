"""All tasks by name."""

from collections.abc import Callable
from pathlib import Path

from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.tasks.images import load_images
from llgae_cli.tasks.npy import load_folder, missing_path
from llgae_cli.tasks.published import (
    load_cifar10,
    load_emnist_letters,
    load_fashion_mnist,
    load_kmnist,
    load_mnist,
    load_svhn,
)
from llgae_cli.tasks.samples import Centring, Samples
from llgae_cli.tasks.subspaces import load_subspaces
from llgae_cli.tasks.table import KINDS, find_path, load_rows, load_table, recognise
from llgae_cli.tasks.table_options import TableOptions
from llgae_cli.tasks.task import Task

TASKS: dict[str, Callable[[Path, Centring, int], Task]] = {
    "fashion-mnist": load_fashion_mnist,
    "fashion-mnist-compress": load_fashion_mnist,  # the name in the source document and in checkpoints
    "mnist": load_mnist,
    "kmnist": load_kmnist,
    "emnist-letters": load_emnist_letters,
    "cifar10": load_cifar10,
    "svhn": load_svhn,
    "subspaces": load_subspaces,
}
KNOWN = "npy:PATH, csv:FILE, parquet:FILE, hdf5:FILE#DATASET, zarr:STORE#ARRAY and images:FOLDER"


def load_task(
    name: str,
    data_dir: Path,
    centring: Centring = "sample",
    seed: int = 28,
    *,
    options: TableOptions = TableOptions(),  # noqa: B008 (frozen)
) -> Task:
    """Load the task of that name: one of TASKS, images:FOLDER, or data of the user, see `table.load_table`.

    Data of the user is KIND:PATH, or a path whose ending is known. Of the published tasks, `data_dir` is searched
    first, then the system's folder, then they are downloaded; `Task.source` names the place. `seed` generates
    `subspaces`; other tasks ignore it. Raises InputError: an unknown name, data that is missing or damaged, options for
    a task that is not a table.
    """
    kind, where = parse_task(name)
    folder = Path(where).expanduser() if kind == "npy" and where and "\0" not in where else None
    if kind in KINDS and not (folder is not None and (folder / "train.npy").exists()):
        task = load_table(kind, where, name, data_dir, centring, options)
    else:
        if options.given and not options.stored:
            raise InputError(
                f"{options.given[0]}: has no effect with task {printable(name)}; it is for {KNOWN.partition(' and')[0]}"
            )
        if kind == "npy" and folder is not None:
            task = load_folder(folder, name, centring)
        elif kind == "images":
            task = load_images(_own_path(kind, where), name, centring)
        else:
            task = TASKS[name](data_dir, centring, seed)
    if centring == "sample" and task.train.D == 1:
        raise InputError(
            f"{printable(name)}: one value a sample, so centring 'sample' leaves only zeros; set it to none"
        )
    return task


def parse_task(name: str) -> tuple[str, str]:
    """Return kind and place of a task: ("csv", "x.csv") for csv:x.csv and for x.csv, ("", name) for one of TASKS.

    Raises InputError for an unknown name.
    """
    kind, colon, where = name.partition(":")
    if colon and kind in (*KINDS, "images"):
        return ("npz", where) if kind == "npy" and recognise(where) == "npz" else (kind, where)
    if name in TASKS:
        return "", name
    found = recognise(name)
    if found is None:
        near = nearest(name.lower(), TASKS)
        raise InputError(f"unknown task '{printable(name)}'{near or ';'} known are {', '.join(TASKS)}, {KNOWN}")
    return found, name


def is_one_file(task: str) -> bool:
    """Return whether the rows of a task are in one order, which `load_whole` keeps: data of the user in one place."""
    kind, where = parse_task(task)
    return kind in KINDS and not (kind == "npy" and (Path(where).expanduser() / "train.npy").exists())


def load_whole(
    task: str,
    data_dir: Path,
    centring: Centring,
    options: TableOptions = TableOptions(),  # noqa: B008 (frozen)
) -> tuple[Samples, tuple[int, ...]]:
    """Load all rows of a task that `is_one_file`, in their order, and return them with the shape of a row."""
    rows = load_rows(*parse_task(task), data_dir, centring, options)
    rows.samples.check_finite()
    return rows.samples, rows.shape


def load_samples(
    task: str,
    split: str | None,
    data_dir: Path,
    centring: Centring,
    seed: int,
    options: TableOptions = TableOptions(),  # noqa: B008 (frozen)
) -> Samples:
    """Load the samples to encode: a split of a task, or "all". Without a split: all rows of one file, else test.

    All rows of a file keep its order. Other tasks have no "all", since their splits are in two files.
    """
    single = is_one_file(task)
    split = split or ("all" if single else "test")
    if split == "all":
        if not single:
            raise InputError(
                "--split all: only for data in one file, such as npy:FILE; other tasks have train and test"
            )
        return load_whole(task, data_dir, centring, options)[0]
    loaded = load_task(task, data_dir, centring, seed, options=options)
    return loaded.test if split == "test" else loaded.train


def _own_path(kind: str, where: str) -> Path:
    path, _ = find_path(kind, where)
    if path is None:
        raise missing_path(Path(where))
    return path
