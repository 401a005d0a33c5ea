"""What commands over shards share: their options, the choice of an engine, and the summary."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llgae_cli.cli.console import print_error, print_json, print_lines
from llgae_cli.cli.sweep import EngineName
from llgae_cli.cli.training_progress import TrainingProgress
from llgae_cli.errors import InputError, show_path
from llgae_cli.formatting import five_digits
from llgae_cli.storage.json_files import read_json

if TYPE_CHECKING:
    from llgae_cli.batch.run import Engine, Outcome

MAX_ERRORS = 20  # failed shards that are printed
MAX_RESULT = 1 << 24  # bytes of the figures of a shard
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", "-j", min=1, help="Shards at a time, one thread each, with -o DIR.", show_default="one a core, to 8"
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue in -o DIR: run the shards without a result.")]
EngineOption = Annotated[
    EngineName | None,
    typer.Option("--engine", help="With -o DIR: processes here, or tasks of a Ray cluster.", show_default="local"),
]
Address = Annotated[str | None, typer.Option(help="Ray: address of a cluster; none starts one here.")]


@dataclass(frozen=True)
class Sharing:
    """How shards are worked on: the options of that name."""

    jobs: int | None
    resume: bool
    engine: EngineName | None
    address: str | None


def names_folder(output: Path | None, sharing: Sharing) -> bool:
    """Return whether -o is a folder, for one result a shard: an existing one, or a name without a suffix.

    Raises InputError for options that need one.
    """
    if output is not None and output != Path("-") and (output.is_dir() or not output.suffix):
        return True
    if sharing != Sharing(None, False, None, None):
        raise InputError("-j, --resume, --engine and --address are for shards: give a folder with -o")
    return False


def run_over_shards(
    command: str,
    checkpoint: Path | None,
    where: str | None,
    output: Path,
    options: Mapping[str, Any],
    *,
    split: str | None = None,
    data_dir: Path | None = None,
    sharing: Sharing,
    json: bool,
) -> None:
    """Run a command over the shards of a task (of `decompress`: compressed files), and print what was done.

    `options` are those that decide the results; the ones that are None or False are left out. Exits with 1 where a
    shard failed.
    """
    if where is None:
        raise InputError("-o DIR: give --task with a folder or a pattern of files, as npy:FOLDER")
    if split not in (None, "all"):
        raise InputError(f"--split {split}: shards have no splits; all of their rows are used")
    if sharing.address is not None and sharing.engine is not EngineName.ray:
        raise InputError("--address needs --engine ray")
    from llgae_cli.batch.commands import COMMANDS, Job
    from llgae_cli.batch.run import run_shards
    from llgae_cli.batch.shards import find_compressed_shards, find_data_shards
    from llgae_cli.sweep.process import choose_jobs

    find = find_compressed_shards if command == "decompress" else find_data_shards
    source, shards = find(where, COMMANDS[command].suffix, output)
    at_a_time = sharing.jobs or choose_jobs(0, 1, len(shards))
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    job = Job(command, _absolute(checkpoint), _absolute(data_dir), os.getcwd(), given)

    def make_engine() -> "Engine":
        if sharing.engine is EngineName.ray:
            from llgae_cli.batch.ray_engine import RayEngine

            return RayEngine(sharing.address, at_a_time)
        from llgae_cli.batch.local_engine import LocalEngine

        return LocalEngine(min(at_a_time, len(shards)), output.absolute() / "log.txt")

    with TrainingProgress() as progress:
        outcome = run_shards(job, source, shards, output, make_engine, resume=sharing.resume, report=progress.show)
    show(command, output, outcome, json)
    for entry in outcome.failed[:MAX_ERRORS]:
        print_error(f"{entry.name}: {entry.error}")
    if outcome.failed:
        print_error(f"{len(outcome.failed)} of {len(outcome.entries)} shards failed; --resume runs them again")
        raise typer.Exit(1)


def show(command: str, output: Path, outcome: "Outcome", json: bool) -> None:
    """Print the summary of a command over shards."""
    figures = summarise(command, output, outcome)
    if json:
        document = {
            "output": str(output),
            "shards": len(outcome.entries),
            "done": len(outcome.done),
            "skipped": outcome.skipped,
            "failed": [{"shard": entry.name, "error": entry.error} for entry in outcome.failed],
            "n": outcome.rows,
            "bytes": outcome.bytes,
            **figures,
        }
        print_json(document)
        return
    before = f", {outcome.skipped} of them before" if outcome.skipped else ""
    lines = [
        f"folder   {output}, manifest.json",
        f"shards   {len(outcome.done)} of {len(outcome.entries)} done{before}",
        f"rows     {outcome.rows}",
        f"size     {outcome.bytes} bytes, {outcome.bytes / max(1, outcome.rows):.2f} a row",
    ]
    words = {
        "mean_l2": "mean L2  {}",
        "mean_squared_error": "error    mean squared {}",
        "largest_row_error": "         largest of a row {}",
        "largest_value_error": "         largest of a value {}",
        "above": "novel    {} rows",
        "worst_shard": "worst    {}",
        "components": "k        {}",
    }
    shown = {name: five_digits(value) if isinstance(value, float) else str(value) for name, value in figures.items()}
    print_lines(*lines, *(text.format(shown[name]) for name, text in words.items() if name in shown))


def summarise(command: str, output: Path, outcome: "Outcome") -> dict[str, Any]:
    """Return the figures of all shards that are done, by name; none where no shard is."""
    if not outcome.done:
        return {}
    if command == "encode":
        return {"mean_l2": outcome.mean("mean_l2")}
    if command == "eval":
        count, worst = add_counts(output, outcome), outcome.find_largest("mean_l2")
        return {
            "mean_l2": outcome.mean("mean_l2"),
            "worst_shard": f"{worst.name}, mean L2 {five_digits(worst.figures['mean_l2'])}" if worst else "-",
            "components": f"{sum(n > 0 for n in count)} of {len(count)} in use",
            "count": count,
        }
    if command == "compress":
        return {
            "mean_squared_error": outcome.mean("mean_squared_error"),
            "largest_row_error": outcome.largest("largest_row_error"),
            "largest_value_error": outcome.largest("largest_value_error"),
        }
    return {"above": int(outcome.total("above"))} if command == "score" else {}


def add_counts(output: Path, outcome: "Outcome") -> list[int]:
    """Return the rows of each component, from the results of `eval`. Raises InputError where one is damaged."""
    total: list[int] = []
    for entry in outcome.done:
        path = output / entry.output
        found = read_json(path, MAX_RESULT, "result of llgae eval")
        count = found.get("count") if isinstance(found, dict) else None
        if not isinstance(count, list) or not all(isinstance(n, int) for n in count):
            raise InputError(f"{show_path(path)}: has no count of rows; --resume makes it again")
        total = [a + b for a, b in zip(total or [0] * len(count), count, strict=True)]
    return total


def _absolute(path: Path | None) -> str | None:
    return None if path is None else os.path.abspath(path)
