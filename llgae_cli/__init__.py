"""llgae: an experiment runner for locally linear generative autoencoders.

    import llgae_cli as llgae

`__all__` names the Python API; everything else may change. Importing the package does not import torch: that happens
when a name is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llgae_cli.api import Codes, FittedModel, TrainingResult, load, train
    from llgae_cli.codec import Codec
    from llgae_cli.config import Config, read_config
    from llgae_cli.errors import InputError, LlgaeError, RunError
    from llgae_cli.progress import Progress
    from llgae_cli.tasks import load_task

__version__ = "0.1.0"

__all__ = [
    "Codec",
    "Codes",
    "Config",
    "FittedModel",
    "InputError",
    "LlgaeError",
    "Progress",
    "RunError",
    "TrainingResult",
    "load",
    "load_task",
    "read_config",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the API when one of its names is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'llgae_cli' has no attribute {name!r}")
    from llgae_cli import errors

    if hasattr(errors, name):
        return getattr(errors, name)
    from llgae_cli import config

    if hasattr(config, name):
        return getattr(config, name)
    from llgae_cli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """Return the names of the API, which are not imported yet, and those of the module."""
    return sorted({*globals(), *__all__})
