"""An experiment from its config to its checkpoint, and from its checkpoint to its numbers."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from llgae_cli import checkpoints, interrupts, metrics, threads
from llgae_cli.assembly import build_model, build_trainer
from llgae_cli.checkpoints import Checkpoint
from llgae_cli.config import Config
from llgae_cli.errors import InputError, Interrupted, ProcessLostError, RunError, printable
from llgae_cli.formatting import five_digits
from llgae_cli.models import LLGAE, Model
from llgae_cli.restoring import check_record, load_state, restore
from llgae_cli.tasks import Samples, Task, load_task
from llgae_cli.training import ClosedForm, EpochRecord, Trainer, distributed

LOOK = 0.3  # seconds between two looks at a lock; the first refusal may have been a look at it by `clean_locks`


class Reporter(Protocol):
    """Whom an experiment tells how it goes."""

    def note(self, message: str) -> None:
        """Something worth a line."""

    def warn(self, message: str) -> None:
        """Something wrong that does not end the run."""

    def epoch(self, record: dict[str, float], epochs: int) -> None:
        """An epoch is done; `epochs` is how many there are at most."""


@dataclass
class Outcome:
    """What a training came to. Mean L2 in squared grey levels per pixel, times in seconds."""

    checkpoint: Path | None  # None on all ranks but the first
    mean_l2: float
    train_mean_l2: float
    epochs: int
    seconds: float
    validation_mean_l2: float | None = None


@dataclass
class Run:
    """A training under way: the live parts, and the last state worth saving."""

    config: Config
    task: Task
    train: Samples
    validation: Samples | None
    model: Model
    trainer: Trainer
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    saved: Path | None = None
    snapshot: dict[str, Any] | None = None
    lock: checkpoints.RunLock | None = None

    @property
    def done(self) -> int:
        """Epochs done."""
        return int(self.history[-1]["epoch"]) if self.history else 0


def train(config: Config, reporter: Reporter, resume: str | None = None, patience: float = 0.0) -> Outcome:
    """Train what the config says and write the checkpoint. `resume` is `last` or a checkpoint's path.

    Another run of this config in the same folder is waited for `patience` seconds; then InputError names it. Raises
    InputError for a config that does not fit the data, RunError for a training that cannot go on. On
    Interrupted, and when another process of the run dies, the state after the last complete epoch is saved first.
    """
    prepare_torch(config)
    device = chosen_device(config.device)
    lock = checkpoints.RunLock(config.checkpoint_dir, config)
    joined = distributed.join(device)
    try:
        if distributed.rank() == 0:
            checkpoints.check_writable(config.checkpoint_dir)
            checkpoints.clean_temporaries(config.checkpoint_dir)
            checkpoints.clean_locks(config.checkpoint_dir)
        take(lock, reporter, patience)
        run = set_up(config, device)
        run.lock = lock
        if resume is not None:
            restore_run(run, resume, reporter)
        reporter.note(f"{run.task.name}: {run.train.N} training samples of {run.train.D} values, {run.task.source}")
        try:
            if run.done == 0:
                with timed(run):
                    run.trainer.start(reporter.note)
            warn_of_divergence(run.model, reporter)
            while run.done < config.epochs and not run.trainer.finished:
                with timed(run):
                    record = run.trainer.epoch()
                complete_epoch(run, record)
                last = run.done == config.epochs or run.trainer.finished  # which `finish` saves, with more in it
                if last or is_measured(config, run.done):
                    run.history[-1] |= measure(run)
                reporter.epoch(run.history[-1], config.epochs)
                if config.save_every and run.done % config.save_every == 0 and not last:
                    save(run)
            warn_of_divergence(run.model, reporter)
            return finish(run, reporter)
        except Interrupted as interrupt:
            if run.done == 0 and run.trainer.keep_start():
                run.snapshot = take_snapshot(run)
            if run.snapshot is None:
                reporter.warn("nothing was saved: the run was interrupted before its first epoch was complete")
            elif last_measured(run.snapshot["history"]) is None:
                reporter.note("interrupted: measuring the last complete state, which is then saved")
            interrupt.saved = run.saved if run.snapshot is None else save(run)
            raise
        except ProcessLostError as lost:
            saved = rescue(run)
            raise RunError(f"{lost}" + (f"; saved {saved}, continue with --resume last" if saved else "")) from None
    finally:
        lock.release()
        if joined:
            distributed.leave()


def take(lock: checkpoints.RunLock, reporter: Reporter, patience: float) -> None:
    """Take the lock of a config, waiting up to `patience` seconds for another run to end; InputError after that.

    Rank 0 takes it; the others ask along, for a process that is silent for minutes is taken for dead.
    """
    began, told = time.monotonic(), False
    while not distributed.agreed(distributed.rank() == 0 and lock.attempt()):
        waited = time.monotonic() - began
        if distributed.agreed(waited > max(patience, LOOK)):
            who = lock.holder or "another process"
            raise InputError(
                f"{printable(lock.path.parent, 300)}: {who} is training this very config ({lock.subject}) here; wait "
                "for its end with --wait, or choose another checkpoint-dir or seed"
            )
        if waited > LOOK and not told:
            reporter.note(f"waiting for {lock.holder}, which is training this very config ({lock.subject}) here")
            told = True
        time.sleep(LOOK)
    if not lock.supported:
        reporter.note("this folder's file system has no locks: start no second run of this config beside this one")


def prepare_torch(config: Config) -> None:
    """Threads, seed, and full float32 precision wherever a device would round products to fewer bits."""
    threads.limit_threads(config.threads)
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("highest")


def chosen_device(name: str) -> torch.device:
    """The device a config names; InputError when this machine or this build of torch lacks it."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available.get(name):
        here = ", ".join(kind for kind, there in available.items() if there)
        raise InputError(f"device: {printable(name)} is not to be had here; there is {here}")
    return torch.device(name)


