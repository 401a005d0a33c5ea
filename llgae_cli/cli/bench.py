"""`llgae bench`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llgae_cli.cli.console import ERRORS, print_json, print_table, set_up_logging
from llgae_cli.cli.options import Device, Json, Quiet
from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.formatting import five_digits
from llgae_cli.storage import find_checkpoint

if TYPE_CHECKING:
    from llgae_cli.bench import Row

CODING_HEADERS = [
    "method",
    "setting",
    "bits",
    "squared error",
    "model kB",
    "trained on",
    "train s",
    "code s",
    "decode s",
]


def bench(
    only: Annotated[
        list[str] | None,
        typer.Argument(
            help="iteration, steps, gradient, growth, candidates, peers, steady, rate, novelty, tables or bounds. "
            "Default: the first seven; each of the others takes minutes.",
            metavar="NAME",
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="Data set to measure on.")] = "fashion-mnist",
    data_dir: Annotated[Path, typer.Option(help="Folder with the data sets; downloads go there.")] = Path("data"),
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            help="rate: also draw the curve of this checkpoint's codec, a file or an id; repeatable.",
            metavar="CHECKPOINT",
            parser=find_checkpoint,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for bench.json and pictures.")] = Path("build"),
    device: Device = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0: as torch chooses.", min=0)] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run `llgae bench`; `app` has its help."""
    import torch

    from llgae_cli.bench import BENCHES, COMPARISONS, ON_OWN_DATA, run_benches
    from llgae_cli.bench.output import save
    from llgae_cli.bench.timing import machine
    from llgae_cli.factory import choose_device
    from llgae_cli.tasks import load_task
    from llgae_cli.threads import limit_threads

    for name in only or []:
        if name not in BENCHES:
            raise InputError(f"bench {printable(name)}: known are {', '.join(BENCHES)}{nearest(name, BENCHES)}")
    if checkpoint and "rate" not in (only or []):
        raise InputError("--checkpoint: is used by rate only: llgae bench rate --checkpoint CHECKPOINT")
    set_up_logging(quiet)
    limit_threads(threads)
    where = choose_device(device)
    names = only or [name for name in BENCHES if name not in COMPARISONS]
    loaded = None
    if not ON_OWN_DATA.keys() >= set(names):
        loaded = load_task(task, data_dir, "sample", scaling=None).to(where)
    rows = []
    for row in run_benches(names, loaded, checkpoint or ()):
        rows.append(row)
        if not quiet and not json:
            ERRORS.print(_describe(row), highlight=False, soft_wrap=True)
    document: dict[str, Any] = {"machine": machine(where), "torch": torch.__version__}
    document |= {"task": None if loaded is None else loaded.name, "rows": [asdict(row) for row in rows]}
    save(document, output)
    if json:
        print_json(document)
        return
    codings = [_describe_coding(row) for row in rows if row.coding is not None]
    if codings:
        print_table(CODING_HEADERS, codings)
    cells = [
        [row.bench, row.what, _text(row.value, row.unit), _text(row.against, row.unit), _text(row.ratio, "")]
        for row in rows
        if row.coding is None
    ]
    if cells:
        print_table(["bench", "what; against", "value", "against", "ratio"], cells)


def _describe(row: "Row") -> str:
    """Return a row as a line that is shown as soon as it is measured."""
    ratio = "" if row.ratio is None else f"ratio {_text(row.ratio, '')}"
    numbers = [_text(row.value, row.unit), _text(row.against, row.unit), ratio]
    return f"{row.what}: {'; '.join(filter(None, numbers))}"


def _describe_coding(row: "Row") -> list[str]:
    """Return the cells of a point of a rate-distortion curve, in the order of CODING_HEADERS."""
    coding = row.coding
    assert coding is not None and row.at is not None
    return [
        coding.method,
        coding.setting,
        f"{row.at:.1f}",
        five_digits(row.value),
        f"{coding.model_bytes / 1e3:.0f}",
        str(coding.train_rows),
        *(f"{took:.2f}" for took in (coding.train_seconds, coding.code_seconds, coding.decode_seconds)),
    ]


def _text(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.4g} {unit}".strip()
