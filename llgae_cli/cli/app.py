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
from llgae_cli.cli.output import complain
from llgae_cli.errors import Interrupted, LlgaeError

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
    signals.listen()
    try:
        app()
    except LlgaeError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except Interrupted as interrupt:
        saved = f"; saved {interrupt.saved}, continue with --resume last" if interrupt.saved else ""
        complain(f"interrupted{saved}")
        interrupts.forget()  # it has been answered
        sys.exit(128 + interrupt.signum)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        complain("out of memory; fewer components (K), a smaller batch-size or fewer rows need less")
        sys.exit(1)
    except OSError as error:
        complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
        sys.exit(1)
    sys.exit(0)


def _out_of_memory(error: Exception) -> bool:
    """Torch's allocators raise RuntimeError, each in words of its own: CUDA, MPS, then Linux, then Windows."""
    said = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)
