"""Content of a checkpoint: its fields, what each may hold, and the provenance of a run."""

import numbers
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

import llgae_cli
from llgae_cli.errors import InputError, RunError, printable
from llgae_cli.storage.json_files import summarise

if TYPE_CHECKING:  # torch takes a second to import, and `llgae runs` needs this package without it
    from torch import Tensor

FORMAT = "llgae-checkpoint"
FORMAT_VERSION = 1
MAX_DEPTH = 20  # containers within containers; optimiser states have five
MAX_VALUES = 2_000_000  # values in a checkpoint; a container that is referred to twice counts twice
MAX_BITS = 1800  # of an integer, some 540 digits; generator states have 40 digits
WITHOUT_TENSORS = ("config", "data", "provenance")


# pydantic's own types collect an error per wrong key or row, 5 GB of them for a hostile file: these stop at the first.


def check_keys(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """Return a mapping whose keys are texts; ValueError otherwise."""
    if not all(isinstance(key, str) for key in mapping):
        raise ValueError("not a mapping with text for keys")
    return mapping


def check_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return a model's state; ValueError where it has something other than finite tensors."""
    import torch

    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{printable(name)} is a {type(tensor).__name__}; only tensors are allowed")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{printable(name)} has values that are not finite")
    return state


def check_history(rows: list[Any]) -> list[Any]:
    """Return the rows of a history; ValueError where one is not a mapping of names to numbers."""
    for row in rows:
        if not isinstance(row, dict) or not all(type(key) is str and type(row[key]) in (int, float) for key in row):
            raise ValueError("not a list with one mapping of names to numbers per epoch")
    return rows


NamedValues = Annotated[dict[Any, Any], Field(strict=True), AfterValidator(check_keys)]
History = Annotated[list[Any], Field(strict=True), AfterValidator(check_history)]
Measure = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


@dataclass
class Checkpoint:
    """State of one run: everything needed to evaluate it, to continue it and to know its origin.

    config           the resolved config, plain values under its YAML keys
    state            the model's tensors, all finite
    history          one mapping of numbers per epoch, in order
    epoch            epochs done
    mean_l2          test mean L2, squared grey levels per pixel
    train_mean_l2    mean L2 on the training samples; None for an unfinished run
    seconds          time spent training
    data             task, fingerprint, shape, N, D and source of the data
    provenance       see `provenance()`
    trainer_state    optimiser and generator states: nested dicts, lists and tuples of tensors and plain values
    extras           statistics derived from the data: count (K,), latent_mean (K, E), latent_covariance (K, E, E), ...
    """

    config: NamedValues
    state: Annotated[NamedValues, AfterValidator(check_state)]
    history: History
    epoch: Annotated[int, Field(strict=True, ge=0)]
    mean_l2: Measure
    train_mean_l2: Measure | None
    seconds: Measure
    data: NamedValues
    provenance: NamedValues
    trainer_state: NamedValues = field(default_factory=dict)
    extras: NamedValues = field(default_factory=dict)


