"""`llgae decode`."""

from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.console import print_json, print_lines
from llgae_cli.cli.options import CheckpointFile, Json
from llgae_cli.errors import InputError, printable


def decode(
    checkpoint: CheckpointFile,
    codes_file: Annotated[Path, typer.Argument(help="Codes file written by `llgae encode` (.npz).", metavar="CODES")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Array to write (.npy), or a folder for PNG images.", metavar="FILE|DIR"),
    ],
    centred: Annotated[bool, typer.Option("--centred", help="Do not add each sample's own mean (.npy only).")] = False,
    json: Json = False,
) -> None:
    """Run `llgae decode`; `app` has its help."""
    to_npy = output.suffix == ".npy"
    if output.suffix and not to_npy and not output.is_dir():
        raise InputError(f"-o {printable(output, 200)}: an .npy file or a folder is expected")
    if centred and not to_npy:
        raise InputError("--centred: for .npy files alone; images need their mean grey level")
    from llgae_cli.factory import describe_loading, restore, shape_of
    from llgae_cli.storage import codes

    model, stored, config = restore(checkpoint)
    scaling = describe_loading(config, stored)["scaling"]
    shape = shape_of(stored, model)
    file = codes.CodesFile(codes_file, model)
    if to_npy:
        codes.write_npy(codes.decode_file(model, file, centred), output, (file.N, *shape), scaling)
    else:
        codes.write_images(model, file, output, shape, float(stored.data.get("peak", 255.0)))
    if json:
        print_json({"output": str(output), "n": file.N, "shape": list(shape)})
        return
    print_lines(
        f"{'array' if to_npy else 'images'}   {output}", f"samples  {file.N}, each {' x '.join(map(str, shape))}"
    )
