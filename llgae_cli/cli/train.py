"""`llgae train`."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llgae_cli.cli.console import print_json, print_lines, set_up_logging
from llgae_cli.cli.options import ConfigFiles, Json, Overrides, Quiet
from llgae_cli.cli.training_progress import TrainingProgress
from llgae_cli.config import read_config
from llgae_cli.errors import InputError, Interrupted, RunError
from llgae_cli.formatting import five_digits
from llgae_cli.storage import find_checkpoint

if TYPE_CHECKING:
    from llgae_cli.experiment import Outcome

logger = logging.getLogger(__name__)


def train(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Continue from a checkpoint: the `last` one of this config, a file or an id.", metavar="last|FILE"
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="If another run of this config holds the folder, wait until it ends.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run `llgae train`; `app` has its help."""
    set_up_logging(quiet)
    if not config and not overrides:
        raise InputError("give a config, as in --config FILE, or keys, as in -S task=mnist -S K=20, or both")
    settings = read_config(config or [], overrides or [])
    if resume not in (None, "last"):
        resume = str(find_checkpoint(resume))
    with TrainingProgress() as progress:
        from llgae_cli import experiment  # torch takes a second to import; a wrong config is reported before

        patience = math.inf if wait else 0.0
        outcome = experiment.train(settings, resume, patience, progress.show_epoch, progress.show)
    if outcome.checkpoint is None:  # another rank than the first
        return
    try:
        show(outcome, draw_figures(outcome) if settings.figures and outcome.evaluated is not None else [], json)
    except Interrupted as interrupt:
        interrupt.saved = outcome.checkpoint
        raise
    except RunError as error:
        raise RunError(f"{error}; the run is done and its checkpoint is {outcome.checkpoint}") from None


def show(outcome: "Outcome", drawn: list[Path], json: bool) -> None:
    """Print the result on stdout."""
    if json:
        names = ("checkpoint", "mean_l2", "train_mean_l2", "epochs", "seconds", "validation_mean_l2")
        document = {name: getattr(outcome, name) for name in names}
        print_json({**document, "checkpoint": str(outcome.checkpoint), "figures": [str(path) for path in drawn]})
        return
    print_lines(
        f"mean L2     {five_digits(outcome.mean_l2)} on test, {five_digits(outcome.train_mean_l2)} on train",
        f"training    {outcome.epochs} epochs in {outcome.seconds:.1f} s",
        f"checkpoint  {outcome.checkpoint}",
    )


def draw_figures(outcome: "Outcome") -> list[Path]:
    """Draw the training curve and reconstructions next to the checkpoint; whatever goes wrong is a warning.

    The run is saved by now, and a figure that fails must not make it look lost.
    """
    assert outcome.evaluated is not None
    try:
        from llgae_cli import figures

        return figures.write_after_training(outcome.evaluated)
    except Exception as error:
        logger.warning("no figures were drawn (%s: %s); set figures: false to do without", type(error).__name__, error)
        return []
