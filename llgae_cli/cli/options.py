"""Options that several commands share; their help is the documentation."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFiles = Annotated[
    list[Path], typer.Option("--config", "-c", help="YAML config; given several times, the later wins.", metavar="FILE")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-S", help="Override a key of the config.", metavar="KEY=VALUE")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; warnings and the result only.")]
NewestOf = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        help="In place of a checkpoint: the newest finished one of this config, in its checkpoint-dir.",
        metavar="FILE",
    ),
]
CheckpointFile = Annotated[Path, typer.Argument(help="A checkpoint file (.pkl).", metavar="CHECKPOINT")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where data sets are looked for and kept.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
