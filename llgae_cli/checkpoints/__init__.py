"""Checkpoints: their names, their files, and folders of them. Importing this package does not import torch."""

from llgae_cli.checkpoints.contents import FORMAT_VERSION, Checkpoint, provenance
from llgae_cli.checkpoints.files import disagreement, load, save
from llgae_cli.checkpoints.folders import check_writable, clean_temporaries, made_folder
from llgae_cli.checkpoints.locks import PathLock, RunLock, clean_locks
from llgae_cli.checkpoints.names import CheckpointName, name_of, slug
from llgae_cli.checkpoints.search import changed_keys, find_last, list_named
from llgae_cli.checkpoints.table import count_others, filter_rows, list_runs, sort_rows

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "CheckpointName",
    "PathLock",
    "RunLock",
    "changed_keys",
    "check_writable",
    "clean_locks",
    "clean_temporaries",
    "count_others",
    "disagreement",
    "filter_rows",
    "find_last",
    "list_named",
    "list_runs",
    "load",
    "made_folder",
    "name_of",
    "provenance",
    "save",
    "slug",
    "sort_rows",
]
