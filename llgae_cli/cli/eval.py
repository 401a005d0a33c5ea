"""`llgae eval`."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.console import print_json, print_lines, print_table
from llgae_cli.cli.options import DataDir, Device, Json, NewestOf
from llgae_cli.config import read_config
from llgae_cli.errors import InputError
from llgae_cli.formatting import five_digits, percent


class Split(StrEnum):
    """Which samples to measure on."""

    test = "test"
    train = "train"


def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A checkpoint file (.pkl); or use --config.", metavar="[CHECKPOINT]")
    ] = None,
    config: NewestOf = None,
    split: Annotated[Split, typer.Option(help="Split to evaluate on.")] = Split.test,
    task: Annotated[str | None, typer.Option(help="Evaluate on this task instead of the checkpoint's own.")] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Run `llgae eval`; `app` has its help."""
    (checkpoint,) = choose_checkpoints([checkpoint] if checkpoint else [], config)
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
        print_json({**head, **metrics.plain(), "per_class": per_class or None, "warnings": found.warnings})
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
        print_lines(f"bits for symbols    {metrics.bits:.2f}, k and what other symbols the code has")
    if metrics.per_class:
        print_table(
            ["class", "mean L2"], [[names[label], five_digits(value)] for label, value in metrics.per_class.items()]
        )


def choose_checkpoints(given: Sequence[Path], config: Sequence[Path] | None) -> list[Path]:
    """Return the given checkpoints, or the newest finished one of a config; InputError for both or neither."""
    if bool(given) == bool(config):
        raise InputError("give a checkpoint, or --config FILE for the newest finished one of that config")
    if not config:
        return list(given)
    settings = read_config(config)
    from llgae_cli.storage import find_finished

    return [find_finished(settings.checkpoint_dir, settings)]
