"""Configs in YAML files and `key=value` overrides."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from llgae_cli.config.schema import KEYS, Config
from llgae_cli.config.shipped import find_config
from llgae_cli.config.validation import join_faults, parse_config, parse_key, parse_keys, source_of
from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.regular_files import read_text

logger = logging.getLogger(__name__)

MAX_CONFIG_BYTES = 100_000  # parsing takes some 10 s a megabyte
MAX_VALUES, MAX_DEPTH, MAX_BITS = 100_000, 20, 2_000  # of the values once YAML's anchors are resolved


def read_config(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Config:
    """Read YAML files or shipped configs by name, where the later wins, then `key=value` overrides.

    Raises InputError, in one line, for a file that cannot be read, an unknown key, a value that is not allowed, or a
    key that has no effect with the resulting model and trainer (for the source document's six keys it is a warning).
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for path in map(find_config, paths):
        where = printable(path, 200)
        given = parse_keys(read_mapping(path), where)
        values, origin = {**values, **given}, {**origin, **dict.fromkeys(given, where)}
    for override in overrides:
        key, value, where = parse_override(override)
        values[key], origin[key] = value, where
    config = parse_config(values, origin)
    refuse_unused({key: reason for key in values if (reason := config.explain_unused(key))}, origin)
    return config


def read_values(values: Mapping[Any, Any]) -> Config:
    """Return plain values under the config's keys, with dashes or underscores, as a Config.

    Numbers of numpy and paths count as plain. Raises InputError as `read_config`, in the same words as for overrides.
    """
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    plain = {name: str(value) if isinstance(value, PurePath) else value for name, value in plain.items()}
    given = parse_keys(plain, "config")
    config = parse_config(given)
    refuse_unused({key: reason for key in given if (reason := config.explain_unused(key))}, {})
    return config


def read_stored(path: Path) -> Config:
    """Read a config that this package wrote with every key in it; keys without effect are accepted."""
    where = printable(path, 200)
    values = parse_keys(read_mapping(path), where)
    return parse_config(values, dict.fromkeys(values, where))


def parse_override(override: str) -> tuple[str, Any, str]:
    """Return the key and the value of `key=value`, and the words that name the option in errors."""
    where = f"-S {printable(override)}"
    name, separator, text = override.partition("=")
    if not separator:
        raise InputError(f"{where}: expected key=value")
    return parse_key(name.strip(), where), parse_yaml(text, where), where


def refuse_unused(reasons: Mapping[str, str], origin: Mapping[str, str], varied: Collection[str] = ()) -> None:
    """Raise InputError for the keys that were given and have no effect.

    For the source document's six keys it is a warning, except for those that a sweep has `varied`. `reasons` are those
    of `Config.explain_unused`, `origin` names the file or option that each key came from.
    """
    lines = {key: f"{source_of(key, origin)}{key}: {reason}" for key, reason in reasons.items()}
    wrong = [
        f"{line}; it is for {KEYS[key].effect}" for key, line in lines.items() if not KEYS[key].source or key in varied
    ]
    if wrong:
        raise InputError(join_faults(wrong))
    if lines:
        logger.warning("; ".join(lines.values()))


def read_mapping(path: Path) -> dict[Any, Any]:
    """Return the mapping in a YAML file.

    Raises InputError for a file that is missing, empty, binary, too large or holds no mapping.
    """
    where = printable(path, 200)
    try:
        text = read_text(path, MAX_CONFIG_BYTES, "config", pipe=True)  # as `--config <(...)` gives
    except FileNotFoundError:
        near = nearest(path.name, (p.name for p in path.parent.glob("*.y*ml"))) if path.parent.is_dir() else ""
        raise InputError(f"{where}: no such config file{near}") from None
    values = parse_yaml(text, where)
    if values is None:
        raise InputError(f"{where}: the file is empty; expected lines such as 'K: 11'")
    if not isinstance(values, dict):
        raise InputError(f"{where}: holds a {type(values).__name__}, not a mapping of keys to values")
    return values


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML that holds only plain values.

    Raises InputError, which names the line, for invalid YAML, more than MAX_VALUES values once anchors are resolved,
    or containers nested deeper than MAX_DEPTH.
    """
    try:
        values = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{where}:{line} not valid YAML: {printable(error.problem)}") from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply for a config") from None
    except Exception as error:  # `!!int ""` is an IndexError, `!!bool x` a KeyError, and so on
        raise InputError(f"{where}: not valid YAML: {printable(error)}") from None
    fault = _find_fault(values)
    if fault:
        raise InputError(f"{where}: {fault}")
    return values


def _find_fault(values: Any) -> str | None:
    """Return why plain values are refused, or None. Anchors can make a list hold 10^9 values, or itself."""
    pending, seen = [(values, MAX_DEPTH)], 0
    while pending:
        (value, depth), seen = pending.pop(), seen + 1
        if seen > MAX_VALUES or depth == 0:
            return "nested too deeply for a config" if depth == 0 else f"more than {MAX_VALUES} values"
        if isinstance(value, dict):
            pending += [(part, depth - 1) for pair in value.items() for part in pair]
        elif isinstance(value, (list, tuple, set)):
            pending += [(part, depth - 1) for part in value]
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            return f"a whole number of more than {MAX_BITS} bits"
        elif isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
            return f"a text with characters that no name or path can have: {printable(value)}"
    return None


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
