"""Configs that come with the package, found by name."""

import os
from pathlib import Path

import llgae_cli
from llgae_cli.errors import InputError, nearest, printable

SUFFIXES = (".yaml", ".yml")


def shipped_folder(kind: str = "") -> Path:
    """Return the folder of the shipped configs, or of a `kind` of them, such as "sweeps".

    Installed, configs/ is a folder of the package; in a checkout it stands next to the package.
    """
    package = Path(llgae_cli.__file__).parent
    inside = package / "configs"
    return (inside if inside.is_dir() else package.parent / "configs") / kind


def list_shipped(kind: str = "") -> list[str]:
    """Return the names of the shipped configs, such as `fashion_mnist`."""
    return sorted(path.stem for path in shipped_folder(kind).glob("*.yaml"))


def find_config(path: Path, kind: str = "") -> Path:
    """Return the file that a user means: an existing one, else the shipped config of that name.

    A name has no folder and no suffix, or the suffix .yaml; a folder of that name does not hide it.
    Raises InputError, with the nearest file or name, where there is neither.
    """
    shipped = shipped_folder(kind) / f"{path.name.removesuffix('.yaml')}.yaml"
    is_shipped = path.parent == Path() and shipped.is_file()
    if os.path.lexists(path) and not (is_shipped and path.is_dir()):
        return path
    if is_shipped:
        return shipped
    beside = [near.name for near in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = nearest(path.name, beside) or nearest(path.stem, list_shipped(kind))
    names = "" if near or path.suffix in SUFFIXES else f"; shipped configs: {', '.join(list_shipped(kind))}"
    raise InputError(f"{printable(path, 200)}: no such config file{near}{names}")
