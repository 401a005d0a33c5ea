"""The `search` section of a sweep file: keys with their ranges, the budget and the objectives. Imports no Optuna."""

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from llgae_cli.config import KEYS, Config, parse_key, validate
from llgae_cli.errors import InputError, printable

MAX_TRIALS = 10_000
MAX_GP = 100  # trials up to which a Gaussian process proposes in seconds
FIGURES = {  # the column of the leaderboard that each objective is; all are minimised
    "mean-l2": "validation_mean_l2",
    "rate": "validation_bits_coded",
    "seconds": "seconds",
}
FIXED = ("task", "validation", "seed")  # trials that differ in these are measured on different samples

Objective = Literal["mean-l2", "rate", "seconds"]


class Search(BaseModel):
    """The `search` section of a sweep file.

    `keys`: a range or a list of choices for each key, see `read_ranges`. `trials`: how many cells run; `minutes`: after
    which no further one starts; the first of both ends the search. `objectives`: what is minimised, mean L2 on the
    validation samples and, optionally, the rate (bits a validation sample as coded) or the seconds of training.
    `sampler`: what proposes the next trial: `gp`, Gaussian processes, which need the fewest trials; `tpe`, which is
    quicker where there are hundreds; `nsga-ii`; `auto`: gp for at most 100 trials, else tpe. `seed`: of its random
    numbers.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    keys: dict[Any, Any] = Field(min_length=1)
    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    objectives: list[Objective] = Field(["mean-l2"], min_length=1, max_length=2)
    sampler: Literal["auto", "gp", "tpe", "nsga-ii"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @field_validator("objectives")
    @classmethod
    def _check_objectives(cls, objectives: list[str]) -> list[str]:
        if "mean-l2" not in objectives or len(set(objectives)) < len(objectives):
            raise ValueError("mean-l2, alone or with one of rate and seconds")
        return objectives

    @model_validator(mode="after")
    def _check_budget(self) -> "Search":
        if self.trials is None and self.minutes is None:
            raise ValueError("trials: is missing; give trials, or minutes")
        return self

    @property
    def proposer(self) -> str:
        """The sampler that proposes trials: `auto` is resolved."""
        few = self.trials is not None and self.trials <= MAX_GP
        return self.sampler if self.sampler != "auto" else "gp" if few else "tpe"

    @property
    def figures(self) -> list[str]:
        """The columns of the leaderboard that are minimised."""
        return [FIGURES[name] for name in self.objectives]


class _Range(BaseModel):
    """A range as it stands in the file."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = Field(None, gt=0)


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included: whole ones or not, on a linear or a logarithmic scale.

    `step`: their distance from each other; None: any number.
    """

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool

    @property
    def ends(self) -> tuple[float, ...]:
        """Its least and its largest value."""
        return self.low, self.high

    @property
    def size(self) -> float:
        """How many values it has; infinity without a step."""
        return math.inf if self.step is None else math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def list_values(self) -> list[float]:
        """Return all its values. There have to be finitely many, see `size`."""
        assert self.step is not None
        values = [self.low + i * self.step for i in range(int(self.size))]
        return [round(value) for value in values] if self.whole else values

    def place(self, share: float) -> float:
        """Return the value at a share in [0, 1] of the range, on its scale."""
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        if self.step is not None:
            value = self.low + self.step * round((value - self.low) / self.step)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def coordinates(self, value: float) -> list[float]:
        """Return the share of the range, on its scale, at which a value lies; `place` undoes it."""
        low, high, at = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return [min(max((at - low) / (high - low), 0.0), 1.0)]


@dataclass(frozen=True)
class Choice:
    """Some values, without an order."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """All of them."""
        return self.values

    @property
    def size(self) -> float:
        """How many values it has."""
        return len(self.values)

    def list_values(self) -> list[Any]:
        """Return all of them."""
        return list(self.values)

    def place(self, share: float) -> Any:
        """Return the value at a share in [0, 1] of the list."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def coordinates(self, value: Any) -> list[float]:
        """Return 1 for the value and 0 for each other one."""
        return [float(type(one) is type(value) and one == value) for one in self.values]


Space = dict[str, Range | Choice]


def read_space(keys: Mapping[Any, Any], where: str) -> Space:
    """Return the ranges and choices of the section `keys`: one of these for each key of the config.

        [value, value, ...]                        a choice
        {low: number, high: number}                a range; of whole numbers, where the key takes only those
        {low: number, high: number, log: true}     on a logarithmic scale
        {low: number, high: number, step: number}  low, low + step, ...

    Raises InputError, in one line that names the key, for anything else.
    """
    space: Space = {}
    for name, given in keys.items():
        key = parse_key(name, where)
        here = f"{where}: {key}"
        if key in space:
            raise InputError(f"{here}: is given twice")
        if KEYS[key].neutral and key != "epochs":
            raise InputError(f"{here}: does not change a result, so a search cannot vary it; set it in the base")
        if key in FIXED:
            raise InputError(f"{here}: trials that differ in it cannot be compared; set it in the base")
        space[key] = _read_choice(given, here) if isinstance(given, list) else _read_range(key, given, here)
    return space


def _read_choice(values: list[Any], where: str) -> Choice:
    if any(not isinstance(value, (bool, int, float, str, type(None))) for value in values):
        raise InputError(f"{where}: a choice is between numbers, words, true, false and null")
    if len({(type(value), value) for value in values}) < max(2, len(values)):
        raise InputError(f"{where}: a choice needs two values or more, all different")
    return Choice(tuple(values))


def _read_range(key: str, given: Any, where: str) -> Range:
    if not isinstance(given, Mapping):
        raise InputError(
            f"{where}: {printable(given, 40)} is not allowed: a range {{low: ..., high: ...}} or a list of choices"
        )
    read = validate(_Range, given, {"": where})
    types = _find_types(Config.model_fields[key.replace("-", "_")].annotation)
    whole = float not in types
    if whole and int not in types:
        raise InputError(f"{where}: takes no numbers, so it has no range; give a list of choices")
    if whole and any(isinstance(value, float) for value in (read.low, read.high, read.step)):
        raise InputError(f"{where}: takes whole numbers only")
    if read.low >= read.high:
        raise InputError(f"{where}: low: {read.low:g} has to be below high: {read.high:g}")
    if read.log and read.low <= 0:
        raise InputError(f"{where}: low: {read.low:g} has to be above 0 on a logarithmic scale")
    if read.log and read.step is not None:
        raise InputError(f"{where}: step: is for a linear scale; remove it, or log")
    step = 1 if whole and read.step is None else read.step
    if step is not None and step > read.high - read.low:
        raise InputError(f"{where}: step: {step:g} is more than the range is wide")
    return Range(read.low, read.high, read.log, step, whole)


def _find_types(annotation: Any) -> set[Any]:
    """Return the plain types that a key of this annotation takes."""
    if get_origin(annotation) in (Union, types.UnionType):
        return {found for part in get_args(annotation) for found in _find_types(part)}
    if get_origin(annotation) is Annotated:
        return _find_types(get_args(annotation)[0])
    return {annotation} if isinstance(annotation, type) else set()
