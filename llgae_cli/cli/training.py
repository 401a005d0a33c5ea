"""`llgae train`."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llgae_cli.cli.options import ConfigFiles, Json, Overrides, Quiet
from llgae_cli.cli.output import Progressing, print_json, say
from llgae_cli.config import read_config
from llgae_cli.errors import Interrupted, RunError
from llgae_cli.formatting import five_digits

if TYPE_CHECKING:
    from llgae_cli.experiment import Outcome


def train(
    config: ConfigFiles,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on from a checkpoint: `last` of this config, or a file.", metavar="last|FILE"),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Where a run of this config is at work in the folder, wait for its end.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run `llgae train`; `app` has its help."""
    settings = read_config(config, overrides or [], Progressing(quiet=True).warn)
    from llgae_cli import experiment  # torch takes a second to import; a wrong config is told before

    with Progressing(quiet) as progress:
        outcome = experiment.train(settings, progress, resume, math.inf if wait else 0.0)
    if outcome.checkpoint is None:  # another rank than the first
        return
    try:
        drawn = draw_beside(outcome.checkpoint, settings.data_dir, progress) if settings.figures else []
        tell(outcome, drawn, json)
    except Interrupted as interrupt:
        interrupt.saved = outcome.checkpoint
        raise
    except RunError as error:
        raise RunError(f"{error}; the run is done and its checkpoint is {outcome.checkpoint}") from None


def tell(outcome: "Outcome", drawn: list[Path], json: bool) -> None:
    """The result on stdout."""
    if json:
        files = [str(path) for path in drawn]
        print_json({**asdict(outcome), "checkpoint": str(outcome.checkpoint), "figures": files})
        return
    say(
        f"mean L2     {five_digits(outcome.mean_l2)} on test, {five_digits(outcome.train_mean_l2)} on train",
        f"training    {outcome.epochs} epochs in {outcome.seconds:.1f} s",
        f"checkpoint  {outcome.checkpoint}",
    )


def draw_beside(checkpoint: Path, data_dir: Path, progress: Progressing) -> list[Path]:
    """Draw the training curve and reconstructions beside a checkpoint; whatever goes wrong is a warning.

    The run is safe on disk by now, and a picture that fails must not make it look lost.
    """
    from llgae_cli import figures

    try:
        return figures.write_beside(checkpoint, data_dir)
    except Exception as error:
        progress.warn(f"no figures were drawn ({type(error).__name__}: {error}); set figures: false to do without")
        return []
