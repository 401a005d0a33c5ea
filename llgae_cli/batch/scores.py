"""Novelty scores of all rows of a data set, and the files that hold them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from llgae_cli.errors import InputError
from llgae_cli.evaluation.novelty import SCORES, Novelty
from llgae_cli.storage.atomic import write_atomically
from llgae_cli.tasks import Samples


def collect_scores(novelty: Novelty, samples: Samples) -> dict[str, np.ndarray]:
    """Return the scores of all samples by name, and their component k, arrays of shape (N,).

    Raises InputError for values that have no finite score.
    """
    columns: dict[str, np.ndarray] = {name: np.empty(samples.N) for name in SCORES}
    columns["k"] = np.empty(samples.N, np.int64)
    for rows, chunk in novelty.score(samples):
        for name, column in columns.items():
            column[rows] = getattr(chunk, name).cpu().numpy()
        finite = np.isfinite(np.stack([column[rows] for column in columns.values()])).all(0)
        if not finite.all():
            row = rows.start + int(finite.argmin())
            raise InputError(f"{samples.origin}: row {row} has no finite score (rows count from 0)")
    return columns


def write_scores(columns: dict[str, np.ndarray], path: Path) -> None:
    """Write the columns and the number of each row to a .csv or .npz, atomically. Raises RunError: the disk is full."""
    n = len(columns["k"])
    with write_atomically(path) as temporary:
        if path.suffix == ".npz":
            with open(temporary, "wb") as file:
                np.savez(file, row=np.arange(n), **columns)  # type: ignore[arg-type]  # of its own options
            return
        with open(temporary, "w", encoding="utf-8", newline="") as text:
            text.write(",".join(["row", *columns]) + "\n")
            text.writelines(_lines(columns.values()))


def _lines(columns: Iterable[np.ndarray]) -> Iterator[str]:
    for row, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        yield f"{row}," + ",".join(str(int(v)) if isinstance(v, (bool, int)) else f"{v:.9g}" for v in values) + "\n"
