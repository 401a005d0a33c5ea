"""Search for the checkpoints of a config in a folder."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llgae_cli.config import Config, parse_config
from llgae_cli.errors import InputError, printable, show_path
from llgae_cli.storage.checkpoint_file import load
from llgae_cli.storage.names import SUFFIX, CheckpointName, name_of


def find_last(folder: Path, config: Config) -> Path:
    """Return the checkpoint with most epochs of exactly this config: seed, task, every key that can change the result.

    Of several at one epoch the newest. Names are searched first, and then the configs in the files are compared: the
    digits in two names may agree by chance. A file that cannot be read counts as the config's; loading it reports why.
    Raises InputError when there is none, with the number of other checkpoints.
    """
    named, others = list_named(folder, config)
    for path in named:
        try:
            stored = load(path).config
        except InputError:
            return path
        if not changed_keys(stored, config):
            return path
    wanted = name_of(config, 0, 0.0)
    raise InputError(
        f"{show_path(folder)}: no checkpoint of this config (cfg{wanted.config_id}, seed {wanted.seed});"
        f" checkpoints of other configs there: {others + len(named)}"
    )


def list_named(folder: Path, config: Config) -> tuple[list[Path], int]:
    """Return the checkpoints whose names are the config's, the last one first, and the number of others."""
    wanted = name_of(config, 0, 0.0)
    ranked: list[tuple[int, float, Path]] = []
    others = 0
    for path in sorted(Path(folder).glob(f"*{SUFFIX}")) if Path(folder).is_dir() else ():
        try:
            name = CheckpointName.parse(path.name)
            same = name.config_id != "" and wanted.config_id.startswith(name.config_id)  # older names have six digits
            if same and (name.seed, name.task) == (wanted.seed, wanted.task):
                ranked.append((name.epoch, path.stat().st_mtime, path))
            else:
                others += 1
        except (InputError, OSError):  # not a checkpoint's name, or removed since it was listed
            continue
    return [path for _, _, path in sorted(ranked, reverse=True)], others


def changed_keys(stored: Mapping[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys that can change the result and differ from a stored config: (stored, now).

    A key that the stored config lacks is newer than the file, and counts with its default.
    """
    now, defaults = config.plain(), {str(field.alias): field.default for field in Config.model_fields.values()}
    pairs = {
        key: (stored.get(key, defaults.get(key)), now.get(key, defaults.get(key)))
        for key in {**now, **stored}
        if key not in config.neutral()
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def find_finished(folder: Path, config: Config) -> Path:
    """Return the newest checkpoint in `folder` of a finished run of exactly this config; InputError where none is.

    One of an unfinished run, saved on a signal for example, has no mean L2 on the training samples and is skipped.
    """
    ranked: list[tuple[float, Path]] = []
    for path in Path(folder).glob(f"S*{SUFFIX}") if Path(folder).is_dir() else ():
        with suppress(InputError, OSError):  # not a checkpoint's name, or removed since it was listed
            if CheckpointName.parse(path.name).model == config.model:
                ranked.append((path.stat().st_mtime, path))
    for _, path in sorted(ranked, reverse=True):
        with suppress(InputError):  # damaged, or a config of another version of llgae
            checkpoint = load(path)
            if checkpoint.train_mean_l2 is not None and parse_config(checkpoint.config).identity() == config.identity():
                return path
    raise InputError(
        f"{show_path(folder)}: no finished checkpoint of this config (cfg{config.identity()}, seed {config.seed}, "
        f"task {printable(config.task, 60)}); train it first"
    )
