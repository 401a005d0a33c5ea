"""A sweep file, and its cells: each is validated before the first one starts. Does not import torch."""

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from llgae_cli.config import (
    KEYS,
    Config,
    find_config,
    join_faults,
    parse_config,
    parse_key,
    parse_keys,
    parse_override,
    read_mapping,
    refuse_unused,
    validate,
)
from llgae_cli.errors import InputError, printable
from llgae_cli.storage import name_of
from llgae_cli.sweep.halving import Halving
from llgae_cli.sweep.search import Choice, Range, Search, Space, read_space

MAX_CELLS = 100_000  # more is a mistake, such as a range under the wrong key
MAX_SHOWN = 5  # faulty cells in one line
MAX_CORNERS = 1000  # combinations of a search's choices that are checked before it starts

Values = dict[str, Any]
Mappings = dict[Any, Any] | list[dict[Any, Any]] | None


class SweepFile(BaseModel):
    """The mapping in a sweep file, see `read_plan`; what its sections contain is checked later."""

    model_config = ConfigDict(strict=True, extra="forbid")

    base: str | dict[Any, Any] | list[str | dict[Any, Any]] = {}
    grid: Mappings = None
    zip: Mappings = None
    repeat: Annotated[int, Field(ge=1, le=MAX_CELLS)] | Annotated[list[Any], Field(min_length=1)] | None = None
    halving: dict[Any, Any] = {}
    search: dict[Any, Any] = {}


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    config: Config

    @property
    def id(self) -> str:
        """Twelve hex digits of a hash of all that decides the result: the keys of `Config.identity`, and `epochs`.

        The identity in a checkpoint's name leaves `epochs` out, because a run may be continued; two cells that differ
        only in `epochs` are still two cells.
        """
        deciding = {
            key: value for key, value in self.config.plain().items() if key == "epochs" or not KEYS[key].neutral
        }
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def work(self) -> float:
        """Relative cost of one pass over the data: K (E + 1) plus a constant. Orders cells, estimates the time left."""
        return self.config.K * (self.config.embed_dim + 1) + 200.0


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep file. `keys`: those that differ between cells, in YAML's spelling and the file's order.

    `duplicates`: how many equal cells were left out. Of a search, `cells` are those of its trials, in the order of
    their numbers: none in a plan that was just read. `space` has the ranges, `base` and `origin` what they override.
    """

    name: str
    cells: tuple[Cell, ...]
    keys: tuple[str, ...]
    duplicates: int
    halving: Halving | None
    search: Search | None = None
    space: Space = field(default_factory=dict)
    base: Values = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def rungs(self) -> list[int]:
        """Epochs after which cells are compared and the worse ones stop; none without halving."""
        return self.halving.rungs if self.halving else []

    @property
    def ranked_by(self) -> str:
        """The figure that ranks the cells.

        `validation_mean_l2` where all cells hold out the same fraction of one task's samples (each seed holds out other
        samples), else `mean_l2`: that is of the test samples, and may not be used to choose a model. A search has
        validation samples always.
        """
        if self.search is not None:
            return "validation_mean_l2"
        splits = {(cell.config.task, cell.config.validation) for cell in self.cells}
        return "validation_mean_l2" if len(splits) == 1 and self.cells[0].config.validation else "mean_l2"

    @property
    def total(self) -> int:
        """How many cells it has; 0 for a search that only minutes end."""
        return len(self.cells) if self.search is None else self.search.trials or 0

    @property
    def may_use_gpu(self) -> bool:
        """Whether a cell may run on a CUDA device."""
        cells = self.cells if self.search is None else self.list_corners()
        return any(cell.config.device in ("auto", "cuda") for cell in cells)

    def make_cell(self, row: Values) -> Cell:
        """Return the cell of a search whose keys have these values."""
        return _make_cell(row, self.base, self.origin, set(self.space))[0]

    def list_corners(self) -> list[Cell]:
        """Return the cells of a search at the ends of its ranges, for each combination of choices."""
        return _make_cells(_list_corners(self.space), self.base, self.origin, Path(self.name))

    def label(self, cell: Cell) -> str:
        """Return the cell's varied keys and their values, such as `K=11 embed-dim=20`."""
        settings = self.settings(cell)
        return " ".join(f"{key}={printable(settings[key], 40)}" for key in self.keys) or f"cell {cell.id}"

    def settings(self, cell: Cell) -> Values:
        """Return the cell's config as checkpoints store it, with all keys that the sweep varies."""
        plain, values = cell.config.plain(), cell.config.values()
        return {key: value for key, value in values.items() if key in plain or key in self.keys}


