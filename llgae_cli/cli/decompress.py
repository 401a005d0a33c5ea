"""`llgae decompress`."""

import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llgae_cli.cli.binary_streams import STANDARD, check_output, open_input, open_output, print_summary
from llgae_cli.cli.console import print_json
from llgae_cli.cli.options import Json
from llgae_cli.cli.over_shards import Address, EngineOption, Jobs, Resume, Sharing, names_folder, run_over_shards
from llgae_cli.errors import InputError, printable, show_path
from llgae_cli.storage import find_checkpoint
from llgae_cli.threads import single_threaded_blas

if TYPE_CHECKING:
    from llgae_cli.storage.compressed_file import CompressedFile
    from llgae_cli.storage.salvage import Salvage


def decompress(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="The checkpoint that FILE was compressed with (not needed where FILE holds the model), and the file "
            "written by `llgae compress`; - for standard input, a folder or a pattern with -o DIR.",
            metavar="[CHECKPOINT] FILE",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Array to write (.npy), - for stdout, or a folder: an array for each file.",
            metavar="FILE|DIR",
        ),
    ],
    rows: Annotated[
        str | None, typer.Option(help="Decode rows a..b-1 only; either may be left out.", metavar="A:B")
    ] = None,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Of a damaged file, decode the intact blocks; other rows become 0 or NaN.")
    ] = False,
    jobs: Jobs = None,
    resume: Resume = False,
    engine: EngineOption = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Run `llgae decompress`; `app` has its help."""
    if len(files) > 2:
        raise InputError(f"{len(files)} files: a checkpoint and a compressed file are expected, or only the latter")
    checkpoint, path = find_checkpoint(files[0]) if len(files) == 2 else None, files[-1]
    sharing = Sharing(jobs, resume, engine, address)
    if names_folder(output, sharing):
        if rows is not None or salvage:
            raise InputError("--rows and --salvage are for one file, not for shards")
        run_over_shards(
            "decompress", checkpoint, str(path), output, {},
            sharing=sharing, json=json,
        )  # fmt: skip
        return
    check_output(output, ".npy", json)
    if salvage and path == STANDARD:
        raise InputError("--salvage: nothing can be searched in standard input: write it to a file first")
    with single_threaded_blas():  # blocks are decoded side by side, without torch
        from llgae_cli.batch.decompression import Lost, decode_rows, load_codec
    with closing(_open(path, salvage)) as file:
        header = file.header
        chosen = parse_rows(rows, header.n)
        codec = load_codec(checkpoint, file, path)
        lost = Lost(path)
        with open_output(output) as out:
            decode_rows(out, file, codec, chosen, lost, path)
            if lost.n == len(chosen) > 0:
                raise InputError(f"{show_path(path)}: none of the rows {chosen.start}..{chosen.stop - 1} is intact")
    lost.report()
    shape = " x ".join(map(str, header.shape))
    if json:
        print_json(
            {
                "output": str(output),
                "n": len(chosen),
                "shape": list(header.shape),
                "dtype": header.dtype,
                "exact": header.exact,
                "lost": [{"first": at.start, "last": at.stop - 1, "reason": why} for at, why in lost.ranges],
            }
        )
        return
    print_summary(
        output,
        f"array    {output}",
        f"rows     {len(chosen)}, each {shape} {header.dtype}" + (f"; {lost.n} are lost" if lost.n else ""),
    )


def _open(path: Path, salvage: bool) -> "CompressedFile | Salvage":
    from llgae_cli.storage.compressed_file import CompressedFile
    from llgae_cli.storage.salvage import Salvage

    if not salvage:
        return CompressedFile(open_input(path), "standard input")
    file = Salvage(path)
    if not file.n_found:
        file.close()
        raise InputError(f"{show_path(path)}: holds no intact block")
    return file


def parse_rows(text: str | None, n: int) -> range:
    """Return the rows A:B of n, or all. Raises InputError for anything but 0 <= A < B <= n."""
    if text is None:
        return range(n)
    match = re.fullmatch("([0-9]{0,15}):([0-9]{0,15})", text)
    if match is None:
        raise InputError(f"--rows {printable(text)}: A:B is expected, as 1000:1010 (rows count from 0)")
    start, stop = int(match[1] or 0), int(match[2] or n)
    if not start < stop <= n:
        raise InputError(f"--rows {printable(text)}: the file has rows 0..{n - 1}; A < B <= {n} is expected")
    return range(start, stop)
