"""The `llgae` command: its sub-commands, its signals, and the exit code of every way out."""

import sys
from typing import Annotated, NoReturn

import typer

from llgae_cli import __version__, interrupts
from llgae_cli.cli import (
    benching,
    coding,
    comparing,
    configs,
    datasets,
    evaluating,
    listing,
    picturing,
    signals,
    sweeping,
    training,
)
from llgae_cli.cli.output import complain, escape_unencodable
from llgae_cli.errors import Interrupted, LlgaeError, RunError

app = typer.Typer(
    name="llgae",
    help="Train, evaluate and sweep locally linear generative autoencoders: YAML in, checkpoints and numbers out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(training.train)
app.command("eval")(evaluating.evaluate)
app.command("runs")(listing.runs)
app.command("data")(datasets.data)
app.command("config")(configs.config)
app.command("bench")(benching.bench)
app.command("encode")(coding.encode)
app.command("decode")(coding.decode)
app.command("sample")(coding.sample)
app.command("figures")(picturing.figures)
app.command("compare")(comparing.compare)
app.command("report")(picturing.report)
app.command("sweep")(sweeping.sweep)
app.command("sweep-cell", hidden=True)(sweeping.sweep_cell)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"llgae {__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line.

    Exit codes: 0, 1 a run failed, 2 wrong usage or input, 130 Ctrl-C, 143 SIGTERM, 129 the terminal was closed.
    """
    escape_unencodable()
    try:
        signals.listen()
        code = _exit_code()
        signals.ignore()  # what comes now comes too late
    except Interrupted as interrupt:
        saved = f"; saved {interrupt.saved}, continue with --resume last" if interrupt.saved else ""
        complain(f"interrupted{saved}")
        interrupts.forget()  # it has been answered
        code = 128 + interrupt.signum
    sys.exit(code)


def _exit_code() -> int:
    """Of the command, whose errors are told. Raises Interrupted, also where a library made another error of it."""
    try:
        app()
    except SystemExit as ended:  # click's own, for wrong usage
        return ended.code if isinstance(ended.code, int) else 0
    except Exception as error:
        if not isinstance(error, RunError):  # which may be that the interrupted state could not be saved
            interrupts.check()
        if isinstance(error, LlgaeError):
            complain(str(error))
            return error.exit_code
        if isinstance(error, (MemoryError, RuntimeError)) and _out_of_memory(error):
            complain("out of memory; fewer components (K), a smaller batch-size or fewer rows need less")
            return 1
        if isinstance(error, OSError):
            complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
            return 1
        raise
    return 0


def _out_of_memory(error: Exception) -> bool:
    """Torch's allocators raise RuntimeError, each in words of its own: CUDA, MPS, then Linux, then Windows."""
    said = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)
