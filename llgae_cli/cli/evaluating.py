"""`llgae eval`."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.options import DataDir, Device, Json, NewestOf
from llgae_cli.cli.output import Progressing, print_json, say, table
from llgae_cli.config import read_config
from llgae_cli.errors import InputError
from llgae_cli.formatting import five_digits, percent


class Split(StrEnum):
    """Which samples to measure on."""

    test = "test"
    train = "train"


def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A checkpoint file (.pkl), or --config.", metavar="[CHECKPOINT]")
    ] = None,
    config: NewestOf = None,
    split: Annotated[Split, typer.Option(help="Samples to measure on.")] = Split.test,
    task: Annotated[str | None, typer.Option(help="Another task than the checkpoint's own.")] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Run `llgae eval`; `app` has its help."""
    (checkpoint,) = chosen_checkpoints([checkpoint] if checkpoint else [], config)
    from llgae_cli import experiment

    found = experiment.evaluate(checkpoint, split.value, task, data_dir, device)
    for warning in found.warnings:
        Progressing(quiet=True).warn(warning)
    evaluation = found.evaluation
    names = {label: found.classes[label] if found.classes else str(label) for label in evaluation.per_class or {}}
    if json:
        per_class = {names[label]: value for label, value in (evaluation.per_class or {}).items()}
        head = {"checkpoint": str(checkpoint), "task": found.task, "split": found.split, "recorded": found.recorded}
        print_json({**head, **evaluation.plain(), "per_class": per_class or None, "warnings": found.warnings})
        return
    K = len(evaluation.usage)
    recorded = "" if found.recorded is None else f" (recorded {five_digits(found.recorded, 5)})"
    say(
        f"task                {found.task}, {found.split}: {evaluation.n} samples",
        f"mean L2             {five_digits(evaluation.mean_l2, 5)}{recorded}",
        f"explained variance  {percent(evaluation.explained_variance)}",
        f"PSNR                {evaluation.psnr:.2f} dB",
    )
    if K > 1:
        say(
            f"components          {K - evaluation.empty} of {K} in use, perplexity {evaluation.perplexity:.2f}",
            "use of components   " + " ".join(f"{share:.1%}" for share in sorted(evaluation.usage, reverse=True)[:20]),
        )
    if evaluation.bits:
        say(f"bits for symbols    {evaluation.bits:.2f}, k and what other symbols the code has")
    if evaluation.per_class:
        table(
            ["class", "mean L2"], [[names[label], five_digits(value)] for label, value in evaluation.per_class.items()]
        )


def chosen_checkpoints(given: Sequence[Path], config: Sequence[Path] | None) -> list[Path]:
    """The checkpoints given, or the newest finished one of a config; InputError where both or neither are there."""
    if bool(given) == bool(config):
        raise InputError("give a checkpoint, or --config FILE for the newest finished one of that config")
    if not config:
        return list(given)
    settings = read_config(config, [], Progressing(quiet=True).warn)
    from llgae_cli.restoring import find_finished

    return [find_finished(settings.checkpoint_dir, settings)]
