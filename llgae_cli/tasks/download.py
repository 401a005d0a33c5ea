"""Downloads by torchvision: imported only when needed, without its output, its errors as one line."""

import contextlib
import io
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from llgae_cli.errors import InputError, explain, show_path

STALLED_SECONDS = 30.0


def datasets() -> Any:
    """Return torchvision.datasets; InputError with the pip command when it is missing or does not fit torch."""
    try:
        import torchvision.datasets
    # A build for another torch fails in any of these ways, and differently when it is imported again.
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        build = torch.__version__.partition("+")[2]  # cpu, cu130, ...; empty: the build of PyPI
        index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
        what = "is missing" if isinstance(error, ModuleNotFoundError) else "does not fit it"
        raise InputError(
            f"torch {torch.__version__} is installed, but torchvision {what} ({explain(error)}); install the pair: "
            f"pip install --force-reinstall torch torchvision{index}"
        ) from None
    return torchvision.datasets


def download(get: Callable[[Any, Path], Any], data_dir: Path) -> None:
    """Call get(torchvision.datasets, folder) on a new folder, then move the files that it made there to `data_dir`.

    Files appear under their final names only when complete, so two processes may download at once.
    Raises InputError with the reason when nothing could be downloaded.
    """
    module = datasets()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".download-", dir=data_dir))
    except (OSError, RecursionError) as error:  # RecursionError: a path a thousand folders deep
        raise InputError(f"{show_path(data_dir)}: cannot be written ({explain(error)})") from None
    try:
        with _silence():
            get(module, staging)
        for entry in sorted(staging.iterdir()):
            _move(entry, data_dir / entry.name)
    except (OSError, RuntimeError, ValueError, EOFError, HTTPException) as error:
        raise InputError(explain(error)) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load(get: Callable[[Any, Path], Any], data_dir: Path) -> Any:
    """Return get(torchvision.datasets, data_dir), or None when the files there are missing or damaged.

    CIFAR-10 is published as pickles; torchvision unpickles only files that have the published checksums.
    """
    module = datasets()
    try:
        with _silence():
            return get(module, data_dir)
    except ImportError as error:
        raise InputError(f"{explain(error)}; install it with pip (SVHN's .mat files need scipy)") from None
    except (RuntimeError, OSError):
        return None


def _move(entry: Path, target: Path) -> None:
    if not entry.is_dir():
        os.replace(entry, target)
        return
    target.mkdir(exist_ok=True)
    for inner in sorted(entry.iterdir()):
        _move(inner, target / inner.name)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    # stdout is for results, and a bar is for terminals. A server that stalls must not stop a run for ever.
    terminal = sys.stderr is not None and sys.stderr.isatty()
    output: Any = sys.stderr if terminal else io.StringIO()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_SECONDS)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield
    finally:
        socket.setdefaulttimeout(before)