def provenance() -> dict[str, Any]:
    """Return versions of llgae, torch, numpy and python, the system, the git commit of the folder or None, UTC time.

    Nothing identifies the machine: neither its name nor the version of its kernel.
    """
    return {
        "llgae": llgae_cli.__version__,
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "git_commit": _git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def pack(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the dictionary that a file holds: contiguous CPU tensors and plain values, all checked.

    Raises RunError for a value that no file can hold, for a wrong type, or for a model that is not finite.
    """
    try:
        content = {f.name: _plain(getattr(checkpoint, f.name), f.name) for f in fields(Checkpoint)}
        validate_fields(content)
    except InputError as error:
        raise RunError(f"no checkpoint is written: {error}") from None
    return {"format": FORMAT, "format_version": FORMAT_VERSION, **content}


def unpack(content: Any) -> Checkpoint:
    """Return the Checkpoint in a file's dictionary; InputError: no checkpoint, another version, a wrong field."""
    check_format(content)
    return validate_fields({f.name: content[f.name] for f in fields(Checkpoint)})


def check_format(content: Any) -> None:
    """Raise InputError for a file's content that is no checkpoint, of another version, or without just its fields."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError("not a checkpoint of llgae (a torch file of another program)")
    stored = content.get("format_version")
    if type(stored) is not int or stored != FORMAT_VERSION:
        version = stored if type(stored) is int else f"of type {type(stored).__name__}"  # which may be huge as text
        raise InputError(f"format version {printable(version)}, and this llgae reads only version {FORMAT_VERSION}")
    names = [f.name for f in fields(Checkpoint)]
    missing = [name for name in names if name not in content]
    if missing:
        raise InputError(f"the field '{missing[0]}' is missing")
    unknown = [name for name in content if name not in {*names, "format", "format_version"}]
    if unknown:
        raise InputError(f"an unknown field '{printable(unknown[0])}'")


def validate_fields(values: dict[str, Any]) -> Checkpoint:
    """Return the fields of a checkpoint as a Checkpoint. Raises InputError, in one line, for the first wrong one."""
    _check_values(values)
    try:
        return _adapter().validate_python(values)
    except ValidationError as error:
        raise InputError(summarise(error)) from None


def same_result(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether both hold one result: the same model, epoch and numbers on the same data.

    Times and versions may differ. An unfinished run has no `train_mean_l2`; it is the same result without it.
    """
    import torch

    return (
        one.epoch == other.epoch
        and one.mean_l2 == other.mean_l2
        and (one.train_mean_l2 == other.train_mean_l2 or None in (one.train_mean_l2, other.train_mean_l2))
        and one.data.get("fingerprint") == other.data.get("fingerprint")
        and one.state.keys() == other.state.keys()
        and all(
            one.state[key].dtype == other.state[key].dtype
            and torch.equal(one.state[key].detach().cpu(), other.state[key].detach().cpu())
            for key in one.state
        )
    )


@cache
def _adapter() -> TypeAdapter[Checkpoint]:
    return TypeAdapter(Checkpoint)


def _check_values(values: dict[str, Any]) -> None:
    """Raise InputError for a value, at any depth, that a checkpoint may not hold; time and memory are bounded."""
    import torch

    left = MAX_VALUES
    for name, content in values.items():
        ahead = [(content, MAX_DEPTH)]
        while ahead:
            value, depth = ahead.pop()
            left -= 1
            if left < 0:
                raise InputError(f"'{name}' holds more values than a checkpoint may ({MAX_VALUES})")
            if type(value) in (dict, list, tuple):
                if depth == 0:
                    raise InputError(f"'{name}' is nested too deeply")
                if type(value) is dict:
                    for key in value:
                        _check_plain(key, name)
                ahead += [(inner, depth - 1) for inner in (value.values() if type(value) is dict else value)]
            elif type(value) is torch.Tensor and name not in WITHOUT_TENSORS:
                _check_tensor(value, name)
            elif value is not None:
                _check_plain(value, name)


def _check_plain(value: Any, name: str) -> None:
    """Raise InputError for a value that is not plain, or that Python reads but cannot print and write again."""
    if type(value) not in (str, int, float, bool):
        raise InputError(f"'{name}' has a {printable(type(value).__name__)}, which is not allowed there")
    if type(value) is str and not value.isascii() and value != value.encode("utf-8", "ignore").decode():
        raise InputError(f"'{name}' has a text that is not UTF-8")
    if type(value) is int and value.bit_length() > MAX_BITS:
        raise InputError(f"'{name}' has an integer of more than {MAX_BITS} bits")


def _check_tensor(tensor: "Tensor", name: str) -> None:
    """Raise InputError for a tensor that is not dense on the CPU, or has more values than the file (stride 0).

    To copy the latter would fill the memory.
    """
    import torch

    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise InputError(f"'{name}' has a tensor that is sparse or has no values")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"'{name}' has a tensor of shape {tuple(tensor.shape)} with fewer values than that")


def _plain(value: Any, where: str, depth: int = MAX_DEPTH) -> Any:
    """Return a value as a file may hold it; InputError for what `torch.load(weights_only=True)` cannot read back."""
    import torch

    if isinstance(value, torch.Tensor):
        # A copy: a view would drag its whole storage into the file.
        return value.detach().to("cpu", copy=True).contiguous().as_subclass(torch.Tensor)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()  # a path may have bytes that are not UTF-8
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if depth and isinstance(value, Mapping):
        return {_plain(k, where, 0): _plain(v, where, depth - 1) for k, v in value.items()}
    if depth and isinstance(value, (list, tuple)):
        inner = [_plain(v, where, depth - 1) for v in value]
        return tuple(inner) if isinstance(value, tuple) else inner
    raise InputError(f"'{where}' has a {type(value).__name__}, or is nested too deeply")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        # No lock and no prompt: the command only reads.
        done = subprocess.run(
            ["git", "--no-optional-locks", "rev-parse", "--verify", "HEAD"],
            capture_output=True, text=True, timeout=2, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() or None
