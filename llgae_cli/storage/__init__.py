"""Files of llgae: checkpoints, their names and folders, locks, atomic writing. Importing it does not import torch."""

from llgae_cli.storage.atomic import check_writable, clean_temporaries, make_folder
from llgae_cli.storage.checkpoint import FORMAT_VERSION, Checkpoint, provenance
from llgae_cli.storage.checkpoint_file import compare_name, load, save
from llgae_cli.storage.epoch_log import log_epochs
from llgae_cli.storage.export import export_runs
from llgae_cli.storage.locks import Lock, clean_locks
from llgae_cli.storage.names import CheckpointName, name_of, slug
from llgae_cli.storage.run_folder import RunFolder, export_config
from llgae_cli.storage.run_table import count_others, filter_rows, list_runs, rank_rows, sort_rows
from llgae_cli.storage.search import changed_keys, find_checkpoint, find_finished, find_last, list_named, shorten_ids

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "CheckpointName",
    "Lock",
    "RunFolder",
    "changed_keys",
    "check_writable",
    "clean_locks",
    "clean_temporaries",
    "compare_name",
    "count_others",
    "export_config",
    "export_runs",
    "filter_rows",
    "find_checkpoint",
    "find_finished",
    "find_last",
    "list_named",
    "list_runs",
    "load",
    "log_epochs",
    "make_folder",
    "name_of",
    "provenance",
    "rank_rows",
    "save",
    "shorten_ids",
    "slug",
    "sort_rows",
]
