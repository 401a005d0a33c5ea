"""`llgae data`."""

from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.console import print_json, print_lines
from llgae_cli.cli.options import Json


def data(
    task: Annotated[str, typer.Argument(help="A data set: fashion-mnist, mnist, ..., npy:PATH or images:FOLDER.")],
    data_dir: Annotated[Path, typer.Option(help="Folder with the data sets; downloads go there.")] = Path("data"),
    json: Json = False,
) -> None:
    """Run `llgae data`; `app` has its help."""
    from llgae_cli.tasks import load_task

    found = load_task(task, data_dir)
    if json:
        print_json(
            {
                "task": found.name,
                "source": found.source,
                "train": found.train.N,
                "test": found.test.N,
                "shape": list(found.shape),
                "classes": found.classes,
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
    if found.classes:
        print_lines(f"classes      {', '.join(found.classes)}")
