"""`llgae figures` and `llgae report`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llgae_cli.cli.evaluating import chosen_checkpoints
from llgae_cli.cli.options import DataDir, Json, NewestOf
from llgae_cli.cli.output import Progressing, print_json, say
from llgae_cli.errors import InputError, nearest, printable


class Theme(StrEnum):
    """Colours for a light or a dark page."""

    light = "light"
    dark = "dark"


Kinds = Annotated[list[str] | None, typer.Option(help="png, svg or pdf; by default png and svg.")]
ThemeOption = Annotated[Theme, typer.Option(help="Colours for a light or a dark page.")]


def checked_kinds(kind: list[str] | None) -> tuple[str, ...]:
    """The kinds of files to write; InputError for one that cannot be."""
    kinds = [part for text in kind or [] for part in text.split(",")]
    for wanted in kinds:
        if wanted not in ("png", "svg", "pdf"):
            raise InputError(f"--kind {printable(wanted)}: png, svg or pdf")
    return tuple(kinds or ("png", "svg"))


def figures(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="A checkpoint; several are drawn side by side.", metavar="CHECKPOINT...")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write to; by default beside it.", metavar="DIR")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="training, reconstructions, atlas, usage, classes, spectrum; all by default.", metavar="NAME"
        ),
    ] = None,
    kind: Kinds = None,
    theme: ThemeOption = Theme.light,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Run `llgae figures`; `app` has its help."""
    kinds = checked_kinds(kind)
    from llgae_cli import figures as drawing

    for name in only or []:
        if name not in drawing.FIGURES:
            near = nearest(name, drawing.FIGURES) or f"; there are {', '.join(drawing.FIGURES)}"
            raise InputError(f"--only {printable(name)}: no such figure{near}")
    subjects = [drawing.look(checkpoint, data_dir) for checkpoint in checkpoints]
    for subject in subjects:
        for warning in subject.warnings:
            Progressing(quiet=True).warn(warning)
    first = checkpoints[0]
    folder = output or first.parent / f"{first.name.removesuffix('.pkl')}.figures"
    if len(subjects) > 1:
        if only:
            raise InputError("--only: for a single checkpoint; several make one picture, the comparison")
        written = drawing.write_comparison(subjects, folder, kinds, theme.value)
    else:
        written = drawing.write(subjects[0], folder, tuple(only or drawing.FIGURES), kinds, theme.value)
        for name in only or []:
            if not any(path.stem == name for path in written):
                Progressing(quiet=True).warn(f"{name}: this checkpoint and its data have nothing to show there")
    if json:
        print_json({"checkpoints": [str(path) for path in checkpoints], "figures": [str(path) for path in written]})
        return
    say(*(str(path) for path in written))


def report(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="Checkpoints, the folder of one sweep, or --config.", metavar="[CHECKPOINT...|SWEEP]"),
    ] = None,
    config: NewestOf = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.", metavar="FILE")] = Path(
        "report.html"
    ),
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Run `llgae report`; `app` has its help."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"-o {printable(output, 200)}: an .html file is expected")
    chosen = chosen_checkpoints(sources or [], config)
    from llgae_cli.report import write_report

    for warning in write_report(chosen, output, data_dir):
        Progressing(quiet=True).warn(warning)
    size = output.stat().st_size
    if json:
        print_json({"report": str(output), "bytes": size})
        return
    say(f"{output}  {size / 1e6:.2f} MB")
