"""`llgae eval`."""

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llgae_cli.cli.console import print_json, print_lines, print_table
from llgae_cli.cli.options import DataDir, Device, Json, NewestOf
from llgae_cli.cli.over_shards import Address, EngineOption, Jobs, Resume, Sharing, names_folder, run_over_shards
from llgae_cli.config import read_config
from llgae_cli.errors import InputError, printable
from llgae_cli.formatting import five_digits, percent
from llgae_cli.storage import find_checkpoint

if TYPE_CHECKING:
    from llgae_cli.evaluation import Evaluated
    from llgae_cli.evaluation.variables import Variables

# Parts of the bits, as `evaluation.rate.BitSplit` names them; the first two are shown even where they are zero.
PARTS = {
    "k": "k",
    "latents": "latents",
    "shifts": "shifts",
    "mean": "mean of the sample",
    "raw": "samples stored as they are",
    "framing": "framing",
}
SHOWN = ("k", "latents")
WORST = 10  # variables that are printed


class Split(StrEnum):
    """Which samples to measure on."""

    test = "test"
    train = "train"


def evaluate(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="A checkpoint file (.pkl) or its id; or use --config.", metavar="[CHECKPOINT]", parser=find_checkpoint
        ),
    ] = None,
    config: NewestOf = None,
    split: Annotated[Split, typer.Option(help="Split to evaluate on.")] = Split.test,
    task: Annotated[str | None, typer.Option(help="Evaluate on this task instead of the checkpoint's own.")] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Evaluate shards: a folder for the figures of each.", metavar="DIR"),
    ] = None,
    jobs: Jobs = None,
    resume: Resume = False,
    engine: EngineOption = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Run `llgae eval`; `app` has its help."""
    (checkpoint,) = choose_checkpoints([checkpoint] if checkpoint else [], config)
    sharing = Sharing(jobs, resume, engine, address)
    if names_folder(output, sharing):
        assert output is not None
        if split is not Split.test or device not in ("auto", "cpu"):
            raise InputError("--split and --device are not for shards, whose rows are all used, on the CPU")
        run_over_shards("eval", checkpoint, task, output, {}, data_dir=data_dir, sharing=sharing, json=json)
        return
    if output is not None:
        raise InputError(f"-o {printable(output, 200)}: a folder is expected, for the figures of each shard")
    from llgae_cli.evaluation import evaluate_checkpoint

    found = evaluate_checkpoint(checkpoint, split.value, task, data_dir, device)
    metrics, classes = found.metrics, found.task.classes
    names = {label: classes[label] if classes else str(label) for label in metrics.per_class or {}}
    if json:
        per_class = {names[label]: value for label, value in (metrics.per_class or {}).items()}
        head = {
            "checkpoint": str(checkpoint),
            "task": found.task.name,
            "split": found.split,
            "recorded": found.recorded,
        }
        variables = None if found.variables is None else found.variables.plain()
        more = {"rate": describe_rate(found, names), "variables": variables, "warnings": found.warnings}
        print_json({**head, **metrics.plain(), "per_class": per_class or None, **more})
        return
    K = len(metrics.usage)
    recorded = "" if found.recorded is None else f" (recorded {five_digits(found.recorded, 5)})"
    print_lines(
        f"task                {found.task.name}, {found.split}: {metrics.n} samples",
        f"mean L2             {five_digits(metrics.mean_l2, 5)}{recorded}",
        f"explained variance  {percent(metrics.explained_variance)}",
        f"PSNR                {metrics.psnr:.2f} dB",
    )
    if K > 1:
        print_lines(
            f"components          {K - metrics.empty} of {K} in use, perplexity {metrics.perplexity:.2f}",
            "use of components   " + " ".join(f"{share:.1%}" for share in sorted(metrics.usage, reverse=True)[:20]),
        )
    if metrics.bits:
        print_lines(f"entropy of symbols  {metrics.bits:.2f} bits, k and what other symbols the code has")
    print_rate(found)
    if found.variables is not None:
        print_variables(found.variables)
    if metrics.per_class:
        coded = found.bit_split.per_class if found.bit_split is not None else None
        table = [
            [names[label], five_digits(value), *(show_coded(coded.get(label)) if coded else [])]
            for label, value in metrics.per_class.items()
        ]
        print_table(["class", "mean L2", *(["bits", "mean squared error"] if coded else [])], table)


def print_variables(variables: "Variables") -> None:
    """Print the worst variables: R^2 of all rows and of the worst component, RMSE in own units, and NRMSE."""
    import numpy as np

    r2 = variables.r2[np.isfinite(variables.r2)]
    if not len(r2):
        return
    worst = variables.sort_worst()[:WORST]
    print_lines(
        f"R^2 of variables    median {np.median(r2):.4f}, worst {r2.min():.4f}; "
        f"{'all' if len(worst) == len(variables.names) else f'the {len(worst)} worst of {len(variables.names)}'}:"
    )
    table = []
    for d in worst.tolist():
        own = variables.r2_by_component[:, d]
        least = f"{np.nanmin(own):.4f} (k = {int(np.nanargmin(own))})" if np.isfinite(own).any() else "-"
        cells = [f"{variables.r2[d]:.4f}", f"{variables.rmse[d]:.5g}", f"{variables.nrmse[d]:.4f}", least]
        table.append([printable(variables.names[d], 40), *(["-"] * 4 if np.isnan(variables.r2[d]) else cells)])
    print_table(["variable", "R^2", "RMSE", "NRMSE", "R^2 of the worst component"], table)


def print_rate(found: "Evaluated") -> None:
    """Print the rate: for a codec the parts of the bits and the curve over steps, else the estimate."""
    split, rate = found.bit_split, found.rate
    if split is None:
        print_lines(
            f"bits, estimated     {rate.bits_coded:.2f} a sample at mean L2 {five_digits(rate.mean_l2_coded, 5)}; "
            "there is no codec"
        )
        return
    parts = ", ".join(
        f"{PARTS[name]} {bits:.2f}" for name, bits in split.parts().items() if name in SHOWN or bits > 0.005
    )
    print_lines(
        f"bits                {split.bits:.2f} a sample at step {split.step:.5g}, mean squared error "
        f"{five_digits(split.mean_squared_error, 5)} ({split.n} samples)",
        f"parts of the bits   {parts}",
        f"file of all samples {split.bits + split.framing:.2f} bits a sample, with framing",
    )
    print_table(
        ["step", f"bits ({found.rate_curve[0].n} samples)", "mean squared error"],
        [[f"{p.step:.5g}", f"{p.bits:.2f}", five_digits(p.mean_squared_error, 5)] for p in found.rate_curve],
    )


def show_coded(coded: tuple[float, float] | None) -> list[str]:
    """Return the cells of a class: bits, and the error of its decoded samples; dashes where none was measured."""
    return ["-", "-"] if coded is None else [f"{coded[0]:.2f}", five_digits(coded[1])]


def describe_rate(found: "Evaluated", names: dict[int, str]) -> dict[str, Any]:
    """Return the rate for --json: the plain numbers, the parts, classes by name, and the curve."""
    split = found.bit_split
    if split is None:
        return {**asdict(found.rate), "split": None, "curve": []}
    per_class = {
        names[label]: {"bits": bits, "mean_squared_error": error}
        for label, (bits, error) in (split.per_class or {}).items()
    }
    return {
        **asdict(found.rate),
        "split": {**split.plain(), "per_class": per_class or None},
        "curve": [asdict(point) for point in found.rate_curve],
    }


def choose_checkpoints(given: Sequence[Path], config: Sequence[Path] | None) -> list[Path]:
    """Return the given checkpoints, or the newest finished one of a config; InputError for both or neither."""
    if bool(given) == bool(config):
        raise InputError("give a checkpoint, or --config FILE for the newest finished one of that config")
    if not config:
        return list(given)
    settings = read_config(config)
    from llgae_cli.storage import find_finished

    return [find_finished(settings.checkpoint_dir, settings)]
