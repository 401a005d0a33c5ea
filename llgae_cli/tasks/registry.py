"""All tasks by name."""

from collections.abc import Callable
from pathlib import Path

from llgae_cli.errors import InputError, explain, nearest, printable, show_path
from llgae_cli.tasks.images import load_images
from llgae_cli.tasks.npy import load_npy, missing_path
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
OWN: dict[str, Callable[[Path, str, Centring], Task]] = {"npy": load_npy, "images": load_images}


def load_task(name: str, data_dir: Path, centring: Centring = "sample", seed: int = 28) -> Task:
    """Load the task of that name: one of TASKS, npy:PATH or images:FOLDER.

    Searches `data_dir` first, then the system's folder, then downloads; `Task.source` names the place. `seed` generates
    `subspaces`; other tasks ignore it. Raises InputError: an unknown name, data that is missing or damaged.
    """
    kind, colon, where = name.partition(":")
    if colon and kind in OWN:
        task = OWN[kind](_own_path(kind, where), name, centring)
    else:
        if name not in TASKS:
            near = nearest(name.lower(), TASKS)
            tasks = f"{', '.join(TASKS)}, npy:PATH and images:FOLDER"
            raise InputError(f"unknown task '{printable(name)}'{near or ';'} known are {tasks}")
        task = TASKS[name](data_dir, centring, seed)
    if centring == "sample" and task.train.D == 1:
        raise InputError(
            f"{printable(name)}: one value a sample, so centring 'sample' leaves only zeros; set it to none"
        )
    return task


def load_samples(task: str, split: str | None, data_dir: Path, centring: Centring, seed: int) -> Samples:
    """Load the samples to encode: a split of a task, or "all". Without a split: all rows of an npy:FILE, else test.

    All rows of an npy:FILE keep the file's order, and are streamed from disk. Other tasks have no "all", since their
    splits are in two files.
    """
    path = Path(task.removeprefix("npy:")).expanduser()
    single = task.startswith("npy:") and not path.is_dir()
    split = split or ("all" if single else "test")
    if split == "all":
        if not single:
            raise InputError("--split all: only for npy:FILE; other tasks have train and test")
        whole = Samples(path, centring=centring)
        whole.check_finite()
        return whole
    loaded = load_task(task, data_dir, centring, seed)
    return loaded.test if split == "test" else loaded.train


def _own_path(kind: str, where: str) -> Path:
    if not where or "\0" in where:
        raise InputError(f"task {kind}:{printable(where)}: a path is expected after {kind}:")
    try:
        path = Path(where).expanduser()
    except RuntimeError:  # ~nobody
        path = Path(where)
    try:
        if path.exists():
            return path
    except OSError as error:  # a name that is too long
        raise InputError(f"{show_path(path)}: cannot be read ({explain(error)})") from None
    raise missing_path(path)
