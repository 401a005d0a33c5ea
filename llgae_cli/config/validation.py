"""Plain values to a validated Config, and pydantic's errors as one line that names file, key and value."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from llgae_cli.config.schema import KEYS, Config
from llgae_cli.errors import InputError, nearest, printable

Model = TypeVar("Model", bound=BaseModel)


def parse_config(values: Mapping[str, Any], origin: Mapping[str, str] | None = None) -> Config:
    """Return a Config from plain values, as files store them: keys without effect are accepted.

    `origin` names the file or option that each key came from, for errors. Raises InputError.
    """
    return validate(Config, values, origin or {})


def validate(model: type[Model], values: Mapping[str, Any], origin: Mapping[str, str]) -> Model:
    """Return plain values as the model; InputError names file, key and value of the first faults in one line.

    `origin` names the file of each key, or of all keys under `""`.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults: dict[str, list[Any]] = {}
        for fault in error.errors():  # a key that accepts one of several types has a fault with each
            faults.setdefault(str(fault["loc"][0]) if fault["loc"] else "", []).append(fault)
        raise InputError(join_faults([_describe(key, found, model, origin) for key, found in faults.items()])) from None


def join_faults(lines: Sequence[str], limit: int = 3) -> str:
    """Return the first faults in one line, with the number of those left out."""
    return "; ".join(lines[:limit]) + (f"; and {len(lines) - limit} more" if len(lines) > limit else "")


def parse_keys(mapping: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return a mapping with its keys as `parse_key` returns them."""
    return {parse_key(name, where): value for name, value in mapping.items()}


def parse_key(name: object, where: str) -> str:
    """Return the YAML spelling of a key's name, in which underscores are accepted.

    Raises InputError, with the nearest key, where there is no such key. `where` is the file or option.
    """
    key = str(name).replace("_", "-")
    if key == "model-name":  # the spelling of the source document and its checkpoint names
        key = "model"
    if key not in KEYS:
        raise InputError(f"{where}: unknown key '{printable(name)}'{nearest(key, KEYS)}")
    return key


def source_of(key: str, origin: Mapping[str, str]) -> str:
    """Return the file that a key came from, with a colon, to begin an error with; nothing for an override."""
    return f"{origin[key]}: " if key in origin and not origin[key].startswith("-S") else ""


def _describe(key: str, faults: Sequence[Any], model: type[BaseModel], origin: Mapping[str, str]) -> str:
    first = faults[0]
    message = " or ".join(_lower(fault["msg"].removeprefix("Value error, ")) for fault in faults)
    message = message.replace(" or input should be ", " or ")
    if not key:  # of several keys together: a validator's own words, which begin with the key at fault
        message = first["msg"].removeprefix("Value error, ")
        return source_of(message.partition(":")[0], origin) + message
    key = key.replace("_", "-")
    where = source_of(key if key in origin else "", origin)
    if first["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in model.model_fields.items()]
        return f"{where}unknown key '{printable(key)}'{nearest(key, known)}"
    if first["type"] == "missing":
        return f"{where}{key} is missing"
    options = " ".join(str((fault.get("ctx") or {}).get("expected", "")) for fault in faults)
    value = first["input"]
    near = nearest(value, re.findall(r"'([^']+)'", options)) if isinstance(value, str) else ""
    return f"{where}{key}: {printable(_spell(value))} is not allowed: {message}{near}"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _spell(value: Any) -> str:
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):  # a number of 5000 digits, a list that contains itself
        return f"a {type(value).__name__}"
