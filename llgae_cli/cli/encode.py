"""`llgae encode`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.console import print_json, print_lines
from llgae_cli.cli.options import CheckpointFile, DataDir, Json
from llgae_cli.cli.over_shards import Address, EngineOption, Jobs, Resume, Sharing, names_folder, run_over_shards
from llgae_cli.errors import InputError, printable
from llgae_cli.formatting import five_digits


class Part(StrEnum):
    """Which samples to encode."""

    test = "test"
    train = "train"
    all = "all"


def encode(
    checkpoint: CheckpointFile,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Codes file to write (.npz), or a folder: a file for each shard.", metavar="FILE|DIR"
        ),
    ],
    task: Annotated[
        str | None, typer.Option(help="Encode this task instead of the checkpoint's own, for instance npy:PATH.")
    ] = None,
    split: Annotated[Part | None, typer.Option(help="Split to encode. Default: test; all for --task npy:FILE.")] = None,
    data_dir: DataDir = None,
    jobs: Jobs = None,
    resume: Resume = False,
    engine: EngineOption = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Run `llgae encode`; `app` has its help."""
    sharing = Sharing(jobs, resume, engine, address)
    if names_folder(output, sharing):
        run_over_shards(
            "encode", checkpoint, task, output, {}, split=split and split.value, data_dir=data_dir,
            sharing=sharing, json=json,
        )  # fmt: skip
        return
    if output.suffix != ".npz":
        raise InputError(f"-o {printable(output, 200)}: an .npz file or a folder is expected")
    from llgae_cli.evaluation.encoding import write_codes
    from llgae_cli.factory import describe_loading, restore
    from llgae_cli.tasks import load_samples

    model, loaded, config = restore(checkpoint)
    how = describe_loading(config, loaded, other=task is not None)
    samples = load_samples(task or config.task, split and split.value, data_dir or config.data_dir, **how)
    if samples.D != model.D:
        raise InputError(f"{printable(task or config.task)}: samples of {samples.D} values; the model's have {model.D}")
    mean_l2 = write_codes(model, samples, output)
    size = output.stat().st_size
    if json:
        print_json({"codes": str(output), "n": samples.N, "mean_l2": mean_l2, "bytes": size})
        return
    print_lines(
        f"codes    {output}",
        f"samples  {samples.N}, {size / samples.N:.0f} bytes each",
        f"mean L2  {five_digits(mean_l2)}",
    )
