"""torchvision at arm's length: imported late, kept quiet, and its failures turned into one line."""

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

from llgae_cli.errors import InputError
from llgae_cli.tasks.npy_file import reason, shown

STALLED_SECONDS = 30.0


def datasets() -> Any:
    """Import torchvision.datasets; InputError with the pip command when it is missing or does not fit torch."""
    try:
        import torchvision.datasets
    # A build made for another torch fails in any of these ways, and in another one when it is imported again.
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        build = torch.__version__.partition("+")[2]  # cpu, cu130, ...; none: the registry's own build
        index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
        what = "is missing" if isinstance(error, ModuleNotFoundError) else "does not fit it"
        raise InputError(
            f"torch {torch.__version__} is installed, but torchvision {what} ({reason(error)}); install the pair: "
            f"pip install --force-reinstall torch torchvision{index}"
        ) from None
    return torchvision.datasets


def fetch(get: Callable[[Any, Path], Any], data_dir: Path) -> None:
    """Call get(torchvision.datasets, folder) on a fresh folder, then move what it left there into `data_dir`.

    Files appear under their final names only when whole, so two processes may fetch at once.
    Raises InputError saying why nothing could be fetched.
    """
    module = datasets()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".download-", dir=data_dir))
    except (OSError, RecursionError) as error:  # RecursionError: a path a thousand folders deep
        raise InputError(f"{shown(data_dir)}: cannot be written to ({reason(error)})") from None
    try:
        with _quiet():
            get(module, staging)
        for entry in sorted(staging.iterdir()):
            _put(entry, data_dir / entry.name)
    except (OSError, RuntimeError, ValueError, EOFError, HTTPException) as error:
        raise InputError(reason(error)) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load(get: Callable[[Any, Path], Any], data_dir: Path) -> Any:
    """Return get(torchvision.datasets, data_dir), or None when torchvision finds no sound copy of its files there.

    CIFAR-10 is published as pickles; torchvision unpickles only files whose checksums are the published ones.
    """
    module = datasets()
    try:
        with _quiet():
            return get(module, data_dir)
    except ImportError as error:
        raise InputError(f"{reason(error)}; install it with pip (SVHN's .mat files need scipy)") from None
    except (RuntimeError, OSError):
        return None


def _put(entry: Path, target: Path) -> None:
    if not entry.is_dir():
        os.replace(entry, target)
        return
    target.mkdir(exist_ok=True)
    for inner in sorted(entry.iterdir()):
        _put(inner, target / inner.name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # stdout belongs to the results, and a bar is for terminals. A stalled server must not hold a run for ever.
    terminal = sys.stderr is not None and sys.stderr.isatty()
    aside: Any = sys.stderr if terminal else io.StringIO()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_SECONDS)
    try:
        with contextlib.redirect_stdout(aside), contextlib.redirect_stderr(aside):
            yield
    finally:
        socket.setdefaulttimeout(before)
