"""`llgae compare`."""

import logging
import math
from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.console import print_json, print_table
from llgae_cli.cli.figures import Kinds, Theme, ThemeOption, check_kinds
from llgae_cli.cli.options import DataDir, Json
from llgae_cli.errors import InputError
from llgae_cli.formatting import five_digits
from llgae_cli.storage import find_checkpoint

logger = logging.getLogger(__name__)

COLUMNS = [
    "model", "K", "E", "parameters", "bits", "bits coded", "mean L2", "mean L2 coded", "train mean L2",
    "seconds to train", "encode us/sample", "PSNR", "checkpoint",
]  # fmt: skip
OF_FILES = ["bits in a file", "error of a file"]  # columns with --bits, before the last


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
    bits: Annotated[
        float | None,
        typer.Option(help="Also code the test samples at so many bits a sample, and draw what such files decode to."),
    ] = None,
    kind: Kinds = None,
    theme: ThemeOption = Theme.light,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Run `llgae compare`; `app` has its help."""
    kinds = check_kinds(kind)
    if bits is not None:
        check_bits(checkpoints, bits)
    import torch

    from llgae_cli import evaluation, figures
    from llgae_cli.evaluation import comparison
    from llgae_cli.evaluation.same_rate import code_at_rate

    by_mean_l2 = evaluation.evaluate_checkpoints(checkpoints, data_dir, one_task=True)
    by_mean_l2.sort(key=lambda one: one.metrics.mean_l2)
    evaluated, best, coded = by_mean_l2, by_mean_l2[0], []
    if bits is not None:
        shown, _ = figures.choose_compared(best)
        for one in evaluated:
            logger.info("coding the test samples by %s at %g bits", one.title, bits)
            coded.append(code_at_rate(one, bits, shown))
        by_error = sorted(range(len(coded)), key=lambda i: coded[i].mean_squared_error)
        evaluated, coded = [evaluated[i] for i in by_error], [coded[i] for i in by_error]
    rows = comparison.compare(evaluated, coded)
    drawn = figures.write_tradeoffs(rows, evaluated, output, kinds, theme.value)
    drawn += figures.write_comparison(by_mean_l2, output, kinds, theme.value, walks=False)
    if bits is not None:
        drawn += figures.write_same_bits(evaluated, coded, best, output, kinds, theme.value)
    task, samples, threads = evaluated[0].task.name, evaluated[0].task.test.N, torch.get_num_threads()
    if json:
        head = {"task": task, "test_samples": samples, "threads": threads}
        print_json({**head, "checkpoints": rows, "figures": [str(path) for path in drawn]})
        return
    print_table(
        [*COLUMNS[:-1], *(OF_FILES if coded else []), COLUMNS[-1]],
        [
            [
                row["model"], str(row["K"]), str(row["E"]), str(row["parameters"]), f"{row['bits_float']:.1f}",
                f"{row['bits_coded']:.1f}{'*' if row['bits_estimated'] else ''}", five_digits(row["mean_l2"]),
                five_digits(row["mean_l2_coded"]), five_digits(row["train_mean_l2"]), f"{row['train_seconds']:.2f}",
                f"{1e6 * row['encode_seconds']:.1f}", f"{row['psnr']:.2f}",
                *([f"{row['file_bits']:.2f}", five_digits(row["file_mean_squared_error"])] if coded else []),
                Path(row["checkpoint"]).name,
            ]
            for row in rows
        ],
    )  # fmt: skip
    order = "mean squared error of a file" if coded else "test mean L2"
    timed = min(samples, comparison.TIMED_SAMPLES)
    logger.info(
        f"{task}: {samples} test samples; rows in the order of {order}, which is no choice of a "
        f"model; encoding timed here on the CPU with {threads} thread{'s' if threads > 1 else ''}, median of "
        f"{comparison.PASSES} passes over {timed} samples, or {comparison.TIMED_SECONDS:g} s; "
        "seconds to train as the checkpoints say"
    )
    if any(row["bits_estimated"] for row in rows):
        logger.info("*: an estimate from entropies of rounded latents, without each sample's mean: there is no codec")
    if coded:
        logger.info(f"files: {coded[0].n} test samples, coded with --bits {bits:g}; sizes without the model")
    for path in drawn:
        logger.info(path)


def check_bits(checkpoints: list[Path], bits: float) -> None:
    """Raise InputError for a rate that is no positive number, and for a checkpoint without a codec."""
    if not (math.isfinite(bits) and bits > 0):
        raise InputError(f"--bits {bits:g}: a positive number is expected")
    from llgae_cli.codec.codec import Codec

    for path in checkpoints:
        Codec.load(path)
