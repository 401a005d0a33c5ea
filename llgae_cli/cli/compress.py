"""`llgae compress`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llgae_cli.cli.binary_streams import STANDARD, check_output, open_output, print_summary
from llgae_cli.cli.console import print_json
from llgae_cli.cli.encode import Part
from llgae_cli.cli.options import CheckpointFile, DataDir, Json
from llgae_cli.cli.over_shards import Address, EngineOption, Jobs, Resume, Sharing, names_folder, run_over_shards
from llgae_cli.errors import InputError, printable
from llgae_cli.formatting import five_digits

if TYPE_CHECKING:
    import numpy as np

HEADER_BYTES = 120  # of header and trailer, about


def compress(
    checkpoint: CheckpointFile,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write (.llgae), - for stdout, or a folder: a file for each shard.",
            metavar="FILE|DIR",
        ),
    ],
    task: Annotated[
        str | None, typer.Option(help="Compress this task instead of the checkpoint's own, for instance npy:PATH.")
    ] = None,
    split: Annotated[
        Part | None,
        typer.Option(help="Split to compress; all: train, then test. Default: test; all for --task npy:FILE."),
    ] = None,
    data_dir: DataDir = None,
    bits: Annotated[
        float | None, typer.Option(help="Bits a row: choose the step for which these rows take so many.")
    ] = None,
    step: Annotated[float | None, typer.Option(help="Step of the quantiser.")] = None,
    max_l2: Annotated[
        float | None,
        typer.Option("--max-l2", help="Bound on every row's squared error, the mean over its (scaled) values."),
    ] = None,
    max_abs: Annotated[
        str | None,
        typer.Option(
            "--max-abs",
            help="Bound on every value's absolute error: a number, or one for each variable, with commas between.",
            metavar="FLOAT[,FLOAT...]",
        ),
    ] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Keep every value as it is.")] = False,
    embed_model: Annotated[
        bool,
        typer.Option("--embed-model", help="Put the model into the file, so that it decodes without a checkpoint."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Decode what was written and compare it, before the file gets its name.")
    ] = False,
    jobs: Jobs = None,
    resume: Resume = False,
    engine: EngineOption = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Run `llgae compress`; `app` has its help."""
    target = choose_target(bits, step, max_l2, max_abs, lossless)
    sharing = Sharing(jobs, resume, engine, address)
    if names_folder(output, sharing):
        decisive = {**target, "embed_model": embed_model, "verify": verify}
        run_over_shards(
            "compress", checkpoint, task, output, decisive, split=split and split.value, data_dir=data_dir,
            sharing=sharing, json=json,
        )  # fmt: skip
        return
    check_output(output, ".llgae", json)
    if verify and output == STANDARD:
        raise InputError("--verify: what went to standard output cannot be read back: write to a file")
    from llgae_cli.batch.compression import load_rows, verify_file, write_rows
    from llgae_cli.codec.codec import Codec
    from llgae_cli.evaluation.distortion import Bound
    from llgae_cli.storage.compressed_file import leave_room
    from llgae_cli.storage.compressed_header import choose_block_rows

    codec = Codec.load(checkpoint)
    rows = load_rows(checkpoint, task, split and split.value, data_dir)
    if math.prod(rows.shape) != codec.D:
        raise InputError(f"{rows.origin}: rows of {math.prod(rows.shape)} values; the model's have {codec.D}")
    if "max_abs" in target:
        target["max_abs"] = spread(target["max_abs"], codec.D)
    if bits is not None:
        target["bits"] = leave_room(bits, rows.n, choose_block_rows(rows.row_bytes))
    settings = codec.choose_settings(rows.sample(), **target)
    model = codec.pack() if embed_model else b""
    with open_output(output) as file:
        bound = Bound(max_l2, target.get("max_abs"), lossless, codec.unit)
        error, sizes = write_rows(file, codec, rows, settings, model, bound)
        if verify:
            file.flush()
            verify_file(Path(file.name), codec, rows, settings, error)
    bits_a_row = 8 * sizes.total / rows.n
    if json:
        print_json(
            {
                "file": str(output),
                "n": rows.n,
                "shape": list(rows.shape),
                "dtype": rows.dtype,
                "bytes": sizes.total,
                "bits_per_row": bits_a_row,
                "mean_squared_error": error.mean,
                "largest_row_error": error.largest_row,
                "largest_value_error": error.largest_value,
                "sizes": {"header": sizes.header, "model": sizes.model, "index": sizes.index, "blocks": sizes.blocks},
                "model_bytes": codec.size,
                "identity": codec.identity.hex(),
                "verified": verify,
            }
        )
        return
    embedded = f", {sizes.model} of them in the file" if sizes.model else ", not in the file"
    print_summary(
        output,
        f"file     {output}{', verified' if verify else ''}",
        f"rows     {rows.n}, each {' x '.join(map(str, rows.shape))} {rows.dtype}",
        f"size     {sizes.total} bytes, {bits_a_row:.2f} bits a row",
        f"error    mean squared {five_digits(error.mean)}, largest of a row {five_digits(error.largest_row)}, "
        f"largest of a value {five_digits(error.largest_value)}",
        f"bytes    header {sizes.header}, model {sizes.model}, index and checks {sizes.index}, blocks {sizes.blocks}",
        f"model    {codec.size} bytes{embedded}, identity {codec.identity.hex()}",
    )


def choose_target(
    bits: float | None, step: float | None, max_l2: float | None, max_abs: str | None, lossless: bool
) -> dict[str, Any]:
    """Return the one option that says how well to code, max_abs as a list of numbers.

    Raises InputError for none of them, several, or a wrong number.
    """
    options = {"bits": bits, "step": step, "max_l2": max_l2, "max_abs": max_abs, "lossless": lossless or None}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if len(given) != 1:
        raise InputError("give one of --bits, --step, --max-l2, --max-abs and --lossless")
    ((key, value),) = given.items()
    if lossless:
        return given
    try:
        numbers = [float(part) for part in value.split(",")] if isinstance(value, str) else [value]
    except ValueError:
        numbers = []
    if not numbers or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise InputError(f"--{key.replace('_', '-')} {printable(value)}: a positive number is expected")
    return {key: numbers if key == "max_abs" else numbers[0]}


def spread(bounds: list[float], D: int) -> "np.ndarray":
    """Return the bounds of --max-abs as an array, (1,) for all variables or (D,). Raises InputError otherwise."""
    import numpy as np

    if len(bounds) not in (1, D):
        raise InputError(f"--max-abs: {len(bounds)} numbers; 1 or {D}, the number of variables, are expected")
    return np.array(bounds)
