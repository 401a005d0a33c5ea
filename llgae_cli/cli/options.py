"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.storage import find_checkpoint

ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        help="YAML config, or a shipped one by name; repeatable, later ones override earlier ones.",
        metavar="FILE",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-S", help="Override one config key; repeatable.", metavar="KEY=VALUE")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and the result only, no progress.")]
NewestOf = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        help="Use the newest finished checkpoint of this config, from its checkpoint-dir.",
        metavar="FILE",
    ),
]
CheckpointFile = Annotated[
    Path,
    typer.Argument(
        help="A checkpoint file (.pkl), or its id as `llgae runs` shows it.",
        metavar="CHECKPOINT",
        parser=find_checkpoint,
    ),
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder with the data sets; downloads go there.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
