"""`llgae report`."""

from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.console import print_json, print_lines
from llgae_cli.cli.eval import choose_checkpoints
from llgae_cli.cli.figures import Colour, Over, check_over
from llgae_cli.cli.options import DataDir, Json, NewestOf
from llgae_cli.errors import InputError, printable
from llgae_cli.storage import find_checkpoint


def report(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Checkpoints (files or ids), or the folder of one sweep; or use --config.",
            metavar="[CHECKPOINT...|SWEEP]",
            parser=find_checkpoint,
        ),
    ] = None,
    config: NewestOf = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.", metavar="FILE")] = Path(
        "report.html"
    ),
    colour: Colour = None,
    over: Over = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Run `llgae report`; `app` has its help."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"-o {printable(output, 200)}: an .html file is expected")
    axes = check_over(over)
    chosen = choose_checkpoints(sources or [], config)
    from llgae_cli.report import write_report

    write_report(chosen, output, data_dir, colour, axes)
    size = output.stat().st_size
    if json:
        print_json({"report": str(output), "bytes": size})
        return
    print_lines(f"{output}  {size / 1e6:.2f} MB")