def set_up(config: Config, device: torch.device) -> Run:
    """Data, model and trainer for a config; InputError where they do not fit together."""
    checkpoints.name_of(config, 0, 0.0)  # a config no name can hold is refused before the work, not after it
    task = load_task(config.task, config.data_dir, config.centring, config.seed).to(device)
    train, validation = held_out(task.train, config.validation, config.seed)
    if config.validation and validation is None:
        raise InputError(f"validation: {config.validation:g} of {train.N} training samples is less than one")
    if config.K > train.N:
        raise InputError(f"K: {config.K} components for {train.N} training samples; K is at most their number")
    if config.embed_dim > train.D:
        raise InputError(f"embed-dim: {config.embed_dim} is more than the {train.D} values of a sample")
    model = build_model(config, task.shape).to(device)
    return Run(config, task, train, validation, model, build_trainer(config, model, train, task.shape))


def held_out(train: Samples, share: float, seed: int) -> tuple[Samples, Samples | None]:
    """The training samples without a random share of them, and that share (None where it is 0)."""
    n = round(train.N * share)
    if n == 0:
        return train, None
    order = torch.randperm(train.N, generator=torch.Generator().manual_seed(seed))
    return train.subset(order[n:].sort().values), train.subset(order[:n].sort().values)


def complete_epoch(run: Run, record: EpochRecord) -> None:
    """Note an epoch in the history, and keep the state that an interrupt would save.

    Raises RunError where the training has diverged.
    """
    epoch = run.done + 1
    if not math.isfinite(record["train_mean_l2"]):
        raise RunError(f"the train mean L2 became {record['train_mean_l2']} in epoch {epoch}: lower lr or beta")
    if not all(bool(tensor.isfinite().all()) for tensor in run.model.state_dict().values()):
        raise RunError(f"the model's parameters became infinite or nan in epoch {epoch}: lower lr or beta")
    run.history.append({"epoch": epoch, "seconds": run.seconds, **record})  # type: ignore[dict-item]
    run.snapshot = take_snapshot(run)
    interrupts.check()


def take_snapshot(run: Run) -> dict[str, Any]:
    """The present state as a checkpoint holds it, in tensors of its own."""
    return {
        "history": list(run.history),
        "seconds": run.seconds,
        "state": {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()},
        "trainer_state": copy.deepcopy(run.trainer.state_dict()),
    }


@contextmanager
def timed(run: Run) -> Iterator[None]:
    """Add the time that the block takes to the run's seconds."""
    began = time.perf_counter()
    try:
        yield
    finally:
        run.seconds += time.perf_counter() - began


def is_measured(config: Config, epoch: int) -> bool:
    """Whether the history holds the test mean L2 after an epoch, unless it is the last, which always is measured."""
    return any(every and epoch % every == 0 for every in (config.eval_every, config.save_every))


def measure(run: Run) -> dict[str, float]:
    """The mean L2 on the test samples, and on the held-out training samples. Raises RunError where not finite."""
    figures = {"test_mean_l2": metrics.mean_l2(run.model, run.task.test)}
    if run.validation is not None:
        figures["validation_mean_l2"] = metrics.mean_l2(run.model, run.validation)
    for name, value in figures.items():
        if not math.isfinite(value):
            raise RunError(f"the {name.split('_')[0]} mean L2 became {value} in epoch {run.done}: lower lr or beta")
    return figures