def read_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a sweep file, or a shipped one by its name, and return its cells. It is a mapping with these keys.

        base     a config (mapping), the path of one (from the sweep file's folder), or a list of them: the later wins
        grid     {key: [values]}: all combinations. A list of such mappings: several grids, one after the other
        zip      {key: [values]}: first with first, second with second, ...; crossed with the grid. A list: likewise
        repeat   a number of seeds, counted up from the base's, or a list of seeds; crossed with the cells of the rest
        halving  {rungs: [epochs, ...], keep: fraction}, see `Halving`
        search   {keys: {key: range}, trials: number, ...} in the place of grid, zip and repeat, see `Search`

    `overrides` are `key=value` for the base. A cell gets only the keys that have an effect in it, and of the base the
    source document's six keys; equal cells become one.

    Raises InputError, in one line that names file, cell, key and value, for anything that is not allowed. A key that
    has no effect in any cell is an error; for one of the six keys, where the sweep does not vary it, a warning.
    """
    path = find_config(path, "sweeps")
    file, halving, search = _parse(read_mapping(path), path)
    base, origin = _read_base(file.base, path)
    if search is not None:
        return _plan_search(search, halving, base, origin, path, overrides)
    grids = _list_rows(file.grid, "grid", path)
    zips = _list_rows(file.zip, "zip", path)
    varied = list(dict.fromkeys(key for row in (*grids, *zips) for key in row))
    both = {key for row in grids for key in row} & {key for row in zips for key in row}
    if both:
        raise InputError(f"{path}: {min(both)}: is in grid and in zip; remove one of them")
    _override(base, origin, overrides, varied)
    seeds = _list_seeds(file.repeat, base, path, varied)
    _check_count(len(grids) * len(zips) * len(seeds), path)
    rows = [{**grid, **zipped, **seed} for grid, zipped, seed in itertools.product(grids, zips, seeds)]
    for key in varied:
        origin.setdefault(key, f"{path}: {'grid' if any(key in row for row in grids) else 'zip'}")
    cells = _make_cells(rows, base, origin, path)
    configs = [cell.config for cell in cells]
    _check_halving(halving, configs, path)
    keys = _find_differing(configs, [*varied, "seed"])
    return Plan(path.stem, tuple(cells), keys, len(rows) - len(cells), halving)


def _plan_search(
    search: Search, halving: Halving | None, base: Values, origin: dict[str, str], path: Path, overrides: Sequence[str]
) -> Plan:
    """Return the plan of a search, without a trial. Raises InputError for ranges or a base that are not allowed."""
    space = read_space(search.keys, f"{path}: search: keys")
    _override(base, origin, overrides, list(space))
    origin = origin | dict.fromkeys(space, f"{path}: search")
    corners = _make_cells(_list_corners(space), base, origin, path)
    if any(cell.config.validation == 0 for cell in corners):
        raise InputError(
            f"{path}: search: needs 'validation' above 0 in the base, because the test samples may not choose a trial"
        )
    if halving is not None and len(search.objectives) > 1:
        raise InputError(f"{path}: halving: compares trials only by mean L2; remove it, or the second objective")
    _check_halving(halving, [cell.config for cell in corners], path)
    return Plan(path.stem, (), tuple(space), 0, halving, search, space, base, origin)


def _check_halving(halving: Halving | None, configs: Sequence[Config], path: Path) -> None:
    if halving is not None and (conflict := halving.find_conflict(configs)):
        raise InputError(f"{path}: halving: {conflict}")


def _list_corners(space: Space) -> list[Values]:
    """Return the values at the ends of all ranges: all low, then all high, for the combinations of the choices."""
    choices = {key: one.values for key, one in space.items() if isinstance(one, Choice)}
    ranges = {key: one for key, one in space.items() if isinstance(one, Range)}
    rows = [
        {**dict(zip(choices, row, strict=True)), **{key: one.ends[end] for key, one in ranges.items()}}
        for row in itertools.islice(itertools.product(*choices.values()), MAX_CORNERS)
        for end in ((0, 1) if ranges else (0,))
    ]
    return [{key: row[key] for key in space} for row in rows]


def _override(base: Values, origin: dict[str, str], overrides: Sequence[str], varied: Sequence[str]) -> None:
    for override in overrides:
        key, value, where = parse_override(override)
        if key in varied:
            raise InputError(f"{where}: the sweep varies {key}; -S overrides only the base")
        base[key], origin[key] = value, where


def _parse(document: dict[Any, Any], path: Path) -> tuple[SweepFile, Halving | None, Search | None]:
    for name in document:
        if name not in SweepFile.model_fields and str(name).replace("_", "-") in KEYS:
            raise InputError(f"{path}: unknown key '{name}'; keys of a config belong under base or grid")
    file = validate(SweepFile, document, {"": str(path)})
    given = file.model_fields_set
    halving = validate(Halving, file.halving, {"": f"{path}: halving"}) if "halving" in given else None
    search = validate(Search, file.search, {"": f"{path}: search"}) if "search" in given else None
    if search is not None and (others := [name for name in ("grid", "zip", "repeat") if name in given]):
        raise InputError(f"{path}: {others[0]} and search: a sweep is a grid or a search; remove one of them")
    return file, halving, search


def _read_base(base: Any, path: Path) -> tuple[Values, dict[str, str]]:
    values: Values = {}
    origin: dict[str, str] = {}
    for part in base if isinstance(base, list) else [base]:
        where = str(path.parent / part) if isinstance(part, str) else f"{path}: base"
        given = parse_keys(read_mapping(path.parent / part) if isinstance(part, str) else part, where)
        values, origin = {**values, **given}, {**origin, **dict.fromkeys(given, where)}
    return values, origin


def _list_rows(section: Mappings, name: str, path: Path) -> list[Values]:
    """Return the rows of `grid`, all combinations of its lists, or of `zip`, one for each position in its lists."""
    rows: list[Values] = []
    for mapping in section if isinstance(section, list) else [section or {}]:
        lists = _read_lists(mapping, f"{path}: {name}")
        lengths = {key: len(values) for key, values in lists.items()}
        if name == "grid":
            _check_count(len(rows) + math.prod(lengths.values()), path)
            rows += [dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values())]
            continue
        longest = max(lengths.values(), default=1)
        if any(length not in (1, longest) for length in lengths.values()):
            text = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise InputError(f"{path}: zip: the lists need one length, or length 1: {text}")
        rows += [{key: values[i % len(values)] for key, values in lists.items()} for i in range(longest)]
    return rows or [{}]


def _read_lists(mapping: dict[Any, Any], where: str) -> dict[str, list[Any]]:
    lists: dict[str, list[Any]] = {}
    for name, values in mapping.items():
        key = parse_key(name, where)
        if KEYS[key].neutral and key != "epochs":
            raise InputError(f"{where}: {key}: does not change a result, so a sweep cannot vary it; set it in the base")
        if key in lists:
            raise InputError(f"{where}: {key}: is given twice")
        lists[key] = values if isinstance(values, list) else [values]
        if not lists[key]:
            raise InputError(f"{where}: {key}: the list is empty")
    return lists


def _list_seeds(repeat: int | list[Any] | None, base: Values, path: Path, varied: list[str]) -> list[Values]:
    if repeat is None:
        return [{}]
    if "seed" in varied:
        raise InputError(f"{path}: repeat: the sweep varies seed as well; remove one of them")
    if isinstance(repeat, list):
        return [{"seed": seed} for seed in repeat]
    first = parse_config({"seed": base["seed"]} if "seed" in base else {}).seed
    return [{"seed": first + i} for i in range(repeat)]


def _check_count(cells: int, path: Path) -> None:
    if cells > MAX_CELLS:
        raise InputError(f"{path}: {cells} cells; a sweep has at most {MAX_CELLS}")


def _make_cells(rows: list[Values], base: Values, origin: dict[str, str], path: Path) -> list[Cell]:
    cells: dict[str, Cell] = {}
    errors: list[str] = []
    varied = {key for row in rows for key in row if row[key] != rows[0].get(key)}
    unused: dict[str, str] | None = None  # keys without effect in all cells so far, and why
    for i, row in enumerate(rows):
        try:
            cell, reasons = _make_cell(row, base, origin, varied)
            unused = reasons if unused is None else {key: unused[key] for key in unused if key in reasons}
            cells.setdefault(cell.id, cell)
        except InputError as error:
            settings = ", ".join(f"{key}={printable(value, 30)}" for key, value in row.items())
            errors.append(f"cell {i + 1} of {len(rows)} ({settings}): {error}" if row else str(error))
    if errors:
        raise InputError(f"{path}: {join_faults(errors, MAX_SHOWN)}")
    refuse_unused(unused or {}, origin, varied)
    return list(cells.values())


def _make_cell(row: Values, base: Values, origin: dict[str, str], varied: set[str]) -> tuple[Cell, dict[str, str]]:
    """Return the cell of a row, without the keys that have no effect in it, and why each of these has none."""
    where = {key: source for key, source in origin.items() if key not in row}
    given = {**base, **row}
    config = parse_config(given, where)
    reasons = {key: reason for key in given if (reason := config.explain_unused(key))}
    omitted = {key for key in reasons if key in varied or not KEYS[key].source}
    cell = Cell(parse_config({key: value for key, value in given.items() if key not in omitted}, where))
    name_of(cell.config, 0, 0.0)  # raises for a value that no checkpoint's name can hold
    return cell, reasons


def _find_differing(configs: list[Config], keys: Sequence[str]) -> tuple[str, ...]:
    """Return those of the keys whose values differ between configs."""
    values = [config.values() for config in configs]
    return tuple(key for key in dict.fromkeys(keys) if len({json.dumps(each[key]) for each in values}) > 1)
