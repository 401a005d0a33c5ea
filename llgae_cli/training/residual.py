"""The closed-form trainer of a Residual: level after level, then each again given all others (backfitting)."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from llgae_cli.errors import RunError
from llgae_cli.models import Residual
from llgae_cli.tasks import Samples
from llgae_cli.training import distributed
from llgae_cli.training.closed_form import ClosedForm
from llgae_cli.training.components import Components
from llgae_cli.training.state import whole
from llgae_cli.training.statistics import Statistics, latent_covariance
from llgae_cli.training.trainer import EpochRecord

logger = logging.getLogger(__name__)


class Levels:
    """Fits each level to what the levels before it leave, then improves one level a pass, in turn.

    First level l is trained as an LLGAE, with starts of its own, on x minus what levels 1 ... l - 1 make of it; it
    goes on to the next once a pass gains less than the share `tol`. Then a pass codes all rows as the model does,
    sweeps included, and gives one level its closed-form update for x minus the parts of all others; it ends once no
    level gains more than `tol`.

    The objective, the model's own, never rises: an update lowers it for the codes it was made from, and is undone
    where the codes that the model finds anew make it rise. What is left of the data is made chunk by chunk.
    """

    exact = True

    def __init__(
        self,
        model: Residual,
        samples: Samples,
        *,
        seed: int,
        restarts: int | str = "auto",
        moves: int | str = "auto",
        tol: float = 1e-4,
        shrinkage: float | Literal["auto"] = 0.0,
    ):
        """As for `ClosedForm`, whose options each level is trained with."""
        self.model, self.samples, self.tol = model, samples, tol
        self.trainers = [
            ClosedForm(
                level,
                samples,
                seed=seed + i,
                restarts=restarts,
                moves=moves,
                tol=tol,
                shrinkage=shrinkage,
                view=partial(self._view, i),
            )
            for i, level in enumerate(model.levels)
        ]
        self.started = self.fitted = 0  # levels
        self.turn = 0  # the level that is improved next, once all are fitted
        self.objective = torch.inf
        self.statistics: Statistics | None = None  # of the level whose turn it is
        self.left = torch.zeros(())  # sum of the squared residual in a pass
        self.idle = 0  # updates in a row that gained less than tol
        self.finished = False

    def start(self) -> None:
        """The first level's start."""
        self._start_level()

    def keep_start(self) -> bool:
        """Nothing is kept."""
        return False

    def epoch(self) -> EpochRecord:
        """One pass over all rows, a little more where it begins a level; `train_mean_l2` is of the levels so far."""
        return self._fit() if self.fitted < len(self.trainers) else self._refit()

    def _start_level(self) -> None:
        if len(self.trainers) > 1:
            logger.info("level %d of %d", self.started + 1, len(self.trainers))
        self.trainers[self.started].start()
        self.started += 1

    def _fit(self) -> EpochRecord:
        """One pass of the level that is being fitted; the next one is begun when its turn comes."""
        if self.started == self.fitted:
            self._start_level()
        trainer = self.trainers[self.fitted]
        record = trainer.epoch()
        if trainer.finished:
            trainer.statistics = None
            self.fitted += 1
            self.finished = len(self.trainers) == 1
        return record

    def _refit(self) -> EpochRecord:
        """Update the level whose turn it is, and measure the model, which finds out about the next level too."""
        if self.statistics is None:  # all levels are fitted now, or an update was undone, or the run is resumed
            self._measure()
        trainer, statistics, before = self.trainers[self.turn], self.statistics, self.objective
        assert statistics is not None
        present, mu, W = trainer.components, trainer.model.mu.detach().clone(), trainer.model.W.detach().clone()
        candidate = trainer.candidate(statistics)
        trainer.put(candidate, latent_covariance(present, statistics, candidate))
        self.turn = (self.turn + 1) % len(self.trainers)
        self._measure()
        gained = before - self.objective
        penalised = trainer.strength > 0  # the plain objective may rise on the way to the penalised optimum
        if gained <= 0 and not penalised:
            trainer.components, self.objective, self.statistics = present, before, None
            with torch.no_grad():
                trainer.model.mu.copy_(mu)
                trainer.model.W.copy_(W)
        self.idle = self.idle + 1 if (abs(gained) if penalised else gained) <= self.tol * before else 0
        self.finished = self.idle == len(self.trainers)
        return EpochRecord(
            train_mean_l2=self.objective / self.model.D,
            empty=int((statistics.count == 0).sum()),
            repaired=sum(trainer.repaired for trainer in self.trainers),
        )

    def _measure(self) -> None:
        """One pass: the model's objective, and the statistics of the level whose turn it is."""
        trainer = self.trainers[self.turn]
        wide = torch.float32 if self.model.device.type == "mps" else torch.float64
        self.left = torch.zeros((), dtype=wide, device=self.model.device)
        self.statistics = trainer.survey(trainer.components)
        distributed.sum_([self.left])
        self.objective = float(self.left) / self.samples.N
        if not math.isfinite(self.objective):
            raise RunError(f"the mean L2 became {self.objective / self.model.D} as level {self.turn + 1} was to follow")

    def _view(self, i: int, components: Components) -> Callable[[Tensor], Tensor]:
        """What level i is to explain; the components are in the model."""
        order = range(i) if self.fitted < len(self.trainers) else self.model.order()

        @torch.no_grad()
        def seen(x: Tensor) -> Tensor:
            left, parts, _ = self.model.explained(x, order)
            self.left = self.left + torch.linalg.vector_norm(left, dim=1).square_().sum(dtype=self.left.dtype)
            return left + parts[i]

        return seen

    def state_dict(self) -> dict[str, Any]:
        """All that an exact continuation needs besides the model."""
        return {
            "levels": [trainer.state_dict() for trainer in self.trainers],
            "started": self.started,
            "fitted": self.fitted,
            "turn": self.turn,
            "objective": self.objective,
            "idle": self.idle,
            "finished": self.finished,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        for trainer, own in zip(self.trainers, state["levels"], strict=True):
            trainer.load_state_dict(own)
        self.started, self.fitted, self.turn = (whole(state[key]) for key in ("started", "fitted", "turn"))
        if max(self.started, self.fitted, self.turn + 1) > len(self.trainers):
            raise ValueError("a level beyond the last")
        self.objective, self.idle, self.finished = float(state["objective"]), whole(state["idle"]), state["finished"]
