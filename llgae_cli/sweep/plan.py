"""A sweep file and the cells it stands for: every one validated before the first is started. Does not import torch."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llgae_cli.config import (
    KEYS,
    Config,
    parse_config,
    parse_key,
    parse_yaml,
    read_mapping,
    refuse_unused,
)
from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.storage import name_of
from llgae_cli.sweep.halving import Halving, read_halving

SECTIONS = ("base", "grid", "zip", "repeat", "halving")
MAX_CELLS = 100_000  # a typing error such as a range in the wrong place, not a sweep
SHOWN_ERRORS = 5

Values = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    config: Config

    @property
    def id(self) -> str:
        """Twelve hex digits for all that decides the result: the keys of `Config.identity` and `epochs`.

        A checkpoint's own ten digits leave `epochs` out, because a run may be continued; two cells that differ in
        nothing else are still two cells.
        """
        return hashlib.sha256(json.dumps(deciding(self.config), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def work(self) -> float:
        """K (E + 1) and a constant: what a pass over the data costs, in no unit. Orders cells, estimates time left."""
        return self.config.K * (self.config.embed_dim + 1) + 200.0


@dataclass(frozen=True)
class Plan:
    """What a sweep file asks for. `keys`: those that differ between cells, as YAML spells them, in the file's order."""

    name: str
    cells: tuple[Cell, ...]
    keys: tuple[str, ...]
    duplicates: int
    halving: Halving | None

    @property
    def ranked_by(self) -> str:
        """The figure that compares the cells: `validation_mean_l2` where all hold out one share of one task's samples.

        Else `mean_l2`, which is of the test samples and chooses nothing. Each seed holds out samples of its own.
        """
        splits = {(cell.config.task, cell.config.validation) for cell in self.cells}
        return "validation_mean_l2" if len(splits) == 1 and self.cells[0].config.validation else "mean_l2"

    def label(self, cell: Cell) -> str:
        """The cell in its swept keys, such as `K=11 embed-dim=20`."""
        settings = self.settings(cell)
        return " ".join(f"{key}={printable(settings[key], 40)}" for key in self.keys) or f"cell {cell.id}"

    def settings(self, cell: Cell) -> Values:
        """The cell's config in plain values; of the later keys, those that the sweep varies are there at any value."""
        plain, values = cell.config.plain(), cell.config.values()
        return {key: value for key, value in values.items() if key in plain or key in self.keys}


def deciding(config: Config) -> Values:
    """The config's keys and values that decide what comes out of it: all but the places and ways of running."""
    return {key: value for key, value in config.plain().items() if key == "epochs" or not KEYS[key].neutral}


def read_plan(path: Path, overrides: list[str] | None = None) -> Plan:
    """Read a sweep file.

        base: a config (mapping), a path, or a list of them (the later wins); paths count from the sweep file's folder
        grid: {key: [values]}: all combinations. A list of such mappings: several grids, one after the other
        zip: {key: [values]}: first with first, second with second, ...; crossed with the grid. A list: likewise
        repeat: a number of seeds, counted up from the base's, or a list of seeds; crossed with all of it
        halving: {rungs: [epochs, ...], keep: share}, see `halving`

    `overrides` are `key=value` for the base. A cell is given only the keys that have an effect in it (and the base's
    SOURCE_KEYS), and cells that come out the same are one. Raises InputError that names file, cell, key and value;
    several faulty cells are told together. A key without effect in any cell is an error too; a warning where
    it is one of SOURCE_KEYS and not varied.
    """
    document = read_mapping(path)
    for section in document:
        if section not in SECTIONS:
            hint = nearest(str(section), SECTIONS)
            if not hint and str(section).replace("_", "-") in KEYS:
                hint = "; a config's keys belong under base or grid"
            raise InputError(
                f"{path}: unknown key '{printable(section)}'{hint} (a sweep file has {', '.join(SECTIONS)})"
            )
    base, origin = _base(document.get("base", {}), path)
    grids = _axes(document.get("grid"), "grid", path, crossed=True)
    zips = _axes(document.get("zip"), "zip", path, crossed=False)
    swept = list(dict.fromkeys(key for row in (*grids, *zips) for key in row))
    both = {key for row in grids for key in row} & {key for row in zips for key in row}
    if both:
        raise InputError(f"{path}: '{sorted(both)[0]}' stands in grid and in zip; one of them decides")
    _override(base, origin, overrides or [], swept)
    seeds = _seeds(document.get("repeat"), base, path, swept)
    if len(grids) * len(zips) * len(seeds) > MAX_CELLS:
        raise InputError(f"{path}: {len(grids) * len(zips) * len(seeds)} cells; a sweep has {MAX_CELLS} at most")
    rows = [{**grid, **zipped, **seed} for grid, zipped, seed in itertools.product(grids, zips, seeds)]
    for key in swept:
        origin.setdefault(key, f"{path}: {'grid' if any(key in row for row in grids) else 'zip'}")
    cells = _cells(rows, base, origin, path)
    halving = None
    if "halving" in document:
        halving = read_halving(document["halving"], [cell.config for cell in cells], path)
    return Plan(path.stem, tuple(cells), _differing(cells, [*swept, "seed"]), len(rows) - len(cells), halving)


