"""The manifest of an output folder: what made it, and the state of every shard. Other programs may read it, too.

It is written again as a whole, atomically, at most every few seconds: a shard that was done within these seconds before
a crash is done again, with the same result.
"""

import hashlib
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llgae_cli.errors import InputError, show_path
from llgae_cli.regular_files import open_for_reading
from llgae_cli.storage.atomic import write_text
from llgae_cli.storage.json_files import Count, Text, read_json, validate

NAME = "manifest.json"
MAX_BYTES = 1 << 30  # a shard takes some 500
INTERVAL = 2.0  # seconds between two writes, at least
SHARE = 0.02  # of the time that writing may take


class Entry(BaseModel):
    """The state of a shard.

    name      its path below the folder of all shards
    output    path of its result in the folder of the manifest
    state     waiting, done or failed
    size      bytes of the shard when its work began, and `modified` its time in nanoseconds
    rows      rows of the shard
    bytes     of the result, and `sha256` its checksum, 64 hexadecimal digits
    figures   what the command measured on the rows
    error     why it failed
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    name: Text
    output: Text
    state: Literal["waiting", "done", "failed"] = "waiting"
    size: Count = 0
    modified: int = 0
    rows: Count = 0
    bytes: Count = 0
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    figures: dict[str, float | None] = {}
    error: Text = ""


class Manifest(BaseModel):
    """What made a folder of results, and its shards.

    format      version of the manifest's format
    llgae       version of the program
    command     encode, compress, decompress, score or eval
    checkpoint  name of the model's file; None where the compressed files hold the model
    model       SHA-256 of that file
    source      folder of the shards
    options     the command's options
    prepared    what follows from the options and the data, once for all shards, as a quantiser step
    shards      one entry a shard, by name
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    format: Literal[1] = 1
    llgae: Text
    command: Text
    checkpoint: Text | None
    model: Text
    source: Text
    options: dict[str, Any]
    prepared: dict[str, Any] = {}
    shards: list[Entry] = []

    def check_same_work(self, other: "Manifest", where: Path) -> None:
        """Raise InputError where another command, model, source or option would be mixed with this folder's."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in ("command", "model", "source")}
        options = self.options.keys() | other.options.keys()
        pairs |= {f"--{name.replace('_', '-')}": (self.options.get(name), other.options.get(name)) for name in options}
        for name, (before, now) in pairs.items():
            if before != now:
                before, now = (value[:12] if name == "model" else value for value in (before, now))
                raise InputError(
                    f"--resume: {show_path(where)} was made with {name} {_show(before)}, not {_show(now)}: "
                    "choose another folder"
                )


def _show(value: Any) -> str:
    return "not given" if value is None else show_path(value)


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest in a folder; None without one. Raises InputError for a file that is not one."""
    path = folder / NAME
    try:
        return validate(Manifest, read_json(path, MAX_BYTES, "manifest"), path)
    except FileNotFoundError:
        return None


class ManifestWriter:
    """Writes a manifest into its folder: at once by `write`, and seldom enough by `update`."""

    def __init__(self, manifest: Manifest, folder: Path):
        self.manifest, self.folder = manifest, folder
        self._next = 0.0

    def write(self) -> None:
        """Write the manifest. Raises RunError where the system refuses."""
        began = time.monotonic()
        write_text(self.folder / NAME, self.manifest.model_dump_json(indent=1) + "\n")
        ended = time.monotonic()
        self._next = ended + max(INTERVAL, (ended - began) / SHARE)

    def update(self) -> None:
        """Write the manifest unless it was just written."""
        if time.monotonic() >= self._next:
            self.write()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits. Raises OSError."""
    with open(open_for_reading(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
