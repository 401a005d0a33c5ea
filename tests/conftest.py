"""Fixtures that several test files share, and the processor that the tests run on or pretend to."""

import gc
import locale
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llgae_cli import threads

threads.set_wait_policy()  # before anything imports torch

import torch  # noqa: E402
from command_line import llgae  # noqa: E402, F401 - a fixture, in tests/command_line.py

from llgae_cli.errors import InputError  # noqa: E402
from llgae_cli.tasks import Task, load_task  # noqa: E402

VNNI = os.environ.get("LLGAE_TEST_VNNI")  # 1, 0: as if the processor had, or lacked, products of bytes (`make modes`)
if VNNI is not None:
    torch.cpu._is_vnni_supported = lambda: VNNI == "1"


@pytest.fixture(scope="session")
def frozen_garbage() -> Iterator[None]:
    """Objects that outlive a test are not searched again, see `collect_garbage`, until all tests are done."""
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def collect_garbage(frozen_garbage: None) -> Iterator[None]:
    """A file that a test leaves open fails that test, rather than the one that runs when Python collects it."""
    yield
    gc.collect()
    gc.freeze()  # a collection takes a few milliseconds in place of 200


@pytest.fixture(scope="session")
def normal() -> Callable[..., torch.Tensor]:
    """Standard normal float64 numbers: `normal(seed, *shape)`."""

    def draw(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return draw


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """The messages of the package, warnings and information, in the order in which they come."""
    kept: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]
    package = logging.getLogger("llgae_cli")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    yield kept
    package.removeHandler(handler)
    package.setLevel(level)


@pytest.fixture(scope="session")
def fashion_mnist() -> Task:
    """Fashion-MNIST where it can be had; a skip otherwise, and a failure under CI=true."""
    try:
        return load_task("fashion-mnist", Path("data"))
    except InputError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"Fashion-MNIST is not to be had here: {error}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line about what the numbers were computed with."""
    vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: None)()
    terminalreporter.write_line(
        f"torch {torch.__version__}: {torch.backends.cpu.get_cpu_capability()}, VNNI {vnni}, "
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores; "
        f"{locale.setlocale(locale.LC_CTYPE)}, {time.tzname[0]}, {'root' if os.geteuid() == 0 else 'plain user'}"
    )
