"""Bytes that a checkpoint keeps in its extras, as the codec, read without torch, which takes seconds to import.

A file of torch.save is a zip: `data.pkl` is a pickle in which a tensor is a call of `_rebuild_tensor_v2` with the
number of its storage, and `data/NUMBER` has the bytes of that storage.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

from llgae_cli.errors import InputError, show_path
from llgae_cli.storage.checkpoint import check_format
from llgae_cli.storage.checkpoint_file import GLOBALS, explain_failure, inspect, open_checkpoint


class StoredTensor(NamedTuple):
    """A tensor as the pickle describes it, unchecked. `storage` is ("storage", kind, number, device, values)."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any


class _Unpickler(pickle.Unpickler):
    """Reads plain values and describes tensors; whatever else the pickle names is refused, and nothing is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module} {name}" not in GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name}")
        if name == "OrderedDict":
            return OrderedDict
        # A new function each time: the pickle may set attributes of what it gets.
        return (lambda *given: StoredTensor(*given[:4])) if name == "_rebuild_tensor_v2" else name

    def persistent_load(self, storage: Any) -> Any:
        return storage


def read_extra(path: Path, name: str) -> bytes | None:
    """Return the tensor of bytes `name` in the extras of a checkpoint; None where it has none.

    The other fields are not validated. Raises InputError as `load` for a file that is no sound checkpoint, and where
    `name` is anything but bytes.
    """
    path = Path(path)
    with open_checkpoint(path) as file:
        try:
            inspect(file)
            with zipfile.ZipFile(file) as archive:
                extras = _read_extras(archive)
                return None if extras.get(name) is None else _read_tensor(archive, extras[name], name)
        except InputError as error:
            raise InputError(f"{show_path(path)}: {error}") from None


def _read_extras(archive: zipfile.ZipFile) -> dict[Any, Any]:
    try:
        with archive.open(f"{_top(archive)}/data.pkl") as pickled:
            content = _Unpickler(pickled).load()
    except Exception as error:  # a manipulated pickle raises nearly any error, as in `load`
        raise explain_failure(error) from None
    check_format(content)
    extras = content["extras"]
    if not isinstance(extras, dict):
        raise InputError("extras: not a mapping with text for keys")
    return extras


def _read_tensor(archive: zipfile.ZipFile, tensor: Any, name: str) -> bytes:
    """Return the bytes of a tensor. Raises InputError for another type, and for more bytes than its storage has."""
    try:
        (_, kind, number, _, _), first, (n,), (stride,) = tensor
        if type(number) is not str or type(first) is not int or type(n) is not int:
            raise ValueError
        whole = archive.read(f"{_top(archive)}/data/{number}")
        if kind != "ByteStorage" or stride != 1 or min(first, n) < 0 or first + n > len(whole):
            raise ValueError
        return whole[first : first + n]
    except Exception:  # of a manipulated file, nearly any, as in `load`
        raise InputError(f"its {name} is damaged") from None


def _top(archive: zipfile.ZipFile) -> str:
    return archive.namelist()[0].partition("/")[0]
