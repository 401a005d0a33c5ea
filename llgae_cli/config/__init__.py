"""The experiment's configuration: flat YAML in, one validated frozen object out. Does not import torch."""

from llgae_cli.config.schema import (
    FIXED,
    NEUTRAL_KEYS,
    SOURCE_KEYS,
    Config,
    keys,
    known_key,
    schema,
    validated,
)
from llgae_cli.config.yaml_files import (
    parse_yaml,
    read_config,
    read_mapping,
    read_stored,
    refuse_unused,
)

__all__ = [
    "FIXED",
    "NEUTRAL_KEYS",
    "SOURCE_KEYS",
    "Config",
    "keys",
    "known_key",
    "parse_yaml",
    "read_config",
    "read_mapping",
    "read_stored",
    "refuse_unused",
    "schema",
    "validated",
]
