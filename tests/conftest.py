"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

from llgae_cli import threads

threads.set_waiting()  # before anything imports torch

from llgae_cli.errors import InputError  # noqa: E402
from llgae_cli.tasks import Task, load_task  # noqa: E402


@pytest.fixture(scope="session")
def fashion_mnist() -> Task:
    """Fashion-MNIST where it can be had; a skip otherwise, and a failure under CI=true."""
    try:
        return load_task("fashion-mnist", Path("data"))
    except InputError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"Fashion-MNIST is not to be had here: {error}")
