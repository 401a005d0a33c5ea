"""The closed-form trainer of a residual model: fits level after level, then updates them in turn (backfitting)."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from llgae_cli import distributed
from llgae_cli.errors import RunError
from llgae_cli.models import Residual
from llgae_cli.progress import Work, expect_passes
from llgae_cli.tasks import Samples
from llgae_cli.training.closed_form import ClosedForm
from llgae_cli.training.components import Components
from llgae_cli.training.state import read_count
from llgae_cli.training.statistics import Statistics, latent_covariance
from llgae_cli.training.trainer import EpochRecord, Trainer

UPDATE_GAIN = 1e-2  # of the first update of each level, about, by which the number of updates is first estimated

logger = logging.getLogger(__name__)


class ResidualClosedForm(Trainer):
    """Fits each level to the residual of the others.

    First, level l is initialised and trained as an LLGAE of x minus the parts of levels 1 ... l - 1, until a pass gains
    less than the share `tol`. Then each pass encodes all rows as the model does, sweeps included, and gives one level
    its closed-form update for x minus the parts of all other levels. The run ends once no level gains more than `tol`.

    The objective, the model's own, never rises: an update lowers it for the codes that it was computed from, and is
    undone where the new codes raise it. Residuals are computed chunk by chunk.
    """

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
        """Prepare a run; the options are those of `ClosedForm` for each level."""
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
                target=partial(self._target, i) if len(model.levels) > 1 else None,
            )
            for i, level in enumerate(model.levels)
        ]
        self.started = self.fitted = 0  # number of levels initialised, and fitted
        self.turn = 0  # the level that the next update is for, once all are fitted
        self.objective = torch.inf
        self.statistics: Statistics | None = None  # of that level
        self.squared_residual = torch.zeros(())  # sum over the samples in a pass
        self.updates = self.epochs = 0  # of this process: done, and expected at most
        self.idle = 0  # updates in a row that gained less than tol
        self.finished = False

    def plan(self, work: Work, epochs: int, begun: bool) -> None:
        """Report work from now on: of each level, then of the updates in turn. A level before is an encoding more."""
        self.work, self.epochs, levels = work, epochs, len(self.trainers)
        for i, trainer in enumerate(self.trainers):
            trainer.encodings = i
            if i >= self.fitted:
                part = work.within(f"level {i + 1} of {levels}") if levels > 1 else work
                trainer.plan(part, epochs, begun=i < self.started)
        if levels > 1:
            self._expect_updates(levels * (1 + expect_passes(1, UPDATE_GAIN, self.tol)))

    @property
    def row_operations(self) -> float:
        """Operations of a row in an update."""
        return self.trainers[0].count_row_operations(len(self.model.order()))

    def _expect_updates(self, left: float) -> None:
        left = min(left, self.epochs)  # with tol 0 no gain is expected to end the run
        self.work.expect("updates", left * self.samples.N * self.row_operations)

    def initialise(self) -> None:
        """Initialise the next level; the first one before the first epoch."""
        if len(self.trainers) > 1:
            logger.info("level %d of %d", self.started + 1, len(self.trainers))
        self.trainers[self.started].initialise()
        self.started += 1

    def epoch(self) -> EpochRecord:
        """Run one pass over all rows; `train_mean_l2` is of the levels so far: in the end, the model's own."""
        return self._fit_level() if self.fitted < len(self.trainers) else self._update_level()

    def _fit_level(self) -> EpochRecord:
        """Run one pass for the first level that is not fitted yet."""
        if self.started == self.fitted:
            self.initialise()
        trainer = self.trainers[self.fitted]
        record = trainer.epoch()
        if trainer.finished:
            trainer.statistics = None
            self.fitted += 1
            self.finished = len(self.trainers) == 1
        return record

    def _update_level(self) -> EpochRecord:
        """Update the level whose turn it is, and measure the model; the same pass collects the next level's statistics.

        An update that does not lower the objective is undone.
        """
        if self.statistics is None:  # in the first update, after one that was undone, and in a resumed run
            self._measure()
        trainer, statistics, before = self.trainers[self.turn], self.statistics, self.objective
        assert statistics is not None
        present, mu, W = trainer.components, trainer.model.mu.detach().clone(), trainer.model.W.detach().clone()
        components = trainer.next_components(statistics)
        trainer.set_components(components, latent_covariance(present, statistics, components))
        self.turn = (self.turn + 1) % len(self.trainers)
        self._measure()
        gain = before - self.objective
        penalised = trainer.strength > 0  # the plain objective may rise on the way to the penalised optimum
        if gain <= 0 and not penalised:
            trainer.components, self.objective, self.statistics = present, before, None
            with torch.no_grad():
                trainer.model.mu.copy_(mu)
                trainer.model.W.copy_(W)
        self.idle = self.idle + 1 if (abs(gain) if penalised else gain) <= self.tol * before else 0
        self.finished = self.idle == len(self.trainers)
        self.updates += 1
        rounds, levels = self.updates / len(self.trainers), len(self.trainers)
        expected = levels * (expect_passes(1, abs(gain) / before, self.tol) - 1) * max(1.0, rounds) if before else 0.0
        self._expect_updates(0.0 if self.finished else max(expected, levels - self.idle))
        return EpochRecord(
            train_mean_l2=self.objective / self.model.D,
            empty=int((statistics.count == 0).sum()),
            repaired=sum(trainer.repaired for trainer in self.trainers),
        )

    def _measure(self) -> None:
        """Compute the model's objective, and the statistics of the level whose turn it is, in one pass."""
        trainer = self.trainers[self.turn]
        trainer.work, trainer.stage, trainer.step = self.work, "updates", f"update {self.updates + 1}"
        trainer.encodings = len(self.model.order())
        wide = torch.float32 if self.model.device.type == "mps" else torch.float64  # Apple's GPU has no float64
        self.squared_residual = torch.zeros((), dtype=wide, device=self.model.device)
        self.statistics = trainer.collect_statistics(trainer.components)
        distributed.sum_([self.squared_residual])
        self.objective = float(self.squared_residual) / self.samples.N
        if not math.isfinite(self.objective):
            mean_l2 = self.objective / self.model.D
            raise RunError(f"the mean L2 became {mean_l2} before the update of level {self.turn + 1}")

    def _target(self, i: int, components: Components) -> Callable[[Tensor], Tensor]:
        """Return the function from x (n, D) to x minus the parts of the levels other than i.

        The parts come from the model, which holds `components`. Until all levels are fitted, only earlier levels count.
        """
        order = range(i) if self.fitted < len(self.trainers) else self.model.order()

        @torch.no_grad()
        def subtract_others(x: Tensor) -> Tensor:
            residual, parts, _ = self.model.encode_levels(x, order)
            squared = torch.linalg.vector_norm(residual, dim=1).square_().sum(dtype=self.squared_residual.dtype)
            self.squared_residual = self.squared_residual + squared
            return residual + parts[i]

        return subtract_others

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs, together with the model's own state."""
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
        """Resume from `state_dict`. Raises ValueError where it does not fit."""
        for trainer, own in zip(self.trainers, state["levels"], strict=True):
            trainer.load_state_dict(own)
        self.started, self.fitted, self.turn = (read_count(state[key]) for key in ("started", "fitted", "turn"))
        if max(self.started, self.fitted, self.turn + 1) > len(self.trainers):
            raise ValueError("a level beyond the last")
        self.objective, self.idle = float(state["objective"]), read_count(state["idle"])
        self.finished = state["finished"]
