"""The `llgae` command: its sub-commands, its signals, and the exit code of every way out."""

import sys
from typing import Annotated, NoReturn

import typer

from llgae_cli import __version__, interrupts
from llgae_cli.cli import (
    bench,
    compare,
    compress,
    config,
    data,
    decode,
    decompress,
    encode,
    eval,
    export,
    figures,
    info,
    init,
    report,
    runs,
    sample,
    score,
    shard_worker,
    signals,
    sweep,
    train,
)
from llgae_cli.cli.console import escape_unencodable, print_error, set_up_logging
from llgae_cli.errors import Interrupted, LlgaeError, RunError

app = typer.Typer(
    name="llgae",
    help="Train, evaluate and sweep locally linear generative autoencoders, described by YAML configs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Help texts stand here and not in docstrings, which `python -OO` removes.
app.command("train", help="Train a model: write its checkpoint, print its mean L2 on the test samples.")(train.train)
app.command(
    "eval",
    help="Evaluate a checkpoint: mean L2 (total and per class), explained variance, PSNR, use of components, bits.",
)(eval.evaluate)
app.command(
    "runs",
    help="List the checkpoints in a folder, each task ranked by its mean L2.\n\n"
    "Every command that takes a checkpoint also takes its id, or the beginning of one.",
)(runs.runs)
app.command("data", help=data.HELP)(data.data)
app.command(
    "init",
    help="Look at your data and write a commented config for it, with K and embed-dim from a quick fit.",
)(init.init)
app.command(
    "config",
    help="Print the resolved config (all keys that have an effect, defaults included), or the JSON Schema of all keys.",
)(config.config)
app.command(
    "bench",
    help="Measure speed, as ratios to this machine's matrix product, to a plain training loop and to scikit-learn.",
)(bench.bench)
app.command(
    "encode",
    help="Encode data: write k, b, mean squared residual and mean of each sample to an .npz file, and names of columns."
    "\n\n"
    "The models residual and shift also write s, the further symbols of their codes.",
)(encode.encode)
app.command("decode", help="Decode codes to data: x_hat (mu_k + W_k b for model llgae) plus each sample's own mean.")(
    decode.decode
)
app.command(
    "compress",
    help="Compress data to an entropy-coded file, at a bit rate, a step or an error bound that every row keeps.\n\n"
    "Prints the size, the bits a row (of the whole file), and the error of what the file decodes to.",
)(compress.compress)
app.command(
    "decompress",
    help="Decompress a file, or some of its rows, to an array of the original shape and type.\n\n"
    "The checkpoint is not needed where the file holds the model (compress --embed-model).",
)(decompress.decompress)
app.command("info", help="Print what a compressed file holds: rows, sizes, bits a row, model, settings.")(info.info)
app.command("sample", help="Generate samples: k by its frequency in training, b from that component's Gaussian.")(
    sample.sample
)
app.command(
    "score",
    help="Score how novel each row is: negative log-likelihood, squared residual, distance within the component.\n\n"
    "Thresholds are quantiles of the training rows' scores.",
)(score.score)
app.command(
    "export",
    help="Write mu and W of an affine model to a plain .safetensors file, for other programs.\n\n"
    "Its metadata hold the config and the names of columns. Needs the extra [export].",
)(export.export)
app.command(
    "figures",
    help="Draw figures of a checkpoint: training curve, reconstructions, atlas, usage, classes, spectrum; of a table "
    "also means, principal axes, parity, codes, residuals, a map of the components and samples.\n\n"
    "Several checkpoints give one figure, comparison: the same test images as each reconstructs them.",
)(figures.figures)
app.command(
    "compare",
    help="Compare checkpoints of one task in a table and figures: mean L2 against bits, training time and encoding "
    "time.\n\n"
    "Column bits: a code (k, b) with b as 32-bit floats. Columns bits coded and mean L2 coded: of the "
    "codec at the model's own step; an estimate, marked *, for models without one. Column E: the numbers in b. "
    "Figures: tradeoffs; comparison, the same test images as each checkpoint reconstructs them; with --bits also "
    "same_bits, these images as files of that rate hold them, and columns with the size and the error of such a "
    "file of at most some 10,000 test samples.",
)(compare.compare)
app.command("report", help="Write one self-contained HTML page: numbers, figures, config and an interactive explorer.")(
    report.report
)
app.command(
    "sweep",
    help="Run a grid of trainings, one process each; print a leaderboard, write tables and figures.",
)(sweep.sweep)
app.command("sweep-cell", hidden=True, help="Run one cell of a sweep (started by `llgae sweep`).")(sweep.sweep_cell)

app.command("shard-worker", hidden=True, help="Run shards, one after the other (started by commands over shards).")(
    shard_worker.shard_worker
)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"llgae {__version__}")
        raise typer.Exit
    set_up_logging()


def main() -> NoReturn:
    """Run the command line.

    Exit codes: 0, 1 a run failed, 2 wrong usage or input, 130 Ctrl-C, 143 SIGTERM, 129 the terminal was closed.
    """
    escape_unencodable()
    try:
        signals.install_handlers()
        code = _exit_code()
        signals.ignore_signals()
    except Interrupted as interrupt:
        print_error(_describe(interrupt))
        interrupts.reset()  # it has been answered
        code = 128 + interrupt.signum
    sys.exit(code)


def _describe(interrupt: Interrupted) -> str:
    """Return the line for an interrupt: the error of a run that failed before it, if any, and the saved file."""
    before = interrupt.__context__
    line = str(before) if isinstance(before, RunError) else "interrupted"
    if interrupt.saved is None or str(interrupt.saved) in line:
        return line
    return f"{line}; saved {interrupt.saved}, continue with --resume last"


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
            print_error(str(error))
            return error.exit_code
        if isinstance(error, (MemoryError, RuntimeError)) and _out_of_memory(error):
            print_error("out of memory; fewer components (K), a smaller batch-size or fewer rows need less")
            return 1
        if isinstance(error, OSError):
            print_error(f"{error.filename or 'input or output'}: {error.strerror or error}")
            return 1
        raise
    return 0


def _out_of_memory(error: Exception) -> bool:
    """Torch's allocators raise RuntimeError, each in words of its own: CUDA, MPS, then Linux, then Windows."""
    said = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)
