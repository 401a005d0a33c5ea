"""The configuration of an experiment: flat YAML in, one validated frozen Config out. Does not import torch."""

from llgae_cli.config.schema import KEYS, Config, schema
from llgae_cli.config.shipped import find_config, shipped_folder
from llgae_cli.config.validation import join_faults, parse_config, parse_key, parse_keys, validate
from llgae_cli.config.yaml_files import (
    parse_override,
    parse_yaml,
    read_config,
    read_mapping,
    read_stored,
    read_values,
    refuse_unused,
)

__all__ = [
    "KEYS",
    "Config",
    "find_config",
    "join_faults",
    "parse_config",
    "parse_key",
    "parse_keys",
    "parse_override",
    "parse_yaml",
    "read_config",
    "read_mapping",
    "read_stored",
    "read_values",
    "refuse_unused",
    "schema",
    "shipped_folder",
    "validate",
]
