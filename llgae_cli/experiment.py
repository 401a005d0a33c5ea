"""Training an experiment: from a config to its checkpoint."""

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llgae_cli import distributed, interrupts, storage
from llgae_cli.codec.fit import fit_codec, has_network_start, store_codec
from llgae_cli.config import Config
from llgae_cli.errors import InputError, Interrupted, ProcessLostError, RunError, printable
from llgae_cli.evaluation import Evaluated, keep_held, mean_l2, mean_l2_alone, measure
from llgae_cli.evaluation.novelty import fit_novelty
from llgae_cli.factory import (
    build_model,
    build_trainer,
    check_fit,
    check_history,
    choose_device,
    describe_loading,
    load_state,
    set_up_torch,
)
from llgae_cli.formatting import five_digits
from llgae_cli.models import Model
from llgae_cli.progress import NOBODY, OnProgress, Schedule, Work, count_evaluation_steps
from llgae_cli.run import Run, Snapshot, acquire, take_snapshot, timed
from llgae_cli.storage import Checkpoint, RunFolder
from llgae_cli.tasks import draw_rows, load_task
from llgae_cli.training import EpochRecord

OnEpoch = Callable[[dict[str, float], int], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Result of a training. Mean L2 in squared grey levels per pixel, times in seconds.

    `checkpoint` and `evaluated`, the model on its test samples, are None on all ranks but the first. With `shards: own`
    `evaluated` has the samples of that rank only, and is None where it has none.
    """

    checkpoint: Path | None
    mean_l2: float
    train_mean_l2: float
    epochs: int
    seconds: float
    validation_mean_l2: float | None
    evaluated: Evaluated | None


def train(
    config: Config,
    resume: str | None = None,
    patience: float = 0.0,
    on_epoch: OnEpoch = lambda record, epochs: None,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Train as the config says and write the checkpoint. `resume` is `last` or the path of a checkpoint.

    If another run of this config is active in the folder, wait up to `patience` seconds for its end. `on_epoch` gets
    the history's row after each epoch, and the largest number of epochs; `on_progress` what is done of what and the
    time left, several times a second, perhaps from another thread.

    Raises InputError for a config that does not fit the data, and RunError for a training that cannot go on. On
    Interrupted, and when another process of the run dies, the state after the last complete epoch is saved first.
    """
    set_up_torch(config)
    device = choose_device(config.device)
    folder = RunFolder(config)
    try:
        with ExitStack() as leaving:
            if distributed.join(device):
                leaving.callback(distributed.leave)
            leaving.callback(folder.lock.release)
            if distributed.rank() == 0:
                folder.prepare()
            acquire(folder.lock, patience)
            run = set_up(config, device, folder)
            if resume is not None:
                restore_run(run, resume)
            logger.info(
                "%s: %d training samples of %d values, %s", run.task.name, run.train.N, run.train.D, run.task.source
            )
            if run.fitted is not run.train:
                logger.info("rows: fitted to %d of the training samples", run.fitted.N)
            row = run.history[-1] if run.history else {}
            plan(run, Work(Schedule(on_progress, epochs=config.epochs, row=row)) if on_progress else NOBODY)
            return complete(run, on_epoch)
    except Interrupted as interrupt:
        interrupt.saved = folder.written
        raise


def set_up(config: Config, device: torch.device, folder: RunFolder) -> Run:
    """Load the data, build model and trainer; InputError where they do not fit together."""
    storage.name_of(config, 0, 0.0)  # a config that no name can hold is refused before the work, not after it
    task = load_task(config.task, config.data_dir, **describe_loading(config)).to(device)
    check_fit(config, task.train.N, task.train.D)
    train, validation = task.hold_out(config.validation, config.seed)
    fitted = train if config.rows is None else draw_rows(train, config.rows, config.seed)
    model = build_model(config, task.shape).to(device)
    trainer = build_trainer(config, model, fitted, task.shape)
    return Run(config, task, train, fitted, validation, model, trainer, folder)


def plan(run: Run, work: Work) -> None:
    """Report the work of the run from now on, and expect all of it."""
    run.work = work
    epochs = 0 if run.finished else run.config.epochs - run.done
    run.trainer.plan(work, epochs, begun=run.done > 0)
    work.expect("evaluation", sum(count_evaluation(run).values()))


def count_evaluation(run: Run) -> dict[str, float]:
    """Return the operations of each step after the last epoch."""
    sizes = run.train.N + (run.fitted.N if run.fitted is not run.train else 0), run.task.test.N
    row, affine = run.trainer.row_operations, run.model.as_llgae() is not None
    return count_evaluation_steps(
        row,
        *sizes,
        by_gradient=run.config.trainer == "gradient",
        affine=affine,
        network=has_network_start(run.model),
    )


def complete(run: Run, on_epoch: OnEpoch) -> Outcome:
    """Run the epochs that are left and finish; save where an interrupt or a lost process ends that early."""
    try:
        with interrupts.unmask():
            try:
                with storage.log_epochs(run.config, on_epoch, distributed.rank() == 0) as on_epoch:
                    run_epochs(run, on_epoch)
                    return finish(run, on_epoch)
            except ProcessLostError as lost:
                replace_lost_saver(run)
                saved = save(run)
                raise RunError(f"{lost}" + (f"; saved {saved}, continue with --resume last" if saved else "")) from None
    except Interrupted:  # at any point, also by torchrun's SIGTERM after a process was lost
        replace_lost_saver(run)
        save_interrupted(run)
        raise


def run_epochs(run: Run, on_epoch: OnEpoch) -> None:
    """Start the trainer and run its epochs; the last one's test figures are left to `finish`."""
    config = run.config
    if run.done == 0:
        with timed(run):
            run.trainer.initialise()
    warn_of_divergence(run.model)
    while not run.finished:
        with timed(run):
            record = run.trainer.epoch()
        complete_epoch(run, record)
        if run.finished:
            break
        if is_measured(config, run.done):
            run.history[-1] |= measure_splits(run)
        on_epoch(run.history[-1], config.epochs)
        run.work.complete_epoch(run.history[-1])
        if config.save_every and run.done % config.save_every == 0:
            save(run)
    warn_of_divergence(run.model)


def complete_epoch(run: Run, record: EpochRecord) -> None:
    """Add an epoch to the history, and keep the state that an interrupt would save.

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


def is_measured(config: Config, epoch: int) -> bool:
    """Return whether the history holds the test mean L2 after this epoch. That of the last one is always measured."""
    return any(every and epoch % every == 0 for every in (config.eval_every, config.save_every))


def measure_splits(run: Run) -> dict[str, float]:
    """Return the mean L2 on the test samples and on the validation samples. Raises RunError where not finite."""
    figures = {"test_mean_l2": mean_l2(run.model, run.task.test)}
    if run.validation is not None:
        figures["validation_mean_l2"] = mean_l2(run.model, run.validation)
    check_finite(run, figures)
    return figures


def check_finite(run: Run, figures: dict[str, float]) -> None:
    """Raise RunError for a mean L2 that is not finite."""
    for name, value in figures.items():
        if not math.isfinite(value):
            raise RunError(f"the {name.split('_')[0]} mean L2 became {value} in epoch {run.done}: lower lr or beta")


def finish(run: Run, on_epoch: OnEpoch) -> Outcome:
    """Measure the final model on the test and training samples, once each, and write the checkpoint."""
    operations = count_evaluation(run)
    run.work.expect_only("evaluation", sum(operations.values()))  # fewer epochs may have sufficed

    def advance(step: str, part: float = 1.0) -> Callable[[float], None]:
        return lambda share: run.work.advance("evaluation", part * share * operations[step], step)

    test = measure(run.model, run.task.test, run.task.peak, advance("test samples"))
    figures = {"test_mean_l2": test.metrics.mean_l2}
    if run.validation is not None:
        figures["validation_mean_l2"] = mean_l2(run.model, run.validation)
    check_finite(run, figures)
    is_part = run.fitted is not run.train
    part = run.fitted.N / (run.fitted.N + run.train.N) if is_part else 1.0
    fitted = measure(run.model, run.fitted, run.task.peak, advance("training samples", part))
    fitted_mean_l2 = train_mean_l2 = fitted.metrics.mean_l2
    if is_part:
        train_mean_l2 = mean_l2(run.model, run.train, advance("training samples", 1 - part))
    if run.snapshot is not None:  # None: resumed from a checkpoint of a finished run; nothing is written
        run.history[-1] |= figures
        on_epoch(run.history[-1], run.config.epochs)
        run.work.complete_epoch(run.history[-1])
        extras: dict[str, Any] = fitted.latents.stored()
        if not run.trainer.exact:
            extras["candidates_lost"] = lost = run.history[-1]["train_mean_l2"] / fitted_mean_l2 - 1
            logger.info(
                "candidates: shortlists lost %.4f%% of the train mean L2 %s", 100 * lost, five_digits(fitted_mean_l2)
            )
        if distributed.rank() == 0 or run.fitted.held is not None:  # rows of other processes are gathered by all
            extras |= store_codec(fit_codec(run.model, run.fitted, run.trainer.quantisation))
            run.work.advance("evaluation", operations.get("codec", 0.0), "codec")
        if run.model.as_llgae() is not None:
            extras["novelty"] = fit_novelty(run.model, run.fitted, fitted).stored()
        save(run, train_mean_l2=train_mean_l2, extras=extras)
    run.work.end()
    saved, evaluated = run.folder.saved, None
    if distributed.rank():
        saved = None
    elif saved is not None and run.checkpoint is not None:
        samples, own = keep_held(run.task.test, test)
        if samples.N:
            evaluated = Evaluated(saved, run.checkpoint, run.config, run.model, run.task, "test", samples, own)
    return Outcome(
        checkpoint=saved,
        mean_l2=figures["test_mean_l2"],
        train_mean_l2=train_mean_l2,
        epochs=run.done,
        seconds=run.seconds,
        validation_mean_l2=figures.get("validation_mean_l2"),
        evaluated=evaluated,
    )


def save(run: Run, train_mean_l2: float | None = None, extras: dict[str, Any] | None = None) -> Path | None:
    """Write the last complete epoch's state as a checkpoint; only one process does, and the others get None."""
    if not run.saves or run.snapshot is None:
        return None
    snapshot, task = run.snapshot, run.task
    test_mean_l2, measured = measure_snapshot(run, snapshot)
    if not math.isfinite(test_mean_l2):
        logger.warning("nothing was saved: this process has no test samples to measure the state on")
        return None
    run.checkpoint = Checkpoint(
        config=storage.export_config(run.config),
        epoch=snapshot.epoch,  # 0: the best of the initialisations that were done
        mean_l2=test_mean_l2,
        train_mean_l2=train_mean_l2,
        extras=extras or {},
        data={
            "task": task.name,
            "fingerprint": task.fingerprint,
            "shape": list(task.shape),
            "classes": None if task.classes is None else list(task.classes),
            "peak": task.peak,
            "N": run.train.N,
            "D": run.train.D,
            "source": task.origin,
            **run.train.describe_rows(),
            **({} if measured == task.test.N else {"measured": measured}),
        },
        provenance=storage.provenance(),
        **{name: getattr(snapshot, name) for name in ("history", "seconds", "state", "trainer_state")},
    )
    return run.folder.save(run.checkpoint)


def measure_snapshot(run: Run, snapshot: Snapshot) -> tuple[float, int]:
    """Return the test mean L2 of the last complete epoch, for its checkpoint, and of how many samples it is.

    Where it was not measured, the run is ending: the model, perhaps half-way through the next epoch, is set back to the
    snapshot. The history stays as it would be without the interrupt. Time is short then, and other processes may be
    gone: of a large test set, and of one that is divided among processes, a part is measured. A process that has no
    test samples gives the last train mean L2, of 0 samples.
    """
    if snapshot.test_mean_l2 is not None:
        return snapshot.test_mean_l2, run.task.test.N
    run.model.load_state_dict(snapshot.state)
    test, n = mean_l2_alone(run.model, run.task.test)
    figures = {"test_mean_l2": test}
    if n:
        check_finite(run, figures)
    if n < run.task.test.N:
        logger.info("the mean L2 of what is saved is of %d of the %d test samples", n, run.task.test.N)
        if n == 0 and snapshot.history:
            test = snapshot.history[-1]["train_mean_l2"]
        return test, n
    if run.validation is not None:
        figures["validation_mean_l2"] = mean_l2_alone(run.model, run.validation)[0]
    check_finite(run, figures)
    if snapshot.history and is_measured(run.config, snapshot.epoch):
        snapshot.history[-1].update(figures)
    return test, n


def save_interrupted(run: Run) -> None:
    """Save what an interrupted run has: its last complete epoch, else the best initialisation that was done."""
    if run.done == 0 and run.trainer.use_best_restart():
        run.snapshot = take_snapshot(run)
    if run.snapshot is None:
        logger.warning("nothing was saved: the run was interrupted before its first epoch was complete")
        return
    if run.snapshot.test_mean_l2 is None:
        logger.info("interrupted: measuring the last complete state, which is then saved")
    save(run)


@interrupts.postpone()
def replace_lost_saver(run: Run) -> None:
    """Let this process save what the run has where rank 0 is lost: its lock is free, and it saved nothing newer.

    Without the folder of rank 0, or without locks, nothing tells that it is lost.
    """
    lock = run.folder.lock
    if run.saves or run.snapshot is None or not lock.path.parent.is_dir() or not lock.attempt() or not lock.supported:
        return
    try:
        last = storage.load(storage.find_last(run.config.checkpoint_dir, run.config))
    except InputError:  # there is none
        run.saves = True
    else:
        run.saves = last.epoch < run.snapshot.epoch


def restore_run(run: Run, resume: str) -> None:
    """Continue from a checkpoint of the same config and data; InputError names what differs, on all processes."""

    def read() -> tuple[Path, Checkpoint]:
        path = storage.find_last(run.config.checkpoint_dir, run.config) if resume == "last" else Path(resume)
        return path, storage.load(path)

    path, checkpoint = distributed.agree(read)
    found = distributed.exchange([checkpoint.epoch, checkpoint.mean_l2])
    if any(other != found[0] for other in found):
        epochs = ", ".join(f"epoch {epoch} on rank {rank}" for rank, (epoch, _) in enumerate(found))
        raise InputError(f"--resume {path.name}: the processes found different checkpoints ({epochs}): copy one to all")
    changed = storage.changed_keys(checkpoint.config, run.config)
    if changed:
        what = ", ".join(f"{key} is {printable(now)} and was {printable(was)}" for key, (was, now) in changed.items())
        raise InputError(f"--resume {path.name}: the config has changed: {what}")
    if checkpoint.data.get("fingerprint") != run.task.fingerprint:
        raise InputError(f"--resume {path.name}: the data has changed ({run.task.source})")
    load_state(run.model, checkpoint, path)
    check_history(checkpoint, path)
    try:
        run.trainer.load_state_dict(checkpoint.trainer_state)
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = printable(error, 200)
        raise InputError(f"--resume {printable(path.name, 200)}: its trainer's state does not fit ({reason})") from None
    run.history, run.seconds, run.checkpoint = list(checkpoint.history), checkpoint.seconds, checkpoint
    run.folder.saved = path
    if checkpoint.train_mean_l2 is None:  # of an unfinished run: if no epoch is left, `finish` completes it
        run.snapshot = Snapshot(
            list(checkpoint.history), checkpoint.seconds, checkpoint.state, checkpoint.trainer_state
        )
    logger.info("resumed after epoch %d from %s", run.done, path)


def warn_of_divergence(model: Model) -> None:
    """Warn where beta is beyond the largest stable step size."""
    problem = model.step_size_problem()
    if problem is not None:
        logger.warning(problem)
