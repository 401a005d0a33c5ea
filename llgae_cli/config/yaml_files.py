"""Configs in YAML files and `key=value` overrides."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llgae_cli.config.schema import SOURCE_KEYS, USED, Config, known_key, source_of, validated
from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.regular_files import read_text

logger = logging.getLogger(__name__)

MAX_CONFIG_BYTES = 100_000  # parsing takes some 10 s a megabyte
MAX_VALUES, MAX_DEPTH, MAX_BITS = 100_000, 20, 2_000  # of what YAML stands for once its anchors are followed


def read_config(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Config:
    """Read YAML files, the later over the earlier, then `key=value` overrides.

    Raises InputError, in one line, for a file that cannot be read, an unknown key, a value out of range, or a key that
    the resulting model and trainer do not use (for one of SOURCE_KEYS it is a warning).
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for path in paths:
        where = printable(path, 200)
        for key, value in read_mapping(path).items():
            name = known_key(key, where)
            values[name], origin[name] = value, where
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"-S {printable(override)}: expected key=value")
        where = f"-S {printable(override)}"
        name = known_key(key.strip(), where)
        values[name], origin[name] = parse_yaml(text, where), where
    config = validated(values, origin)
    refuse_unused({key: reason for key in values if (reason := config.no_effect(key))}, origin)
    return config


def read_stored(path: Path) -> Config:
    """Read a config that this package has written, with every key in it: keys without effect are no error there."""
    where = printable(path, 200)
    values = {known_key(key, where): value for key, value in read_mapping(path).items()}
    return validated(values, dict.fromkeys(values, where))


def refuse_unused(
    reasons: Mapping[str, str],
    origin: Mapping[str, str],
    varied: Collection[str] = (),
) -> None:
    """Raise InputError for the keys that were given and have no effect; a warning for those of SOURCE_KEYS.

    `reasons` are `Config.no_effect`'s, `origin` names the file or option each key came from. Of SOURCE_KEYS, those that
    a sweep has `varied` are an error too.
    """
    lines = {key: f"{source_of(key, origin)}{key}: {reason}" for key, reason in reasons.items()}
    wrong = [f"{line}; it is for {USED[key]}" for key, line in lines.items() if key not in SOURCE_KEYS or key in varied]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError("; ".join(wrong[:3]) + more)
    if lines:
        logger.warning("; ".join(lines.values()))


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file; InputError when the file is missing, empty, binary, too large or no mapping."""
    where = printable(path, 200)
    try:
        text = read_text(path, MAX_CONFIG_BYTES, "config", pipe=True)  # `--config <(...)` is one
    except FileNotFoundError:
        near = nearest(path.name, (p.name for p in path.parent.glob("*.y*ml"))) if path.parent.is_dir() else ""
        raise InputError(f"{where}: no such config file{near}") from None
    values = parse_yaml(text, where)
    if values is None:
        raise InputError(f"{where}: empty; a config holds lines such as 'K: 11'")
    if not isinstance(values, dict):
        raise InputError(f"{where}: holds a {type(values).__name__}; a config is a mapping of keys to values")
    return values


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML with plain values only; InputError names the line at fault.

    Anchors are followed as far as a config can mean it: to MAX_VALUES values, MAX_DEPTH containers deep.
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
    wrong = _unfit(values)
    if wrong:
        raise InputError(f"{where}: {wrong}")
    return values


def _unfit(values: Any) -> str | None:
    """Why plain values are no config's, or None; a list may hold itself, or 10^9 values in ten lines of anchors."""
    ahead, seen = [(values, MAX_DEPTH)], 0
    while ahead:
        (value, depth), seen = ahead.pop(), seen + 1
        if seen > MAX_VALUES or depth == 0:
            return "nested too deeply for a config" if depth == 0 else f"more than {MAX_VALUES} values"
        if isinstance(value, dict):
            ahead += [(part, depth - 1) for pair in value.items() for part in pair]
        elif isinstance(value, (list, tuple, set)):
            ahead += [(part, depth - 1) for part in value]
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            return f"a whole number of more than {MAX_BITS} bits"
        elif isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
            return f"a text that no name or path can hold: {printable(value)}"
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
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