def measure_snapshot(run: Run) -> float:
    """The test mean L2 of the last complete epoch, for its checkpoint; the run ends with it.

    The model may be half-way through the next epoch, so it is given the snapshot's state first. The history is left as
    it would be without the interrupt.
    """
    assert run.snapshot is not None
    history = run.snapshot["history"]
    known = last_measured(history)
    if known is not None:
        return known
    run.model.load_state_dict(run.snapshot["state"])
    figures = measure(run)
    if history and is_measured(run.config, int(history[-1]["epoch"])):
        history[-1] |= figures
    return figures["test_mean_l2"]


def last_measured(history: list[dict[str, float]]) -> float | None:
    """The test mean L2 after the last epoch of a history, None where it was not measured."""
    return history[-1].get("test_mean_l2") if history else None


def save(run: Run, **more: Any) -> Path | None:
    """Write the last complete epoch's state as a checkpoint; rank 0 alone does, and the others get None.

    Raises RunError where it cannot be written, and where the folder has been removed since the run began: it is made
    anew for the state, but with it the run's lock and its earlier checkpoints are gone, which somebody has to look at.
    """
    if distributed.rank() or run.snapshot is None:
        return None
    history = run.snapshot["history"]
    checkpoint = Checkpoint(
        config=shareable(run.config),
        epoch=int(history[-1]["epoch"]) if history else 0,  # 0: the best of the starts that were done
        mean_l2=measure_snapshot(run),
        **{"train_mean_l2": None, "extras": {}, **more},
        data={
            "task": run.task.name,
            "fingerprint": run.task.fingerprint,
            "shape": list(run.task.shape),
            "classes": None if run.task.classes is None else list(run.task.classes),
            "peak": run.task.peak,
            "N": run.train.N,
            "D": run.train.D,
            "source": run.task.origin,
        },
        provenance=checkpoints.provenance(),
        **run.snapshot,
    )
    name = checkpoints.name_of(run.config, checkpoint.epoch, checkpoint.mean_l2)
    folder = run.config.checkpoint_dir
    removed = not folder.is_dir()
    try:
        run.saved = checkpoints.save(checkpoint, folder, name)
    except RunError as error:
        if folder.is_dir():
            last_good = f"; the last one that was is {run.saved}, go on from it with --resume last" if run.saved else ""
            raise RunError(f"{error}{last_good}") from None
    if not folder.is_dir():  # it went while the file was being written, or just after
        removed, run.saved = True, checkpoints.save(checkpoint, folder, name)
    # The lock tells of a folder that went between the look and the save, which makes it anew.
    if removed or (run.lock is not None and run.lock.lost):
        raise RunError(
            f"{printable(folder, 300)}: was removed while the run was at work; made again, and the state after epoch "
            f"{checkpoint.epoch} saved there, continue with --resume last"
        )
    return run.saved


def shareable(config: Config) -> dict[str, Any]:
    """The plain config as a checkpoint has it: without `checkpoint-dir` where that is an absolute path.

    Nothing reads it again, and whoever is given the file learns the folders of a machine from it. `task` and
    `data-dir` stay as they were given: `eval` finds the data by them.
    """
    plain = config.plain()
    if config.checkpoint_dir.is_absolute():
        del plain["checkpoint-dir"]
    return plain


def rescue(run: Run) -> Path | None:
    """`save`, begun again where torchrun's SIGTERM, which follows a lost process, falls into it."""
    try:
        return save(run)
    except Interrupted:
        return save(run)


def finish(run: Run, reporter: Reporter) -> Outcome:
    """Measure the final model on the training samples too, write the checkpoint, and say what came of it."""
    if run.snapshot is None:  # resumed at its end
        return resumed_at_end(run)
    if "test_mean_l2" not in run.history[-1]:  # resumed from an interrupt at the last epoch
        run.history[-1] |= measure(run)
    evaluation, latents = metrics.measure(run.model, run.train, run.task.peak)
    extras: dict[str, Any] = {
        "count": latents.count,
        "latent_mean": latents.mean,
        "latent_covariance": latents.covariance,
        **{f"symbol_{j}": counts for j, counts in enumerate(latents.symbols)},
    }
    last = run.history[-1]
    if isinstance(run.trainer, ClosedForm) and run.trainer.short_lists:
        extras["candidates_lost"] = lost = last["train_mean_l2"] / evaluation.mean_l2 - 1
        reporter.note(f"candidates: short lists lost {lost:.4%} of the train mean L2 {five_digits(evaluation.mean_l2)}")
    return Outcome(
        checkpoint=save(run, train_mean_l2=evaluation.mean_l2, extras=extras),
        mean_l2=last["test_mean_l2"],
        train_mean_l2=evaluation.mean_l2,
        epochs=run.done,
        seconds=run.seconds,
        validation_mean_l2=last.get("validation_mean_l2"),
    )


