"""A model out of a checkpoint: nothing is built, and no memory taken, before its tensors bear out its config."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from llgae_cli import checkpoints
from llgae_cli.assembly import build_model
from llgae_cli.checkpoints import Checkpoint, CheckpointName
from llgae_cli.checkpoints.names import SUFFIX
from llgae_cli.config import Config, validated
from llgae_cli.errors import InputError, LlgaeError, printable
from llgae_cli.models import Model

CERTAIN = 4096  # a size up to this is built and looked at, whatever the tensors
BEYOND = 1e34  # mean L2 of the largest values that a task takes stays below


def restore(path: Path) -> tuple[Model, Checkpoint, Config]:
    """The model in a checkpoint, ready to encode and decode; InputError where the file is not sound."""
    checkpoint = checkpoints.load(path)
    try:
        config = validated(checkpoint.config)
        shape = tuple(int(side) for side in checkpoint.data["shape"])
        check_sizes(config, checkpoint)
        # Sizes alone: what a config claims takes no memory before the tensors bear it out.
        with torch.device("meta"), _Undrawn():
            claimed = build_model(config, shape)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, LlgaeError) as error:
        reason = printable(error, 200)
        raise InputError(f"{printable(path.name, 200)}: its config does not make a model ({reason})") from None
    check_state(claimed, checkpoint, path)
    check_record(checkpoint, path)
    model = build_model(config, shape)
    load_state(model, checkpoint, path)
    return model, checkpoint, config


def find_finished(folder: Path, config: Config) -> Path:
    """The newest checkpoint of this very config in `folder` that was saved at a run's end; InputError where none is.

    A checkpoint saved on the way, on a signal say, has no mean L2 on the training samples and is passed over.
    """
    found: list[tuple[float, Path]] = []
    for path in Path(folder).glob(f"S*{SUFFIX}") if Path(folder).is_dir() else ():
        with suppress(InputError, OSError):  # no checkpoint's name, or gone since it was listed
            if CheckpointName.parse(path.name).model == config.model:
                found.append((path.stat().st_mtime, path))
    for _, path in sorted(found, reverse=True):
        with suppress(InputError):  # unsound, or a config of another version of llgae
            checkpoint = checkpoints.load(path)
            if checkpoint.train_mean_l2 is not None and validated(checkpoint.config).identity() == config.identity():
                return path
    raise InputError(
        f"{printable(folder, 300)}: no finished checkpoint of this config (cfg{config.identity()}, seed {config.seed}, "
        f"task {printable(config.task, 60)}); train it first"
    )


def load_state(model: Model, checkpoint: Checkpoint, path: Path) -> None:
    """Put a checkpoint's tensors into a model; InputError when names, shapes or types do not fit its own config."""
    check_state(model, checkpoint, path)
    model.load_state_dict(checkpoint.state)
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise InputError(f"{printable(path.name, 200)}: its tensors hold numbers beyond the model's precision")


def check_sizes(config: Config, checkpoint: Checkpoint) -> None:
    """Raise InputError for a size that the tensors are too few for: modules are built one by one, in no time or never.

    Sizes up to CERTAIN pass: some are of no meaning for the config's model and stand at their default.
    """
    most = max(CERTAIN, sum(tensor.numel() for tensor in checkpoint.state.values()))
    for key in ("K", "embed_dim", "levels", "width", "channels", "gate_dim", "window"):
        if getattr(config, key, 0) > most:
            raise InputError(f"{key.replace('_', '-')}: {getattr(config, key)} for a model of at most {most} numbers")


def check_state(model: Model, checkpoint: Checkpoint, path: Path) -> None:
    """Raise InputError where a checkpoint's tensors are not those of the model, by name, shape and kind of number."""
    own, found = model.state_dict(), checkpoint.state
    unequal = own.keys() ^ found.keys()
    wrong = f"it lacks or adds {sorted(unequal)[0]}" if unequal else ""
    for name in own if not wrong else ():
        mine, given = own[name], found[name]
        if mine.shape != given.shape:
            wrong = f"{name} is {tuple(given.shape)}, not {tuple(mine.shape)}"
        elif mine.dtype != given.dtype and not (mine.is_floating_point() and given.is_floating_point()):
            wrong = f"{name} holds {given.dtype}, not {mine.dtype}"
    if wrong:
        raise InputError(f"{printable(path.name, 200)}: its tensors do not fit its config ({printable(wrong, 200)})")


def check_record(checkpoint: Checkpoint, path: Path) -> None:
    """Raise InputError where a checkpoint's history or data say what no run writes: figures and resuming rely on it."""
    peak = checkpoint.data.get("peak", 255.0)
    wrong = ""
    if not all({"epoch", "seconds"} <= row.keys() for row in checkpoint.history):
        wrong = "a row of its history lacks epoch or seconds"
    elif not all(abs(number) < BEYOND for row in checkpoint.history for number in row.values()):
        wrong = "its history holds numbers that no run comes to"
    elif not isinstance(peak, (int, float)) or not 0 < peak < BEYOND:
        wrong = f"its peak is {printable(peak)}, not a number above 0"
    if wrong:
        raise InputError(f"{printable(path.name, 200)}: {wrong}")


class _Undrawn(TorchFunctionMode):
    """No random numbers for tensors that have none: torch would import its compiler for them, which takes 2 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.nn.init.normal_, torch.nn.init.uniform_, torch.nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
