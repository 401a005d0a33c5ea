"""`llgae export`."""

from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.console import print_json, print_lines
from llgae_cli.cli.options import CheckpointFile, Json
from llgae_cli.errors import InputError, printable


def export(
    checkpoint: CheckpointFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write (.safetensors).", metavar="FILE")],
    json: Json = False,
) -> None:
    """Run `llgae export`; `app` has its help."""
    if output.suffix != ".safetensors":
        raise InputError(f"-o {printable(output, 200)}: a .safetensors file is expected")
    from llgae_cli.factory import describe_loading, restore, shape_of
    from llgae_cli.storage.exported_model import export_model

    model, stored, config = restore(checkpoint)
    how = describe_loading(config, stored)
    export_model(output, model, stored, shape_of(stored, model), how["centring"], how["scaling"])
    size = output.stat().st_size
    if json:
        print_json({"output": str(output), "bytes": size})
        return
    print_lines(f"model  {output}", f"size   {size} bytes")
