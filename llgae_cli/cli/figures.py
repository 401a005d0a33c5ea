"""`llgae figures`."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.console import print_json, print_lines
from llgae_cli.cli.options import DataDir, Json
from llgae_cli.errors import InputError, nearest, printable

logger = logging.getLogger(__name__)


class Theme(StrEnum):
    """Colours for a light or a dark page."""

    light = "light"
    dark = "dark"


Kinds = Annotated[list[str] | None, typer.Option(help="File type: png, svg or pdf; repeatable. Default: png, svg.")]
ThemeOption = Annotated[Theme, typer.Option(help="Colours for light or dark pages.")]


def check_kinds(kind: list[str] | None) -> tuple[str, ...]:
    """Return the kinds of files to write; InputError for an unknown one."""
    kinds = [part for text in kind or [] for part in text.split(",")]
    for wanted in kinds:
        if wanted not in ("png", "svg", "pdf"):
            raise InputError(f"--kind {printable(wanted)}: png, svg or pdf")
    return tuple(kinds or ("png", "svg"))


def figures(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="One checkpoint; or several, for a comparison.", metavar="CHECKPOINT...")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the figures. Default: CHECKPOINT.figures.", metavar="DIR"),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="training, reconstructions, atlas, usage, classes, spectrum, rate or bits; repeatable. Default: all.",
            metavar="NAME",
        ),
    ] = None,
    kind: Kinds = None,
    theme: ThemeOption = Theme.light,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Run `llgae figures`; `app` has its help."""
    kinds = check_kinds(kind)
    from llgae_cli import figures as drawing

    for name in only or []:
        if name not in drawing.FIGURES:
            near = nearest(name, drawing.FIGURES) or f"; there are {', '.join(drawing.FIGURES)}"
            raise InputError(f"--only {printable(name)}: no such figure{near}")
    from llgae_cli.evaluation import evaluate_checkpoints

    evaluated = evaluate_checkpoints(checkpoints, data_dir, one_task=True)
    first = checkpoints[0]
    folder = output or first.parent / f"{first.name.removesuffix('.pkl')}.figures"
    if len(evaluated) > 1:
        if only:
            raise InputError("--only: for a single checkpoint; several make one picture, the comparison")
        written = drawing.write_comparison(evaluated, folder, kinds, theme.value)
    else:
        written = drawing.write_figures(evaluated[0], folder, tuple(only or drawing.FIGURES), kinds, theme.value)
        for name in only or []:
            if not any(path.stem == name for path in written):
                logger.warning("%s: this checkpoint and its data have nothing to show there", name)
    if json:
        print_json({"checkpoints": [str(path) for path in checkpoints], "figures": [str(path) for path in written]})
        return
    print_lines(*(str(path) for path in written))
