"""What a checkpoint holds: its fields, what may stand in them, and what else is recorded of a run."""

import math
import numbers
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import llgae_cli
from llgae_cli.errors import InputError, RunError, printable

if TYPE_CHECKING:  # torch takes a second to import, and `llgae runs` needs this package without it
    from torch import Tensor

FORMAT = "llgae-checkpoint"
FORMAT_VERSION = 1
MAX_DEPTH = 20  # containers within containers; optimiser states have five
MAX_VALUES = 2_000_000  # values in one checkpoint's containers, each visit counted: shared nests do not multiply
MAX_DIGITS = 600  # of a whole number; generator states have some forty


@dataclass
class Checkpoint:
    """One run, all that is needed to evaluate it, to continue it and to say where it came from.

    config           the resolved config, plain values under its YAML keys
    state            the model's tensors, all finite
    history          one mapping of numbers per epoch, in order
    epoch            epochs done
    mean_l2          test mean L2, squared grey levels per pixel; train_mean_l2 likewise, where it is known
    seconds          time spent training
    data             task, fingerprint, shape, N, D and source of the data
    provenance       see `provenance()`
    trainer_state    optimiser and generator states: nested dicts, lists and tuples of tensors and plain values
    extras           anything derived from the data and worth keeping: usage counts, latent variances (K, E)
    """

    config: dict[str, Any]
    state: dict[str, "Tensor"]
    history: list[dict[str, float]]
    epoch: int
    mean_l2: float
    train_mean_l2: float | None
    seconds: float
    data: dict[str, Any]
    provenance: dict[str, Any]
    trainer_state: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)


def provenance() -> dict[str, Any]:
    """Versions of llgae, torch, numpy and python, system, git commit of the working folder or None, UTC time.

    Nothing that identifies a machine: neither its name nor its kernel's version.
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


def packed(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint as the dictionary that a file holds: contiguous CPU tensors and plain values, all checked.

    Raises RunError for a value that no file can hold, for a wrong type, or for a model that is not finite.
    """
    content = {f.name: _plain(getattr(checkpoint, f.name), f.name) for f in fields(Checkpoint)}
    wrong = _problem(content)
    if wrong:
        raise RunError(f"no checkpoint is written: {wrong}")
    return {"format": FORMAT, "format_version": FORMAT_VERSION, **content}


