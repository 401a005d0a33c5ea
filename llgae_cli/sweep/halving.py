"""Successive halving: all cells train for a few epochs, and the better part of them continues.

With rungs e_1 < e_2 < ... and n cells, all n train e_1 epochs; the ceil(keep n) with the lowest validation mean L2
continue to e_2, the ceil(keep^2 n) best of those to e_3, and so on; the last ones train their own `epochs`. The test
samples are not used. Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization", AISTATS 2016.

The trials of a search come one after the other. So each that reaches a rung is compared with those that reached it
before: it continues if it is among the ceil(keep n) best of these n. Source: Li et al., "A system for massively
parallel hyperparameter tuning", MLSys 2020.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from llgae_cli.config import Config


class Halving(BaseModel):
    """The `halving` section of a sweep file.

    `rungs`: epochs after which cells are compared, ascending. `keep`: fraction of the cells that continues.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    rungs: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    keep: float = Field(0.5, gt=0, lt=1)

    @field_validator("rungs")
    @classmethod
    def _check_order(cls, rungs: list[int]) -> list[int]:
        if sorted(set(rungs)) != rungs:
            raise ValueError("numbers of epochs have to increase")
        return rungs

    def find_conflict(self, configs: Sequence[Config]) -> str | None:
        """Return why cells of these configs cannot be halved, or None."""
        for config in configs:
            if config.trainer != "gradient":
                return f"needs trainer gradient; {config.trainer} stops on its own"
            if config.validation == 0:
                return "needs 'validation' above 0 in the base, because the test samples may not choose a cell"
            if config.schedule != "constant":
                return f"needs schedule constant; {config.schedule} depends on the number of epochs"
            if config.epochs <= self.rungs[-1]:
                return f"the last rung, {self.rungs[-1]}, has to be below epochs: {config.epochs}"
        if len({(config.task, config.validation) for config in configs}) > 1:
            return "needs one task and one validation fraction in all cells"
        return None

    def select(self, validation: Mapping[str, float]) -> list[str]:
        """Return the ceil(keep n) of n cells with the lowest validation mean L2; of equal ones, the first by name."""
        count = math.ceil(self.keep * len(validation))
        return sorted(validation, key=lambda id: (validation[id], id))[:count]
