"""`llgae compare`."""

from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.options import DataDir, Json
from llgae_cli.cli.output import Progressing, print_json, table
from llgae_cli.cli.picturing import Kinds, Theme, ThemeOption, checked_kinds
from llgae_cli.formatting import five_digits

COLUMNS = [
    "model", "K", "E", "parameters", "bits", "bits coded", "mean L2", "mean L2 coded", "train mean L2",
    "seconds to train", "encode us/sample", "PSNR", "checkpoint",
]  # fmt: skip


def compare(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Checkpoints of one task, of any models.", metavar="CHECKPOINT...")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.", metavar="FOLDER")] = Path(
        "compare"
    ),
    kind: Kinds = None,
    theme: ThemeOption = Theme.light,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Run `llgae compare`; `app` has its help."""
    kinds = checked_kinds(kind)
    from llgae_cli import figures, standings

    progress = Progressing()
    subjects = standings.look_at_all(checkpoints, data_dir)
    for subject in subjects:
        for warning in subject.warnings:
            progress.warn(f"{subject.path.name}: {warning}")
    rows = standings.measure(subjects, progress.note)
    drawn = figures.write_tradeoffs([row.plain() for row in rows], output, kinds, theme.value)
    drawn += figures.write_comparison(subjects, output, kinds, theme.value, walks=False)
    samples, threads = subjects[0].task.test.N, standings.threads()
    if json:
        head = {"task": subjects[0].task.name, "test_samples": samples, "threads": threads}
        print_json({**head, "checkpoints": [row.plain() for row in rows], "figures": [str(path) for path in drawn]})
        return
    table(
        COLUMNS,
        [
            [
                row.model, str(row.K), str(row.E), str(row.parameters), f"{row.bits_float:.1f}",
                f"{row.bits_coded:.1f}", five_digits(row.mean_l2), five_digits(row.mean_l2_coded),
                five_digits(row.train_mean_l2),
                f"{row.train_seconds:.2f}", f"{1e6 * row.encode_seconds:.1f}", f"{row.psnr:.2f}",
                Path(row.checkpoint).name,
            ]
            for row in rows
        ],
    )  # fmt: skip
    timed = min(samples, standings.TIMED_SAMPLES)
    progress.note(
        f"{subjects[0].task.name}: {samples} test samples; rows in the order of test mean L2, which is no choice of a "
        f"model; encoding timed here on the CPU with {threads} "
        f"thread{'s' if threads > 1 else ''}, median of {standings.PASSES} passes over {timed} samples; "
        "seconds to train as the checkpoints say"
    )
    for path in drawn:
        progress.note(str(path))