def unpacked(content: Any) -> Checkpoint:
    """The Checkpoint in a file's dictionary. Raises InputError: no checkpoint, another version, a wrong field."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError("not a checkpoint of llgae (a torch file of another program)")
    found = content.get("format_version")
    if type(found) is not int or found != FORMAT_VERSION:
        raise InputError(f"format version {printable(found)}, and this llgae reads version {FORMAT_VERSION} alone")
    names = [f.name for f in fields(Checkpoint)]
    missing = [name for name in names if name not in content]
    if missing:
        raise InputError(f"the field '{missing[0]}' is missing")
    unknown = [name for name in content if name not in {*names, "format", "format_version"}]
    if unknown:
        raise InputError(f"an unknown field '{printable(unknown[0])}'")
    values: dict[str, Any] = {name: content[name] for name in names}
    wrong = _problem(values)
    if wrong:
        raise InputError(wrong)
    for key in _REALS:
        values[key] = None if values[key] is None else float(values[key])
    return Checkpoint(**values)


def same_result(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether both hold one result: same model, epoch and numbers on the same data. Times and versions may differ.

    A run that was saved on its way and not at its end has no `train_mean_l2`; it is the same result without it.
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


_REALS = ("mean_l2", "train_mean_l2", "seconds")
_MAPPINGS = ("config", "state", "data", "provenance", "trainer_state", "extras")


def _problem(values: dict[str, Any]) -> str | None:
    """What is wrong with the fields, in one line, or None."""
    import torch

    for key in _MAPPINGS:
        if not isinstance(values[key], dict) or not all(isinstance(name, str) for name in values[key]):
            return f"'{key}' is not a mapping with text for keys"
    budget = iter(range(MAX_VALUES))
    for key, value in values.items():
        for part in _parts(value, key, budget):
            if isinstance(part, str):
                return part
            if _is_expanded(part):
                return f"'{key}' has a tensor of shape {tuple(part.shape)} with fewer numbers than that"
    for name, tensor in values["state"].items():
        if not isinstance(tensor, torch.Tensor):
            return f"'state' has a {type(tensor).__name__} for {printable(name)} and takes tensors alone"
        if not torch.isfinite(tensor).all():
            return f"'state' has values in {printable(name)} that are not finite"
    for key in ("config", "data", "provenance"):
        if any(not isinstance(part, str) for part in _parts(values[key], key, budget)):
            return f"'{key}' has a tensor and takes plain values alone"
    if not _is_whole(values["epoch"]) or values["epoch"] < 0:
        return "'epoch' is not a whole number >= 0"
    for key in _REALS:
        if values[key] is None and key == "train_mean_l2":
            continue
        if not _is_real(values[key]) or not 0 <= values[key] < math.inf:
            return f"'{key}' is not a finite number >= 0"
    rows = values["history"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return "'history' is not a list with one mapping per epoch"
    if not all(isinstance(name, str) and _is_real(number) for row in rows for name, number in row.items()):
        return "'history' has something other than numbers under names"
    return None


def _parts(value: Any, where: str, budget: Iterator[int]) -> Iterator[Any]:
    """The tensors in nested containers, and a line of text for the first thing that may not be there."""
    import torch

    ahead = [(value, MAX_DEPTH)]
    while ahead:
        part, depth = ahead.pop()
        if next(budget, None) is None:
            yield f"'{where}' holds more values than a checkpoint takes ({MAX_VALUES})"
            return
        if type(part) is torch.Tensor:
            plain = part.layout is torch.strided and part.device.type == "cpu"
            yield part if plain else f"'{where}' has a tensor that is sparse or has no numbers"
        elif type(part) in (dict, list, tuple):
            if depth == 0:
                yield f"'{where}' is nested too deeply"
                return
            if type(part) is dict and not all(type(key) in (str, int, float, bool) for key in part):
                yield f"'{where}' has keys that are no plain values"
            elif type(part) is dict and any(not _holds(key) for key in part):
                yield f"'{where}' has a text that is no UTF-8, or a whole number of more than {MAX_DIGITS} digits"
            ahead += [(inner, depth - 1) for inner in (part.values() if type(part) is dict else part)]
        elif not _holds(part):
            yield f"'{where}' has a text that is no UTF-8, or a whole number of more than {MAX_DIGITS} digits"
        elif part is not None and type(part) not in (str, int, float, bool):
            yield f"'{where}' has a {printable(type(part).__name__)} and takes tensors and plain values alone"


def _holds(value: Any) -> bool:
    """Whether a text or a whole number can be shown and written again: Python reads some that it cannot."""
    if type(value) is str:
        return value.isascii() or value == value.encode("utf-8", "ignore").decode()
    return type(value) is not int or value.bit_length() <= MAX_DIGITS * 3


def _plain(value: Any, where: str, depth: int = MAX_DEPTH) -> Any:
    """The value as a file may hold it. What `torch.load(weights_only=True)` could not read back is refused here."""
    import torch

    if isinstance(value, torch.Tensor):
        # A copy of its own: a view would drag its whole storage into the file.
        return value.detach().to("cpu", copy=True).contiguous().as_subclass(torch.Tensor)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()  # a path may hold bytes that are no UTF-8
    if isinstance(value, numbers.Integral):
        if int(value).bit_length() > MAX_DIGITS * 3:
            raise RunError(f"no checkpoint is written: '{where}' has a whole number of more than {MAX_DIGITS} digits")
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if depth and isinstance(value, Mapping):
        return {_plain(k, where, 0): _plain(v, where, depth - 1) for k, v in value.items()}
    if depth and isinstance(value, (list, tuple)):
        inner = [_plain(v, where, depth - 1) for v in value]
        return tuple(inner) if isinstance(value, tuple) else inner
    raise RunError(f"no checkpoint is written: '{where}' has a {type(value).__name__}, or is nested too deeply")


def _is_expanded(tensor: "Tensor") -> bool:
    """A shape can be declared that the file has no numbers for (stride 0): copying such a tensor would fill memory."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        # No lock and no prompt: this only looks.
        said = subprocess.run(
            ["git", "--no-optional-locks", "rev-parse", "--verify", "HEAD"],
            capture_output=True, text=True, timeout=2, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return said.stdout.strip() or None
