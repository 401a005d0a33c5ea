"""`llgae sample`."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llgae_cli.cli.console import print_json, print_lines
from llgae_cli.cli.options import CheckpointFile, Json
from llgae_cli.errors import InputError, printable

if TYPE_CHECKING:
    import numpy as np

    from llgae_cli.factory import Loading

logger = logging.getLogger(__name__)
LIKE = 4000  # training images among which that nearest to a sample is looked for


def sample(
    checkpoint: CheckpointFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Picture (.png, .svg) or array (.npy) to write.", metavar="FILE")
    ],
    n: Annotated[int, typer.Option("--number", "-n", help="Number of samples.", min=1)] = 64,
    grid: Annotated[
        bool,
        typer.Option(
            "--grid", help="Instead, a grid over the two leading axes of one component, -2 to +2 standard deviations."
        ),
    ] = False,
    component: Annotated[
        int | None, typer.Option(help="Use this component only. Default: all; the most used one for --grid.", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random generator.", min=0)] = 28,
    level: Annotated[
        float | None,
        typer.Option(
            help="Mean grey level to add to centred samples. Default: that of the nearest training image; 0 for "
            "vectors and .npy."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Run `llgae sample`; `app` has its help."""
    if output.suffix not in (".png", ".svg", ".npy"):
        raise InputError(f"-o {printable(output, 200)}: a .png, .svg or .npy file is expected")
    if output.suffix != ".npy" and n > 10_000:
        raise InputError(f"-n {n}: a picture takes at most 10000; an .npy file takes any number")
    import torch

    from llgae_cli.evaluation.latents import draw_codes, grid_codes, read_latents
    from llgae_cli.factory import describe_loading, restore, shape_of
    from llgae_cli.storage.codes import write_npy

    model, stored, config = restore(checkpoint)
    how = describe_loading(config, stored)
    latents = read_latents(stored.extras, model, checkpoint)
    if latents is None:
        raise InputError(
            f"{printable(checkpoint.name, 200)}: an unfinished run's checkpoint has no statistics of its codes; "
            "finish the run with train --resume"
        )
    if component is not None and component >= model.K:
        raise InputError(f"--component {component}: allowed are 0 to {model.K - 1}")
    shape = shape_of(stored, model)
    side = round(n**0.5)
    if grid and side * side != n:
        raise InputError(f"-n {n}: --grid takes a square number, such as {side * side} or {(side + 1) ** 2}")
    drawn = (
        iter([grid_codes(model, latents, side, component)]) if grid else draw_codes(model, latents, n, seed, component)
    )
    decoded = (torch.no_grad()(model.decode)(code) for code in drawn)
    if output.suffix == ".npy":
        write_npy((x_hat + (level or 0.0) for x_hat in decoded), output, (n, *shape), how["scaling"])
    else:
        from llgae_cli.figures.contact_sheet import write_sheet

        like = None
        if level is None and len(shape) > 1 and how["centring"] == "sample":
            like = read_training_images(config.task, config.data_dir, how, seed)
        peak = float(stored.data.get("peak", 255.0))
        write_sheet(list(decoded), output, shape, peak, how["centring"], level, like)
    if json:
        print_json({"output": str(output), "n": n})
        return
    print_lines(f"{n} samples in {output}")


def read_training_images(
    task: str, data_dir: Path, how: "Loading", seed: int
) -> "tuple[np.ndarray, np.ndarray] | None":
    """Return random training images, centred (m, D), and their means (m,); None, with a warning, without the data."""
    import torch

    from llgae_cli.tasks import load_task

    try:
        train = load_task(task, data_dir, **how).train
    except InputError as error:
        logger.warning("%s; the darkest tenth of each sample is drawn black", error)
        return None
    chosen = torch.randperm(train.N, generator=torch.Generator().manual_seed(seed))[:LIKE]
    return train.rows(chosen).numpy(), train.means(chosen).numpy()
