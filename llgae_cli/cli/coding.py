"""`llgae encode`, `llgae decode` and `llgae sample`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.options import CheckpointFile, DataDir, Json
from llgae_cli.cli.output import print_json, say
from llgae_cli.errors import InputError, printable
from llgae_cli.formatting import five_digits


class Part(StrEnum):
    """Which samples to encode."""

    test = "test"
    train = "train"
    all = "all"


def encode(
    checkpoint: CheckpointFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The codes file to write (.npz).", metavar="FILE")],
    task: Annotated[str | None, typer.Option(help="Another task than the checkpoint's own, e.g. npy:PATH.")] = None,
    split: Annotated[
        Part | None, typer.Option(help="Samples to encode; by default test, and all rows of --task npy:FILE.")
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Run `llgae encode`; `app` has its help."""
    _suffix(output, ".npz")
    from llgae_cli import codes
    from llgae_cli.restoring import restore

    model, _, config = restore(checkpoint)
    samples = codes.samples_of(
        task or config.task, split and split.value, data_dir or config.data_dir, config.centring, config.seed
    )
    if samples.D != model.D:
        raise InputError(f"{printable(task or config.task)}: samples of {samples.D} values; the model's have {model.D}")
    mean_l2 = codes.encode(model, samples, output)
    size = output.stat().st_size
    if json:
        print_json({"codes": str(output), "n": samples.N, "mean_l2": mean_l2, "bytes": size})
        return
    say(
        f"codes    {output}",
        f"samples  {samples.N}, {size / samples.N:.0f} bytes each",
        f"mean L2  {five_digits(mean_l2)}",
    )


def decode(
    checkpoint: CheckpointFile,
    codes_file: Annotated[Path, typer.Argument(help="Codes that `llgae encode` wrote (.npz).", metavar="CODES")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="An .npy file, or a folder for PNG images.", metavar="FILE|DIR")
    ],
    centred: Annotated[
        bool, typer.Option("--centred", help=".npy: x_hat alone, without each sample's mean put back.")
    ] = False,
    json: Json = False,
) -> None:
    """Run `llgae decode`; `app` has its help."""
    to_npy = output.suffix == ".npy"
    if output.suffix and not to_npy and not output.is_dir():
        raise InputError(f"-o {printable(output, 200)}: an .npy file or a folder is expected")
    if centred and not to_npy:
        raise InputError("--centred: for .npy files alone; images need their mean grey level")
    from llgae_cli import codes
    from llgae_cli.restoring import restore

    model, stored, _ = restore(checkpoint)
    shape = codes.shape_of(stored, model)
    file = codes.CodesFile(codes_file, model)
    if to_npy:
        codes.write_npy(codes.decoded(model, file, centred), output, (file.N, *shape))
    else:
        codes.write_images(model, file, output, shape, float(stored.data.get("peak", 255.0)))
    if json:
        print_json({"output": str(output), "n": file.N, "shape": list(shape)})
        return
    say(f"{'array' if to_npy else 'images'}   {output}", f"samples  {file.N}, each {' x '.join(map(str, shape))}")


def sample(
    checkpoint: CheckpointFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A picture (.png, .svg) or an array (.npy).", metavar="FILE")
    ],
    n: Annotated[int, typer.Option("--number", "-n", help="How many.", min=1)] = 64,
    grid: Annotated[
        bool,
        typer.Option("--grid", help="Lay them out over the two leading directions of one component, -2 to +2 sd."),
    ] = False,
    component: Annotated[
        int | None, typer.Option(help="Draw from this component alone; --grid takes the most used by default.", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random draw.", min=0)] = 28,
    level: Annotated[
        float | None,
        typer.Option(help="Mean grey level to add, which the model does not know; pictures choose one by default."),
    ] = None,
    json: Json = False,
) -> None:
    """Run `llgae sample`; `app` has its help."""
    if output.suffix not in (".png", ".svg", ".npy"):
        raise InputError(f"-o {printable(output, 200)}: a .png, .svg or .npy file is expected")
    if output.suffix != ".npy" and n > 10_000:
        raise InputError(f"-n {n}: a picture takes at most 10000; an .npy file takes any number")
    from llgae_cli import codes
    from llgae_cli.restoring import restore

    model, stored, config = restore(checkpoint)
    latents = codes.latents_of(stored, model, checkpoint)
    if component is not None and component >= model.K:
        raise InputError(f"--component {component}: 0..{model.K - 1} are there")
    shape = codes.shape_of(stored, model)
    side = round(n**0.5)
    if grid and side * side != n:
        raise InputError(f"-n {n}: --grid takes a square number, such as {side * side} or {(side + 1) ** 2}")
    drawn = (
        iter([codes.on_grid(model, latents, side, component)])
        if grid
        else codes.sampled(model, latents, n, seed, component)
    )
    if output.suffix == ".npy":
        codes.write_npy((codes.draw(model, code) + (level or 0.0) for code in drawn), output, (n, *shape))
    else:
        from llgae_cli.figures.contact import write_sheet

        values = [codes.draw(model, code) for code in drawn]
        write_sheet(values, output, shape, float(stored.data.get("peak", 255.0)), config.centring, level)
    if json:
        print_json({"output": str(output), "n": n})
        return
    say(f"{n} samples in {output}")


def _suffix(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise InputError(f"-o {printable(path, 200)}: a {suffix} file is expected")
