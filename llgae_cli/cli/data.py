"""`llgae data`."""

from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.console import print_json, print_lines
from llgae_cli.cli.options import Json
from llgae_cli.cli.table_arguments import Columns, Labels, Missing, Test, parse_options
from llgae_cli.errors import printable

# Stands here and not in a docstring, which `python -OO` removes.
HELP = """Load and check a data set, downloading it if missing; print its source, size and classes.

Own data is KIND:PATH, or a path whose ending says the kind: npy: (.npy, .npz; FILE.npz#NAME, a folder or a pattern of
.npy files), csv: (.csv, .tsv, also .gz), parquet: (.parquet, .pq; a folder or a pattern), hdf5:FILE#DATASET (.h5,
.hdf5, .hdf), zarr:STORE#ARRAY (.zarr), images:FOLDER.

Labels: --labels names a column, a member of the file or another file; without it, NAME_labels.npy beside NAME.csv (or
any other ending) is used where it exists: one integer from 0 for each row. A folder with train.npy and test.npy may
hold train_labels.npy and test_labels.npy.
"""


def data(
    task: Annotated[str, typer.Argument(help="A data set: fashion-mnist, mnist, ..., or your own.")],
    data_dir: Annotated[Path, typer.Option(help="Folder with the data sets; downloads go there.")] = Path("data"),
    columns: Columns = None,
    labels: Labels = None,
    test: Test = None,
    missing: Missing = None,
    json: Json = False,
) -> None:
    """Run `llgae data`; `app` has its help."""
    from llgae_cli.tasks import load_task

    found = load_task(task, data_dir, "none", scaling=None, options=parse_options(columns, labels, test, missing))
    if json:
        print_json(
            {
                "task": found.name,
                "source": found.source,
                "train": found.train.N,
                "test": found.test.N,
                "shape": list(found.shape),
                "classes": found.classes,
                "columns": None if found.train.names is None else list(found.train.names),
                "fingerprint": found.fingerprint,
            }
        )
        return
    print_lines(
        f"task         {found.name}",
        f"found in     {found.source}",
        f"samples      {found.train.N} train, {found.test.N} test, each {' x '.join(map(str, found.shape))}",
        f"fingerprint  {found.fingerprint}",
    )
    if found.train.names is not None:
        print_lines(f"columns      {', '.join(map(printable, found.train.names))}")
    if found.classes:
        print_lines(f"classes      {', '.join(found.classes)}")
