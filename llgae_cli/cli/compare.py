"""`llgae compare`."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.console import print_json, print_table
from llgae_cli.cli.figures import Kinds, Theme, ThemeOption, check_kinds
from llgae_cli.cli.options import DataDir, Json
from llgae_cli.formatting import five_digits
from llgae_cli.storage import find_checkpoint

logger = logging.getLogger(__name__)

COLUMNS = [
    "model", "K", "E", "parameters", "bits", "bits coded", "mean L2", "mean L2 coded", "train mean L2",
    "seconds to train", "encode us/sample", "PSNR", "checkpoint",
]  # fmt: skip


def compare(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="Checkpoints of one task, files or ids; their models may differ.",
            metavar="CHECKPOINT...",
            parser=find_checkpoint,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the figures.", metavar="FOLDER")] = Path(
        "compare"
    ),
    kind: Kinds = None,
    theme: ThemeOption = Theme.light,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Run `llgae compare`; `app` has its help."""
    kinds = check_kinds(kind)
    import torch

    from llgae_cli import evaluation, figures
    from llgae_cli.evaluation import comparison

    evaluated = evaluation.evaluate_checkpoints(checkpoints, data_dir, one_task=True)
    evaluated.sort(key=lambda one: one.metrics.mean_l2)
    rows = comparison.compare(evaluated)
    drawn = figures.write_tradeoffs(rows, evaluated, output, kinds, theme.value)
    drawn += figures.write_comparison(evaluated, output, kinds, theme.value, walks=False)
    task, samples, threads = evaluated[0].task.name, evaluated[0].task.test.N, torch.get_num_threads()
    if json:
        head = {"task": task, "test_samples": samples, "threads": threads}
        print_json({**head, "checkpoints": rows, "figures": [str(path) for path in drawn]})
        return
    print_table(
        COLUMNS,
        [
            [
                row["model"], str(row["K"]), str(row["E"]), str(row["parameters"]), f"{row['bits_float']:.1f}",
                f"{row['bits_coded']:.1f}{'*' if row['bits_estimated'] else ''}", five_digits(row["mean_l2"]),
                five_digits(row["mean_l2_coded"]), five_digits(row["train_mean_l2"]), f"{row['train_seconds']:.2f}",
                f"{1e6 * row['encode_seconds']:.1f}", f"{row['psnr']:.2f}", Path(row["checkpoint"]).name,
            ]
            for row in rows
        ],
    )  # fmt: skip
    timed = min(samples, comparison.TIMED_SAMPLES)
    logger.info(
        f"{task}: {samples} test samples; rows in the order of test mean L2, which is no choice of a "
        f"model; encoding timed here on the CPU with {threads} "
        f"thread{'s' if threads > 1 else ''}, median of {comparison.PASSES} passes over {timed} samples; "
        "seconds to train as the checkpoints say"
    )
    if any(row["bits_estimated"] for row in rows):
        logger.info("*: an estimate from entropies of rounded latents, without each sample's mean: there is no codec")
    for path in drawn:
        logger.info(path)
