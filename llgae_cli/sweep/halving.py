"""Successive halving: all cells train a little, the better share trains on. Chosen on held-out training samples.

With rungs e_1 < e_2 < ... and n cells, all n train e_1 epochs; the ceil(keep n) with the lowest validation mean L2 go
on to e_2, the ceil(keep^2 n) best of those to e_3, and so on; the last ones train their own `epochs`. The test samples
decide nothing. Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization", AISTATS 2016.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llgae_cli.config import Config
from llgae_cli.errors import InputError, nearest, printable


@dataclass(frozen=True)
class Halving:
    """`rungs`: epochs after which cells are judged, ascending. `keep`: the share that goes on, 0 < keep < 1."""

    rungs: tuple[int, ...]
    keep: float

    def survivors(self, validation: Mapping[str, float]) -> list[str]:
        """The ceil(keep n) of n cells with the lowest validation mean L2; of equal ones, the first by name."""
        count = math.ceil(self.keep * len(validation))
        return sorted(validation, key=lambda id: (validation[id], id))[:count]


def read_halving(value: Any, configs: Sequence[Config], path: Path) -> Halving:
    """The `halving` section of a sweep file, checked against its cells; InputError says what does not fit."""
    if not isinstance(value, dict):
        raise InputError(f"{path}: halving: expected 'rungs: [5, 15]' and 'keep: 0.5', not {printable(value)}")
    for key in value:
        if key not in ("rungs", "keep"):
            raise InputError(f"{path}: halving: unknown key '{printable(key)}'{nearest(str(key), ('rungs', 'keep'))}")
    rungs, keep = value.get("rungs"), value.get("keep", 0.5)
    if not isinstance(rungs, list) or not rungs or any(type(rung) is not int or rung < 1 for rung in rungs):
        raise InputError(f"{path}: halving: rungs: {printable(rungs)} is no list of numbers of epochs")
    if sorted(set(rungs)) != rungs:
        raise InputError(f"{path}: halving: rungs: {printable(rungs)} do not rise")
    if type(keep) not in (int, float) or not 0 < keep < 1:
        raise InputError(f"{path}: halving: keep: {printable(keep)} is no share between 0 and 1")
    for config in configs:
        if config.trainer != "gradient":
            raise InputError(f"{path}: halving: for trainer gradient alone; {config.trainer} stops by itself")
        if config.validation == 0:
            raise InputError(f"{path}: halving: needs 'validation' above 0 in the base: the test set decides nothing")
        if config.schedule != "constant":
            raise InputError(f"{path}: halving: needs schedule constant; {config.schedule} ends with the epochs")
        if config.epochs <= rungs[-1]:
            raise InputError(f"{path}: halving: the last rung, {rungs[-1]}, is not below epochs: {config.epochs}")
    if len({(config.task, config.validation) for config in configs}) > 1:
        raise InputError(f"{path}: halving: compares cells of one task and one validation share")
    return Halving(tuple(rungs), float(keep))
