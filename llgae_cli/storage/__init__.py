"""Checkpoints: their names, their files, and folders of them. Importing this package does not import torch."""

from llgae_cli.storage.checkpoint import FORMAT_VERSION, Checkpoint, provenance
from llgae_cli.storage.checkpoint_file import disagreement, load, save
from llgae_cli.storage.folders import check_writable, clean_temporaries, made_folder
from llgae_cli.storage.locks import PathLock, RunLock, clean_locks
from llgae_cli.storage.names import CheckpointName, name_of, slug
from llgae_cli.storage.run_folder import RunFolder, shareable
from llgae_cli.storage.run_table import count_others, filter_rows, list_runs, sort_rows
from llgae_cli.storage.search import changed_keys, find_finished, find_last, list_named

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "CheckpointName",
    "PathLock",
    "RunFolder",
    "RunLock",
    "changed_keys",
    "check_writable",
    "clean_locks",
    "clean_temporaries",
    "count_others",
    "disagreement",
    "filter_rows",
    "find_finished",
    "find_last",
    "list_named",
    "list_runs",
    "load",
    "made_folder",
    "name_of",
    "provenance",
    "save",
    "shareable",
    "slug",
    "sort_rows",
]
