"""`llgae figures`."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.console import print_json, print_lines
from llgae_cli.cli.options import DataDir, Json
from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.storage import find_checkpoint

logger = logging.getLogger(__name__)


class Theme(StrEnum):
    """Colours for a light or a dark page."""

    light = "light"
    dark = "dark"


Kinds = Annotated[list[str] | None, typer.Option(help="File type: png, svg or pdf; repeatable. Default: png, svg.")]
Colour = Annotated[
    str | None,
    typer.Option(help="Variable of a table whose value colours the codes. Default: the labels.", metavar="NAME"),
]
Over = Annotated[
    list[str] | None,
    typer.Option(help="Variable of a table that the map of components is over; give two.", metavar="NAME"),
]
ThemeOption = Annotated[Theme, typer.Option(help="Colours for light or dark pages.")]


def check_kinds(kind: list[str] | None) -> tuple[str, ...]:
    """Return the kinds of files to write; InputError for an unknown one."""
    kinds = [part for text in kind or [] for part in text.split(",")]
    for wanted in kinds:
        if wanted not in ("png", "svg", "pdf"):
            raise InputError(f"--kind {printable(wanted)}: png, svg or pdf")
    return tuple(kinds or ("png", "svg"))


def check_over(over: list[str] | None) -> tuple[str, ...]:
    """Return the two variables of the map, or none; InputError for another number."""
    if over and len(over) != 2:
        raise InputError(f"--over: a map is over two variables, not {len(over)}: give --over twice")
    return tuple(over or ())


def figures(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="One checkpoint (file or id); or several, for a comparison.",
            metavar="CHECKPOINT...",
            parser=find_checkpoint,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the figures. Default: CHECKPOINT.figures.", metavar="DIR"),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="training, reconstructions (images), atlas, usage, classes, spectrum, rate, bits; of tables also "
            "means, axes, parity, codes, residuals, map, samples; repeatable. Default: all.",
            metavar="NAME",
        ),
    ] = None,
    kind: Kinds = None,
    theme: ThemeOption = Theme.light,
    colour: Colour = None,
    over: Over = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Run `llgae figures`; `app` has its help."""
    kinds, axes = check_kinds(kind), check_over(over)
    from llgae_cli import figures as drawing

    for name in only or []:
        if name not in drawing.NAMES:
            near = nearest(name, drawing.NAMES) or f"; there are {', '.join(drawing.NAMES)}"
            raise InputError(f"--only {printable(name)}: no such figure{near}")
    from llgae_cli.evaluation import evaluate_checkpoints

    evaluated = evaluate_checkpoints(checkpoints, data_dir, one_task=True)
    first = checkpoints[0]

    def report(path: Path) -> None:
        if not json:
            print_lines(str(path))

    folder = output or first.parent / f"{first.name.removesuffix('.pkl')}.figures"
    if len(evaluated) > 1:
        if colour is not None or axes:
            raise InputError("--colour and --over: for a single checkpoint; several make one picture, the comparison")
        if only:
            raise InputError("--only: for a single checkpoint; several make one picture, the comparison")
        written = drawing.write_comparison(evaluated, folder, kinds, theme.value)
        for path in written:
            report(path)
    else:
        chosen = tuple(only or drawing.NAMES)
        written = drawing.write_figures(
            evaluated[0], folder, chosen, kinds, theme.value, colour=colour, over=axes, on_written=report
        )
        for name in only or []:
            if not any(path.stem == name for path in written):
                logger.warning("%s: this checkpoint and its data have nothing to show there", name)
    if json:
        print_json({"checkpoints": [str(path) for path in checkpoints], "figures": [str(path) for path in written]})
