"""`llgae info`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llgae_cli.cli.binary_streams import open_input
from llgae_cli.cli.console import print_json, print_lines
from llgae_cli.cli.options import Json
from llgae_cli.formatting import format_value

if TYPE_CHECKING:
    from llgae_cli.codec.settings import Settings


def info(
    path: Annotated[
        Path, typer.Argument(help="A file written by `llgae compress`; - for standard input.", metavar="FILE")
    ],
    json: Json = False,
) -> None:
    """Run `llgae info`; `app` has its help."""
    from llgae_cli.batch.decompression import unpack_settings
    from llgae_cli.storage.compressed_file import CompressedFile

    with CompressedFile(open_input(path), "standard input") as file:
        header = file.header
        settings = describe_settings(unpack_settings(header, path))
        if file.sizes is None:  # a pipe, whose sizes are known at its end
            file.read_block(file.n_blocks - 1)
        sizes = file.sizes
    assert sizes is not None
    bits_a_row = 8 * sizes.total / header.n if header.n else 0.0
    raw = header.n * header.row_bytes
    if json:
        print_json(
            {
                "file": str(path),
                "n": header.n,
                "shape": list(header.shape),
                "dtype": header.dtype,
                "bytes": sizes.total,
                "bits_per_row": bits_a_row,
                "original_bytes": raw,
                "blocks": file.n_blocks,
                "block_rows": header.block_rows,
                "sizes": dataclasses.asdict(sizes),
                "identity": header.identity.hex(),
                "embedded_model": bool(header.model_bytes),
                "exact": header.exact,
                "coder": header.coder,
                "settings": settings,
            }
        )
        return
    print_lines(
        f"file      {path}",
        f"rows      {header.n}, each {' x '.join(map(str, header.shape))} {header.dtype}; "
        f"{file.n_blocks} blocks of {header.block_rows}",
        f"size      {sizes.total} bytes, {bits_a_row:.2f} bits a row, {raw / sizes.total:.1f} times smaller",
        f"bytes     header {sizes.header}, model {sizes.model}, index and checks {sizes.index}, blocks {sizes.blocks}",
        f"model     {header.identity.hex()}, {'embedded' if header.model_bytes else 'not in the file'}",
        f"decoding  {'the same values' if header.exact else 'the same symbols, but not the same values,'} everywhere",
        f"coder     {header.coder}",
        "settings  " + ", ".join(f"{name} {format_value(value, 60)}" for name, value in settings.items()),
    )


def describe_settings(settings: "Settings") -> dict[str, Any]:
    """Return what a user may want to know of the codec's settings: the step, and the promised error if there is one."""
    known: dict[str, Any] = {"step": settings.step.value}
    if settings.max_l2 is not None:
        known["max-l2"] = settings.max_l2
    if settings.max_abs is not None:  # one number for all variables, or one for each
        bounds = [float(bound) for bound in settings.max_abs]
        known["max-abs"] = bounds[0] if len(bounds) == 1 else bounds
    return known