def resumed_at_end(run: Run) -> Outcome:
    """The outcome of a run whose checkpoint had reached its last epoch already: nothing is written."""
    evaluation, _ = metrics.measure(run.model, run.train, run.task.peak)
    last = run.history[-1] if "test_mean_l2" in run.history[-1] else measure(run)
    return Outcome(
        run.saved, last["test_mean_l2"], evaluation.mean_l2, run.done, run.seconds, last.get("validation_mean_l2")
    )


def restore_run(run: Run, resume: str, reporter: Reporter) -> None:
    """Continue from a checkpoint of the same config and data; InputError names what differs."""
    path = checkpoints.find_last(run.config.checkpoint_dir, run.config) if resume == "last" else Path(resume)
    checkpoint = checkpoints.load(path)
    changed = checkpoints.changed_keys(checkpoint.config, run.config)
    if changed:
        what = ", ".join(f"{key} is {printable(now)} and was {printable(was)}" for key, (was, now) in changed.items())
        raise InputError(f"--resume {path.name}: the config has changed: {what}")
    if checkpoint.data.get("fingerprint") != run.task.fingerprint:
        raise InputError(f"--resume {path.name}: the data is not the same as then ({run.task.source})")
    load_state(run.model, checkpoint, path)
    check_record(checkpoint, path)
    try:
        run.trainer.load_state_dict(checkpoint.trainer_state)
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = printable(error, 200)
        raise InputError(f"--resume {printable(path.name, 200)}: its trainer's state does not fit ({reason})") from None
    run.history, run.seconds, run.saved = list(checkpoint.history), checkpoint.seconds, path
    if checkpoint.train_mean_l2 is None:  # saved on the way: where there is nothing left to do, `finish` completes it
        run.snapshot = {
            "history": list(checkpoint.history),
            "seconds": checkpoint.seconds,
            "state": checkpoint.state,
            "trainer_state": checkpoint.trainer_state,
        }
    reporter.note(f"resumed after epoch {run.done} from {path}")


def warn_of_divergence(model: Model, reporter: Reporter) -> None:
    """Warn where the ascent on b diverges: beta beyond the largest stable step."""
    limit = model.step_limit()
    affine = [part for part in model.modules() if isinstance(part, LLGAE)]  # itself, or what it is made of
    if affine and affine[0].n_step > 1 and affine[0].beta > limit * (1 + 1e-6):
        reporter.warn(
            f"beta: {affine[0].beta:g} is beyond {limit:.4g} = 2 / max eigenvalue of W^T W + alpha: "
            "the ascent on b diverges"
        )


@dataclass
class Assessment:
    """A checkpoint measured again: `recorded` is what it says of itself, None for another task or the train split."""

    checkpoint: Path
    task: str
    split: str
    recorded: float | None
    classes: tuple[str, ...] | None
    warnings: list[str]
    evaluation: metrics.Evaluation


def evaluate(
    path: Path, split: str = "test", task: str | None = None, data_dir: Path | None = None, device: str = "auto"
) -> Assessment:
    """Measure a checkpoint on the test or train split of its own task, or of another of the same dimension."""
    model, checkpoint, config = restore(path)
    prepare_torch(config)
    where = chosen_device(device)
    loaded = load_task(task or config.task, data_dir or config.data_dir, config.centring, config.seed)
    if loaded.train.D != model.D:
        raise InputError(f"--task {loaded.name}: samples of {loaded.train.D} values; the checkpoint's have {model.D}")
    samples = loaded.test if split == "test" else held_out(loaded.train, config.validation, config.seed)[0]
    evaluation, _ = metrics.measure(model.to(where), samples.to(where), loaded.peak)
    if not math.isfinite(evaluation.mean_l2):
        raise RunError(f"{path.name}: mean L2 is {evaluation.mean_l2} on {loaded.name}: the steps on b overflow there")
    warnings = [line for line in [checkpoints.disagreement(path, checkpoint)] if line]
    same = loaded.fingerprint == checkpoint.data.get("fingerprint")
    if task is None and not same:
        warnings.append("the data is not what the checkpoint was trained on: its fingerprint differs")
    recorded = (checkpoint.mean_l2 if split == "test" else checkpoint.train_mean_l2) if same else None
    if recorded is not None and abs(recorded - evaluation.mean_l2) > 1e-4 * max(recorded, 1e-12):
        warnings.append(f"mean L2 is {evaluation.mean_l2:.5f} and was recorded as {recorded:.5f}")
    return Assessment(path, loaded.name, split, recorded, loaded.classes, warnings, evaluation)
