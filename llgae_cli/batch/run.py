"""Run a command over shards, from its options to a complete manifest."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from llgae_cli import __version__
from llgae_cli.batch.commands import COMMANDS, Job
from llgae_cli.batch.local_engine import Task
from llgae_cli.batch.manifest import Entry, Manifest, ManifestWriter, hash_file, read_manifest
from llgae_cli.batch.shards import Shard
from llgae_cli.batch.worker import Answer
from llgae_cli.errors import InputError, Interrupted, explain, show_path
from llgae_cli.progress import OnProgress, Progress, Schedule, Work
from llgae_cli.storage.atomic import check_writable, clean_temporaries
from llgae_cli.sweep.folder import try_lock

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """Runs shards, `jobs` at a time."""

    jobs: int

    def run(self, job: Job, tasks: Sequence[Task], finish: Callable[[Answer], None]) -> None:
        """Run all tasks; `finish` gets the answer of each. On any exception all work is stopped first."""

    def close(self) -> None:
        """Release what the engine started."""


@dataclass(frozen=True)
class Outcome:
    """What a command did: the entries of all shards, and how many of them were done before."""

    entries: list[Entry]
    skipped: int

    @property
    def done(self) -> list[Entry]:
        """The shards that are done."""
        return [entry for entry in self.entries if entry.state == "done"]

    @property
    def failed(self) -> list[Entry]:
        """The shards that failed."""
        return [entry for entry in self.entries if entry.state == "failed"]

    @property
    def rows(self) -> int:
        """Rows of the shards that are done."""
        return sum(entry.rows for entry in self.done)

    @property
    def bytes(self) -> int:
        """Bytes of their results."""
        return sum(entry.bytes for entry in self.done)

    def total(self, figure: str) -> float:
        """Return the sum of a figure over the shards that are done."""
        return sum(entry.figures.get(figure) or 0.0 for entry in self.done)

    def mean(self, figure: str) -> float:
        """Return the mean of a figure over the rows of the shards that are done."""
        return sum(entry.rows * (entry.figures.get(figure) or 0.0) for entry in self.done) / max(1, self.rows)

    def find_largest(self, figure: str) -> Entry | None:
        """Return the shard with the largest value of a figure; None where none is done."""
        return max(self.done, key=lambda entry: entry.figures.get(figure) or 0.0, default=None)

    def largest(self, figure: str) -> float:
        """Return the largest value of a figure."""
        entry = self.find_largest(figure)
        return 0.0 if entry is None else entry.figures.get(figure) or 0.0


def run_shards(
    job: Job,
    source: Path,
    shards: Sequence[Shard],
    out: Path,
    make_engine: Callable[[], Engine],
    *,
    resume: bool = False,
    report: OnProgress = lambda progress: None,
) -> Outcome:
    """Run a command over shards, whose common folder is `source`, and keep the manifest in `out`.

    With `resume`, shards that the manifest there has as done are not run again where they and their results are
    unchanged; failed ones are. Raises InputError, before anything is run, where `out` holds a manifest and `resume` is
    not set, where it was made by another command, model or option, and where another process is at work in it.
    """
    check_writable(out, "results")
    clean_temporaries(out)
    with try_lock(out / "lock") as holder:
        if holder is not None:
            raise InputError(f"{show_path(out)}: another command is at work here ({holder})")
        before = read_manifest(out)
        manifest = _describe(job, source)
        if before is not None:
            if not resume:
                done = sum(entry.state == "done" for entry in before.shards)
                raise InputError(
                    f"{show_path(out)}: {done} of {len(before.shards)} shards are done here already; continue with "
                    "--resume, or choose another folder with -o"
                )
            before.check_same_work(manifest, out)
            manifest.prepared = before.prepared
        manifest.shards = _list_entries(shards, out, before.shards if before else [])
        with contextlib.closing(make_engine()) as engine:
            report(Progress(0.0, 1.0, "preparing", None))
            command = COMMANDS[job.command]
            command.begin(job)  # what is wrong with the model or an option is one error, not one for each shard
            if not manifest.prepared:
                manifest.prepared = command.prepare(job, shards)
            return _run(replace(job, prepared=manifest.prepared), shards, ManifestWriter(manifest, out), engine, report)


def _describe(job: Job, source: Path) -> Manifest:
    """Return the manifest of a job without shards."""
    name, digest = None, ""
    if job.checkpoint is not None:
        name = Path(job.checkpoint).name
        try:
            digest = hash_file(Path(job.checkpoint))
        except OSError as error:
            raise InputError(f"{show_path(job.checkpoint)}: cannot be read ({explain(error)})") from None
    return Manifest(
        llgae=__version__,
        command=job.command,
        checkpoint=name,
        model=digest,
        source=str(source),
        options=dict(job.options),
    )


def _list_entries(shards: Sequence[Shard], out: Path, before: Sequence[Entry]) -> list[Entry]:
    """Return an entry for each shard, in their order: the one of before, or a new one.

    Shards that were done and are no longer there keep their entries where their results are.
    """
    known = {entry.name: entry for entry in before}
    names, folder = {shard.name for shard in shards}, Path(out).absolute()
    gone = [entry for entry in before if entry.state == "done" and entry.name not in names]
    kept = [entry for entry in gone if (folder / entry.output).exists()]
    new = [Entry(name=shard.name, output=Path(shard.output).relative_to(folder).as_posix()) for shard in shards]
    return kept + [known.get(entry.name, entry) for entry in new]


def _run(job: Job, shards: Sequence[Shard], writer: ManifestWriter, engine: Engine, report: OnProgress) -> Outcome:
    entries = writer.manifest.shards
    place = {entry.name: at for at, entry in enumerate(entries)}
    tasks = [(shard, entries[place[shard.name]]) for shard in shards]
    sizes = {shard.name: shard.measure_size() for shard in shards}
    work = Work(Schedule(report))
    work.expect("shards", float(sum(sizes.values())))
    ended = failed = skipped = 0
    writer.write()

    def finish(answer: Answer) -> None:
        nonlocal ended, failed, skipped
        entry = answer.entry
        ended += 1
        failed += entry.state == "failed"
        skipped += not answer.ran
        entries[place[entry.name]] = entry
        lost = f", {failed} failed" if failed else ""
        work.advance("shards", sizes[entry.name], f"{ended} of {len(shards)} shards{lost}")
        writer.update()

    try:
        engine.run(job, tasks, finish)
    except Interrupted:
        done = sum(entry.state == "done" for entry in entries)
        logger.info("%d of %d shards are done; continue with --resume", done, len(entries))
        raise
    finally:
        writer.write()
    return Outcome(entries, skipped)
