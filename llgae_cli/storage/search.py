"""Search for checkpoints: those of a config in a folder, and the one that a short id names."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llgae_cli.config import Config, parse_config
from llgae_cli.errors import InputError, printable, show_path
from llgae_cli.storage.checkpoint_file import load
from llgae_cli.storage.names import SUFFIX, CheckpointName, name_of
from llgae_cli.storage.run_table import list_named_files

FOLDERS = (Path("checkpoints"), Path("sweeps"))  # searched for an id that has no folder before it
MAX_CANDIDATES = 6  # that an error lists
SHORTEST = 6  # digits of a short id


def find_checkpoint(text: str | Path) -> Path:
    """Return the checkpoint that an argument names: a path, an id as `llgae runs` shows it, or FOLDER/ID.

    An id is the config's digest or the beginning of it, and is searched in FOLDER, or in FOLDERS, with all sub-folders.
    Of several checkpoints of one config it is the one with most epochs, and of these the newest. A text that is no id,
    and an existing path, are returned as they are.

    Raises InputError, with the candidates, for an id of no run or of several.
    """
    path = Path(text)
    if not re.fullmatch("[0-9a-f]{1,10}", path.name) or path.exists():
        return path
    own = path.parent != Path()
    if own and not path.parent.is_dir():
        return path
    folders = [path.parent] if own else [folder for folder in FOLDERS if folder.is_dir()]
    named = [(file, name) for folder in folders for file, name in list_named_files(folder) if name.config_id]
    ids = sorted({name.config_id for _, name in named})
    found = [id for id in ids if id.startswith(path.name)]
    found = [path.name] if path.name in found else found
    if len(found) != 1:
        where = " or ".join(map(show_path, folders)) or "checkpoints: there is no such folder"
        problem = "begins the ids of several runs" if found else f"no such file, and no run with this id in {where}"
        shown = describe_candidates(found or ids, {name.config_id: name for _, name in named})
        raise InputError(f"{show_path(path)}: {problem}{shown}")
    return max(((name.epoch, file.stat().st_mtime, file) for file, name in named if name.config_id == found[0]))[2]


def describe_candidates(ids: Sequence[str], names: Mapping[str, CheckpointName]) -> str:
    """Return the first ids with what they stand for, to end an error with; nothing without ids."""
    short = shorten_ids(ids)
    parts = [
        f"{short[id]} ({names[id].task} {names[id].model} K {names[id].K} E {names[id].embed_dim})"
        for id in ids[:MAX_CANDIDATES]
    ]
    more = f" and {len(ids) - len(parts)} more; llgae runs lists them" if len(ids) > len(parts) else ""
    return f": {', '.join(parts)}{more}" if parts else ""


def shorten_ids(ids: Sequence[str]) -> dict[str, str]:
    """Return the beginning of each id that no other id shares, all of one length, of at least SHORTEST digits."""
    distinct = set(ids)
    length = next((n for n in range(SHORTEST, 10) if len({id[:n] for id in distinct}) == len(distinct)), 10)
    return {id: id[:length] for id in distinct}


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
