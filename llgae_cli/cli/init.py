"""`llgae init`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from llgae_cli.cli.console import print_lines, set_up_logging, write_stdout
from llgae_cli.cli.table_arguments import Columns, Labels, Missing, Test, parse_options
from llgae_cli.errors import InputError, RunError, explain, printable, show_path

if TYPE_CHECKING:
    from llgae_cli.proposal import Proposal, Survey
    from llgae_cli.tasks import TableOptions, Task

SHOWN = 6  # names in a comment, at most


def init(
    task: Annotated[str, typer.Argument(help="Your data: a file, KIND:PATH or images:FOLDER.", metavar="DATA")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The config to write; - prints it.")] = Path(
        "config.yaml"
    ),
    columns: Columns = None,
    labels: Labels = None,
    test: Test = None,
    missing: Missing = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    data_dir: Annotated[Path, typer.Option(help="Folder with the data sets; converted files go there.")] = Path("data"),
) -> None:
    """Run `llgae init`; `app` has its help."""
    set_up_logging(quiet=True)  # the quick fits say nothing
    printed = str(output) == "-"
    if not printed and output.exists() and not force:
        raise InputError(f"{show_path(output)}: exists; --force overwrites it, -o names another file")
    options = parse_options(columns, labels, test, missing)
    from llgae_cli import proposal
    from llgae_cli.tasks import load_task

    loaded = load_task(task, data_dir, "auto", scaling="auto", options=options)
    found = proposal.survey(loaded.train)
    chosen = proposal.propose(found.samples)
    text = write_config(loaded, options, found, chosen, data_dir)
    if printed:
        write_stdout(text)
        return
    try:
        with open(output, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RunError(f"{show_path(output)}: cannot be written ({explain(error)})") from None
    print_lines(
        f"data    {loaded.train.N} training and {loaded.test.N} test rows of {loaded.train.D} values",
        f"chosen  K = {chosen.K}, embed-dim = {chosen.E}, by {len(chosen.trials)} quick fits",
        f"config  {output}",
        f"next    llgae train --config {output}",
    )


def write_config(task: "Task", options: "TableOptions", found: "Survey", chosen: "Proposal", data_dir: Path) -> str:
    """Return the commented YAML config for a data set, what was found in it, and the K and E that were chosen."""
    table = task.train.scaling is not None
    names = task.train.names or tuple(f"column {j}" for j in range(task.train.D))
    seen = found.samples.N
    spread = found.spread[found.spread > 0]
    lines = [
        f"# {task.train.N} training and {task.test.N} test rows of {' x '.join(map(str, task.shape))} values, "
        f"{task.train.stored}.",
        f"# Source: {printable(task.source, 200)}.",
        f"# In {seen} training rows: {found.duplicates} repeat another row; "
        f"{len(found.constant)} of {task.train.D} columns are constant.",
        f"# Standard deviations of the columns: {spread.min():.3g} to {spread.max():.3g}.",
    ]
    if found.constant:
        shown = ", ".join(printable(names[j], 40) for j in found.constant[:SHOWN])
        lines.append(f"# Constant: {shown}{' ...' if len(found.constant) > SHOWN else ''}")
    if task.classes is not None:
        shown = ", ".join(printable(name, 40) for name in task.classes[:SHOWN])
        lines.append(f"# Labels: {len(task.classes)} classes: {shown}{' ...' if len(task.classes) > SHOWN else ''}")
    lines.append(_pair("task", task.name))
    for name in options.given:
        value = getattr(options, name)
        lines.append(_pair(name, list(value) if isinstance(value, tuple) else value))
    if data_dir != Path("data"):
        lines.append(_pair("data-dir", str(data_dir)))
    lines += _centring(table)
    best = min(trial.variance for trial in chosen.trials)
    here = next(trial for trial in chosen.trials if (trial.K, trial.E) == (chosen.K, chosen.E))
    lines += [
        "",
        f"# K and embed-dim: {len(chosen.trials)} quick fits, measured on held-out training rows"
        f"{'.' if chosen.complete else '; the time limit left out larger ones.'}",
        "# The residual variance mean L2 * D / (D - E) falls with E only while a latent explains more than noise.",
        "# Chosen: the smallest E, then K, within 10 % of the best residual variance or 0.1 % of the total variance:",
        f"# {here.variance:.4g}; the best is {best:.4g}"
        f"{' (in columns divided by their standard deviation)' if table else ''}.",
        *(
            f"#   K {trial.K:<3d} E {trial.E:<3d} mean L2 {trial.mean_l2:<10.4g} residual variance {trial.variance:.4g}"
            for trial in sorted(chosen.trials, key=lambda trial: trial.variance)[:SHOWN]
        ),
        _pair("K", chosen.K),
        _pair("embed-dim", chosen.E),
    ]
    return "\n".join(lines) + "\n"


def _centring(table: bool) -> list[str]:
    if table:
        return [
            "",
            "# A row of a table has values of different units: their mean says nothing, so it is not subtracted.",
            _pair("centring", "none"),
            "# Columns of different scales: each is divided by its standard deviation.",
            _pair("scaling", "std"),
        ]
    return [
        "",
        "# Images: each one's mean brightness is coded apart. All pixels have one unit.",
        _pair("centring", "sample"),
        _pair("scaling", "none"),
    ]


def _pair(key: str, value: object) -> str:
    return yaml.safe_dump({key: value}, allow_unicode=True, width=2**20, default_flow_style=False).rstrip("\n")
