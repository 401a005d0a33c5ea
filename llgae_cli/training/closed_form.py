"""The closed-form trainer: assign, then the optimum of every component given its samples; no step size anywhere."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llgae_cli.inference import gauge
from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples
from llgae_cli.training import distributed
from llgae_cli.training.components import Components, Statistics, aligned, improved, latent_covariance, split, survey
from llgae_cli.training.progress import EpochRecord, Notify
from llgae_cli.training.starts import start

START_ROWS, START_ROWS_EACH = 12_000, 100  # rows that starts are tried on: so many, or so many a component
REFINE_ROWS = 60_000
CHUNK_VALUES = 1 << 20  # numbers in a chunk's widest array: 4 MB, so that the chunk stays in the L2/L3 cache


class ClosedForm:
    """Alternates assignment and closed-form update until a pass gains less than the share `tol`.

    The objective never rises: a pass that does not lower it is undone and ends the run. The model is written in the
    gauge in which T ascent steps are exact for every T (see `inference.gauge`).
    """

    def __init__(
        self,
        model: LLGAE,
        samples: Samples,
        *,
        seed: int,
        restarts: int | str = "auto",
        moves: int | str = "auto",
        tol: float = 1e-4,
    ):
        self.model, self.samples, self.tol = model, samples, tol
        self.restarts = (4 if model.K <= 32 else 1) if restarts == "auto" else int(restarts)
        self.moves = max(0, 60 - model.K) if moves == "auto" else int(moves)
        self.generator = torch.Generator().manual_seed(seed)
        self.components = Components(model.mu.detach().clone(), model.W.detach().clone())
        self.statistics: Statistics | None = None
        self.finished = False
        self.repaired = 0

    def start(self, notify: Notify) -> None:
        """The best of several starts on a sample of the rows, then one pass that measures it on all of them."""
        model, N = self.model, self.samples.N
        if distributed.rank() == 0:
            order = torch.randperm(N, generator=self.generator)
            few = order[: max(START_ROWS, START_ROWS_EACH * model.K)].sort().values
            many = order[: max(REFINE_ROWS, len(few))].sort().values
            self.components = start(
                self._rows(few),
                (self._rows(part) for part in many.split(4096)),
                model.K,
                model.E,
                restarts=self.restarts,
                moves=self.moves,
                generator=self.generator,
                notify=notify,
            )
        distributed.from_first_([self.components.mu, self.components.U])
        self._adopt(self.components, self._survey(self.components))

    def epoch(self) -> EpochRecord:
        """One pass over all rows; `train_mean_l2` is the model's own, exactly."""
        if self.statistics is None:  # a resumed run
            self.statistics = self._survey(self.components)
        before = self.statistics.objective
        candidate = self._repaired(improved(self.components, self.statistics), self.statistics)
        statistics = self._survey(candidate)
        gained = before - statistics.objective
        if gained > 0:
            self._adopt(candidate, statistics)
        self.finished = gained <= self.tol * before
        return EpochRecord(
            train_mean_l2=self.statistics.objective / self.model.D,
            empty=int((self.statistics.count == 0).sum()),
            repaired=self.repaired,
        )

    def _adopt(self, components: Components, statistics: Statistics) -> None:
        self.components, self.statistics = components, statistics
        ordered = aligned(components, latent_covariance(statistics))
        with torch.no_grad():
            self.model.mu.copy_(ordered.mu)
            self.model.W.copy_(gauge(ordered.U, self.model.beta, self.model.alpha))

    def _survey(self, components: Components) -> Statistics:
        low, high = distributed.share(self.samples.N)
        statistics = survey(self._chunks(low, high), components)
        distributed.sum_(statistics.tensors())
        return statistics

    def _chunks(self, low: int, high: int) -> Iterator[Tensor]:
        size = chunk_rows(self.model.K, self.model.D, self.model.E)
        buffer = torch.empty(size, self.model.D, dtype=self.components.mu.dtype, device=self.samples.device)
        for _, x in self.samples.chunks(size, dtype=buffer.dtype, start=low, stop=high, out=buffer):
            yield x

    def _rows(self, index: Tensor) -> Tensor:
        return self.samples.rows(index, dtype=self.components.mu.dtype)

    def _repaired(self, components: Components, statistics: Statistics) -> Components:
        """Empty components become halves of the worst ones. Those stay as they are, so no sample is worse off."""
        empty = (statistics.count == 0).nonzero()[:, 0].tolist()
        if not empty:
            return components
        repaired = components.clone()
        if distributed.rank() == 0:
            rows = self._rows(torch.randperm(self.samples.N, generator=self.generator)[:START_ROWS])
            worst = statistics.distortion.argsort(descending=True).tolist()
            for i, a in enumerate(empty):
                half, _ = split(rows, components, worst[i % (self.model.K - len(empty))], self.generator)
                repaired.mu[a], repaired.U[a] = half.mu[0], half.U[0]
        distributed.from_first_([repaired.mu, repaired.U])
        self.repaired += len(empty)
        return repaired

    def state_dict(self) -> dict[str, Any]:
        """The orthonormal components themselves: the model holds them in another order and scale."""
        return {
            "mu": self.components.mu,
            "U": self.components.U,
            "generator": self.generator.get_state(),
            "finished": self.finished,
            "repaired": self.repaired,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        device = self.model.mu.device
        self.components = Components(state["mu"].to(device), state["U"].to(device))
        self.generator.set_state(state["generator"])
        self.finished, self.repaired = state["finished"], state["repaired"]


def chunk_rows(K: int, D: int, E: int) -> int:
    """Rows of a chunk: 256 to 2048, fewer where a row's widest array, max(D, K (E + 1)) numbers, is wider."""
    return max(256, min(2048, CHUNK_VALUES // max(D, K * (E + 1))))