def _base(value: Any, path: Path) -> tuple[Values, dict[str, str]]:
    values: Values = {}
    origin: dict[str, str] = {}
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, str):
            source = path.parent / part
            mapping, where = read_mapping(source), str(source)
        elif isinstance(part, dict):
            mapping, where = part, f"{path}: base"
        else:
            raise InputError(f"{path}: base: a config or the path of one is expected, not {printable(part)}")
        for key, one in mapping.items():
            name = parse_key(key, where)
            values[name], origin[name] = one, where
    return values, origin


def _override(base: Values, origin: dict[str, str], overrides: list[str], swept: list[str]) -> None:
    for override in overrides:
        where = f"-S {printable(override)}"
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"{where}: expected key=value")
        name = parse_key(key.strip(), where)
        if name in swept:
            raise InputError(f"{where}: the sweep itself varies {name}; -S overrides the base")
        base[name], origin[name] = parse_yaml(text, where), where


def _axes(value: Any, section: str, path: Path, *, crossed: bool) -> list[Values]:
    """The rows of a section: all combinations (grid), or position by position (zip)."""
    rows: list[Values] = []
    for mapping in value if isinstance(value, list) else [{} if value is None else value]:
        if not isinstance(mapping, dict):
            raise InputError(f"{path}: {section}: expected lines such as 'K: [5, 11]', not {printable(mapping)}")
        lists: dict[str, list[Any]] = {}
        for key, values in mapping.items():
            name = parse_key(key, f"{path}: {section}")
            if KEYS[name].neutral and name != "epochs":
                raise InputError(f"{path}: {section}: {name} does not change a result; set it in the base")
            if name in lists:
                raise InputError(f"{path}: {section}: '{name}' stands twice")
            lists[name] = values if isinstance(values, list) else [values]
            if not lists[name]:
                raise InputError(f"{path}: {section}: {name}: an empty list leaves no cell")
        if crossed:
            count = 1
            for values in lists.values():
                count *= len(values)
            if count + len(rows) > MAX_CELLS:
                raise InputError(f"{path}: {section}: {count} cells; a sweep has {MAX_CELLS} at most")
            rows += [dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values())]
        else:
            lengths = {name: len(values) for name, values in lists.items()}
            longest = max(lengths.values(), default=1)
            if any(length not in (1, longest) for length in lengths.values()):
                said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
                raise InputError(f"{path}: zip: lists of one length are needed: {said}")
            rows += [{name: v[i % len(v)] for name, v in lists.items()} for i in range(longest)]
    return rows or [{}]


def _seeds(value: Any, base: Values, path: Path, swept: list[str]) -> list[Values]:
    if value is None:
        return [{}]
    if "seed" in swept:
        raise InputError(f"{path}: repeat: the sweep varies seed itself; one of them decides")
    if isinstance(value, list) and value:
        return [{"seed": seed} for seed in value]
    if type(value) is not int or not 1 <= value <= MAX_CELLS:
        raise InputError(f"{path}: repeat: {printable(value)} is neither a number of seeds nor a list of them")
    first = parse_config({"seed": base["seed"]} if "seed" in base else {}).seed
    return [{"seed": first + i} for i in range(value)]


def _cells(rows: list[Values], base: Values, origin: dict[str, str], path: Path) -> list[Cell]:
    found: dict[str, Cell] = {}
    errors: list[str] = []
    varied = {key for row in rows for key in row if row[key] != rows[0].get(key)}
    unused: dict[str, str] | None = None  # keys that have had no effect in any cell so far, and why
    for i, row in enumerate(rows):
        where = {key: source for key, source in origin.items() if key not in row}
        try:
            given = {**base, **row}
            config = parse_config(given, where)
            reasons = {key: reason for key in given if (reason := config.explain_unused(key))}
            unused = reasons if unused is None else {key: unused[key] for key in unused if key in reasons}
            left_out = {key for key in reasons if key in varied or not KEYS[key].source}
            cell = Cell(parse_config({key: value for key, value in given.items() if key not in left_out}, where))
            name_of(cell.config, 0, 0.0)  # a value that no checkpoint's name can hold
            found.setdefault(cell.id, cell)
        except InputError as error:
            row_text = ", ".join(f"{key}={printable(value, 30)}" for key, value in row.items())
            errors.append(f"cell {i + 1} of {len(rows)} ({row_text}): {error}" if row else str(error))
    if errors:
        more = f"; and {len(errors) - SHOWN_ERRORS} more cells" if len(errors) > SHOWN_ERRORS else ""
        raise InputError(f"{path}: " + "; ".join(errors[:SHOWN_ERRORS]) + more)
    refuse_unused(unused or {}, origin, varied)
    return list(found.values())


def _differing(cells: list[Cell], order: list[str]) -> tuple[str, ...]:
    settings = [cell.config.values() for cell in cells]

    def differing() -> Iterator[str]:
        for key in dict.fromkeys(order):
            if len({json.dumps(values[key]) for values in settings}) > 1:
                yield key

    return tuple(differing())
