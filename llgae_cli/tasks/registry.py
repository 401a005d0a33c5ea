"""All tasks by name."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.scaling import Scaling
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
from llgae_cli.tasks.scaling import Method, compare_spread, fit_scaling
from llgae_cli.tasks.subspaces import load_subspaces
from llgae_cli.tasks.table import KINDS, find_path, load_rows, load_table, recognise
from llgae_cli.tasks.table_options import TableOptions
from llgae_cli.tasks.task import Task

TASKS: dict[str, Callable[[Path, int], Task]] = {
    "fashion-mnist": load_fashion_mnist,
    "fashion-mnist-compress": load_fashion_mnist,  # the name in the source document and in checkpoints
    "mnist": load_mnist,
    "kmnist": load_kmnist,
    "emnist-letters": load_emnist_letters,
    "cifar10": load_cifar10,
    "svhn": load_svhn,
    "subspaces": load_subspaces,
}
FAR_APART = 10.0  # standard deviations of columns

logger = logging.getLogger(__name__)
KNOWN = "npy:PATH, csv:FILE, parquet:FILE, hdf5:FILE#DATASET, zarr:STORE#ARRAY and images:FOLDER"


def load_task(
    name: str,
    data_dir: Path,
    centring: Centring | Literal["auto"] = "auto",
    seed: int = 28,
    *,
    scaling: Method | Scaling | None = "auto",
    options: TableOptions = TableOptions(),  # noqa: B008 (frozen)
) -> Task:
    """Load the task of that name: one of TASKS, images:FOLDER, or data of the user, see `table.load_table`.

    Data of the user is KIND:PATH, or a path whose ending is known. Of the published tasks, `data_dir` is searched
    first, then the system's folder, then they are downloaded; `Task.source` names the place. `seed` generates
    `subspaces`; other tasks ignore it.

    A table is data of the user whose rows are vectors. `centring` auto is none for tables and sample for all else;
    `scaling`, fitted on the training rows unless it is a Scaling, is std for tables with auto, and none for all else.
    Both are auto by default, as in a config.

    Raises InputError: an unknown name, data that is missing or damaged, options for a task that is not a table, and as
    `fit_scaling`.
    """
    kind, where = parse_task(name)
    folder = Path(where).expanduser() if kind == "npy" and where and "\0" not in where else None
    if kind in KINDS and not (folder is not None and (folder / "train.npy").exists()):
        task = load_table(kind, where, name, data_dir, options)
    else:
        if options.given and not options.stored:
            raise InputError(
                f"{options.given[0]}: has no effect with task {printable(name)}; it is for {KNOWN.partition(' and')[0]}"
            )
        if options.own and not options.stored:
            raise InputError(
                f"shards: own has no effect with task {printable(name)}; it is for several files as one set"
            )
        if kind == "npy" and folder is not None:
            task = load_folder(folder, name)
        elif kind == "images":
            task = load_images(_own_path(kind, where), name)
        else:
            task = TASKS[name](data_dir, seed)
    return _prepare(task, kind in KINDS and len(task.shape) == 1, centring, scaling)


def _prepare(
    task: Task, is_table: bool, centring: Centring | Literal["auto"], scaling: Method | Scaling | None
) -> Task:
    """Return the task with centring and scaling; what auto chooses for a table is logged."""
    if centring == "auto":
        chosen: Centring = "none" if is_table else "sample"
    else:
        chosen = centring
    if chosen == "sample" and task.train.D == 1:
        raise InputError(
            f"{printable(task.name)}: one value a sample, so centring 'sample' leaves only zeros; set it to none"
        )
    fitted = scaling if isinstance(scaling, Scaling) else None
    if isinstance(scaling, str):
        method = scaling if scaling != "auto" else "std" if is_table else "none"
        fitted = None if method == "none" else fit_scaling(task.train, method)
        if is_table and "auto" in (centring, scaling):
            logger.info("%s: centring %s, scaling %s", printable(task.name, 60), chosen, method)
    if is_table and chosen == "sample" and fitted is None and (ratio := compare_spread(task.train)) > FAR_APART:
        logger.warning(
            "%s: centring sample subtracts each row's mean, and the columns' standard deviations differ by a factor "
            "of %.3g: the largest decide it; set scaling to std, or centring to none",
            printable(task.name, 60),
            ratio,
        )
    return task.prepare(chosen, fitted)


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
    options: TableOptions = TableOptions(),  # noqa: B008 (frozen)
) -> tuple[Samples, tuple[int, ...]]:
    """Load all rows of a task that `is_one_file`, in their order and units, and return them with the shape of a row."""
    rows = load_rows(*parse_task(task), data_dir, options)
    rows.samples.check_finite()
    return rows.samples, rows.shape


def load_samples(
    task: str,
    split: str | None,
    data_dir: Path,
    centring: Centring,
    seed: int,
    *,
    scaling: Scaling | None = None,
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
        return load_whole(task, data_dir, options)[0].prepare(centring, scaling)
    loaded = load_task(task, data_dir, centring, seed, scaling=scaling, options=options)
    return loaded.test if split == "test" else loaded.train


def _own_path(kind: str, where: str) -> Path:
    path, _ = find_path(kind, where)
    if path is None:
        raise missing_path(Path(where))
    return path
