"""The closed-form trainer: assign, then the optimum of every component given its samples; no step size anywhere."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from llgae_cli.errors import RunError
from llgae_cli.inference import gauge
from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples
from llgae_cli.threads import run_alone
from llgae_cli.training import distributed, int8
from llgae_cli.training.components import Components, Coordinates, aligned, halved
from llgae_cli.training.initialisation import Attempt, Start, StartSearch
from llgae_cli.training.int8 import ByteScorer
from llgae_cli.training.scoring import Scorer, Workspace
from llgae_cli.training.shortlists import NEIGHBOURS, WORTHWHILE_K, ShortLists
from llgae_cli.training.shrinkage import shrunk
from llgae_cli.training.state import indices, real, tensor_like, whole
from llgae_cli.training.statistics import Statistics, even, latent_covariance, sum_over_shards, survey
from llgae_cli.training.trainer import EpochRecord

START_ROWS, START_ROWS_EACH = 12_000, 100  # rows that starts are tried on: so many, or so many a component
REFINE_ROWS = 30_000
FAR = 100  # how many times the spread of the components' means the data's mean may lie from zero, squared
CHUNK_VALUES = 1 << 22  # numbers in a chunk, at most: 16 MB

# Of the components of a pass: what they are to explain of samples x (n, D), where that is not x itself.
View = Callable[[Components], Callable[[Tensor], Tensor]]


class ClosedForm:
    """Alternates assignment and closed-form update until a pass gains less than the share `tol`.

    The objective never rises: a pass that does not lower it is undone and ends the run. The model is written in the
    gauge in which T ascent steps are exact for every T (see `inference.gauge`). Pixels that are bytes are used as they
    are where that is faster (see `integers`).
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
        candidates: int | str = "off",
        shrinkage: float | Literal["auto"] = 0.0,
        view: View | None = None,
    ):
        """Restarts, moves: see `starts`. `candidates`: auto | off | neighbours scored. `shrinkage`: in samples.

        `view`: what is explained in place of x, for models with more in their codes than k and b.
        """
        self.model, self.samples, self.tol, self.view = model, samples, tol, view
        self.shrinkage, self.strength = shrinkage, 0.0
        self.coordinates = Start.blank(Components(model.mu.detach(), model.W.detach())).coordinates
        listed = {"auto": NEIGHBOURS if model.K >= WORTHWHILE_K else 0, "off": 0}.get(str(candidates), candidates)
        self.short_lists: ShortLists | None = None
        if 0 < int(listed) < model.K - 1:
            self.short_lists = ShortLists(self._block, *distributed.share(samples.N), samples.N, int(listed))
        self.restarts = (4 if model.K <= 16 else 1) if restarts == "auto" else int(restarts)
        self.moves = (60 if model.K <= 64 else 0) if moves == "auto" else int(moves)
        self.generator = torch.Generator().manual_seed(seed)
        self.components = Components(model.mu.detach().clone(), model.W.detach().clone())
        self.origin: Tensor | None = None
        self.search: StartSearch | None = None  # while it goes on, with the starts of it that are done
        self.attempts: list[Attempt] = []
        self.before_search = self.generator.get_state()
        self.statistics: Statistics | None = None
        self.workspace = Workspace()
        self.finished = False
        self.repaired = self.passes = 0

    @property
    def exact(self) -> bool:
        """Whether every component is scored for every sample, and not the shortlists alone."""
        return self.short_lists is None

    def start(self) -> None:
        """The best of several starts on a sample of the rows, then one pass that measures it on all of them."""
        model, N = self.model, self.samples.N
        self.before_search = self.generator.get_state()
        if distributed.rank() == 0:
            order = torch.randperm(N, generator=self.generator)
            few = order[: max(START_ROWS, START_ROWS_EACH * model.K)].sort().values
            many = order[: max(REFINE_ROWS, len(few))].sort().values
            self.search = StartSearch(
                self._rows(few),
                [partial(self._rows, part) for part in many.split(2048)],
                model.K,
                model.E,
                parallel=self.view is None,
                restarts=self.restarts,
                moves=self.moves,
                shrinkage=self.shrinkage,
                neighbours=self.short_lists.neighbours if self.short_lists else 0,
                generator=self.generator,
            )
            self.search.run(self.attempts)
            found = self.search.best(self.attempts)
            self.search, self.attempts = None, []
        else:
            found = Start.blank(self.components)
        distributed.from_first_(found.tensors())
        found = self._seen_from_origin(found)
        self.coordinates, self.strength = found.coordinates, float(found.strength)
        self._adopt(found.components, self.survey(found.components))

    def _seen_from_origin(self, found: Start) -> Start:
        """Move the origin to the data's mean where that is far from zero compared with the data's spread.

        Distances are differences of squares; where |x|^2 is much larger than they are, float32 would lose their digits.
        """
        mu, centre = found.components.mu, found.coordinates.centre
        spread = (mu - centre).square().sum(1).mean()
        if float(centre.square().sum()) <= FAR * float(spread):
            return found
        self.origin = centre
        moved = Coordinates(torch.zeros_like(centre), found.coordinates.V)
        return Start(Components(mu - centre, found.components.U), moved, found.strength)

    @torch.no_grad()
    def keep_start(self) -> bool:
        """The best of the starts that are done, once there is one."""
        if self.search is None or not self.attempts:
            return False
        best = self.search.best(self.attempts).components
        self.model.mu.copy_(best.mu)
        self.model.W.copy_(gauge(best.U, self.model.beta, self.model.alpha))
        return True

    def epoch(self) -> EpochRecord:
        """One pass over all rows; `train_mean_l2` is the model's own: exact, or that of the short lists if any."""
        if self.statistics is None:  # a resumed run
            self.statistics = self.survey(self.components)
        before, lists = self.statistics.objective, self.short_lists and self.short_lists.state()
        candidate = run_alone(partial(self.candidate, self.statistics), self._on_cpu)
        statistics = self.survey(candidate)
        gained = before - statistics.objective
        self.passes += 1
        if not math.isfinite(gained):
            raise RunError(
                f"the mean L2 became {statistics.objective / self.model.D} in pass {self.passes} of this run"
            )
        # With a prior the plain objective may rise a little on the way to the penalised optimum.
        if gained > 0 or self.strength > 0:
            self._adopt(candidate, statistics)
        elif self.short_lists and lists:
            self.short_lists.set_state(lists)  # those of the components that stay
        # Rounding may leave an objective of zero just below it.
        self.finished = (abs(gained) if self.strength > 0 else gained) <= self.tol * abs(before)
        return EpochRecord(
            train_mean_l2=self.statistics.objective / self.model.D,
            empty=int((self.statistics.count == 0).sum()),
            repaired=self.repaired,
        )

    def candidate(self, statistics: Statistics) -> Components:
        """The next components, given what a pass with the present ones has found."""
        return self._repaired(shrunk(self.components, statistics, self.coordinates, self.strength), statistics)

    def _adopt(self, components: Components, statistics: Statistics) -> None:
        self.statistics = statistics
        self.put(components, latent_covariance(components, statistics))

    @torch.no_grad()
    def put(self, components: Components, covariance: Tensor) -> None:
        """Make these the present components and write them into the model; `covariance` (K, E, E) of their latents."""
        self.components = components
        ordered = self._of_the_data(run_alone(partial(aligned, components, covariance), self._on_cpu))
        self.model.mu.copy_(ordered.mu)
        self.model.W.copy_(gauge(ordered.U, self.model.beta, self.model.alpha))

    def survey(self, components: Components) -> Statistics:
        """One pass over all rows, on all processes."""
        lists = self.short_lists
        if lists is not None and lists.k is not None:
            statistics = lists.survey(components, self.coordinates, self.workspace, scatter=self.strength > 0)
        else:
            statistics = self._full(components, lists)
        distributed.sum_(statistics.tensors())
        return statistics

    def _full(self, components: Components, lists: ShortLists | None) -> Statistics:
        """One pass over this process's rows that scores every component; what it finds begins the short lists."""
        coordinates = self.coordinates if self.strength else None
        chunks = self._stored_chunks if self._in_bytes() else partial(self._chunks, components)
        score = (ByteScorer if self._in_bytes() else Scorer)(components, self.workspace)
        low, high = distributed.share(self.samples.N)
        k = torch.empty(high - low if lists else 0, dtype=torch.int64, device=components.mu.device)

        def part(first: int, last: int) -> Statistics:
            found: list[Tensor] | None = [] if lists else None
            statistics = survey(chunks(first, last), components, coordinates, score, found)
            if found:
                torch.cat(found, out=k[first - low : last - low])
            return statistics

        own_buffers = self.view is None and self._on_cpu
        statistics = sum_over_shards(part, low, high, self.model.K, parallel=own_buffers)
        if lists:
            lists.before, lists.k = None, k
        return statistics

    @property
    def _on_cpu(self) -> bool:
        return self.components.mu.device.type == "cpu"

    def _in_bytes(self) -> bool:
        """Whether the rows are bytes and are to be used as they are."""
        samples, mu = self.samples, self.components.mu
        as_stored = self.view is None and self.origin is None and mu.dtype == torch.float32
        centred_bytes = samples.stored == "uint8" and samples.centring == "sample" and samples.D <= int8.LARGEST_D
        return as_stored and centred_bytes and int8.pays(mu.device)

    def _of_the_data(self, components: Components) -> Components:
        """Components as the data has them, not seen from the origin."""
        return components if self.origin is None else Components(components.mu + self.origin, components.U)

    def _chunks(self, components: Components, low: int, high: int) -> Iterator[Tensor]:
        seen = self.view and self.view(self._of_the_data(components))
        size = self._chunk_rows(high - low)
        buffer = self.workspace.take("chunk", components.mu, size, self.model.D)
        for _, x in self.samples.chunks(size, dtype=buffer.dtype, start=low, stop=high, out=buffer):
            x = x if seen is None else seen(x)
            yield x if self.origin is None else x.sub_(self.origin)

    def _stored_chunks(self, low: int, high: int) -> Iterator[Tensor]:
        size = self._chunk_rows(high - low)
        for first in range(low, high, size):
            yield self.samples.stored_rows(slice(first, min(first + size, high)))

    def _chunk_rows(self, n: int) -> int:
        return even(n, chunk_rows(self.model.K, self.model.D))

    def _rows(self, index: Tensor, out: Tensor | None = None) -> Tensor:
        x = self.samples.rows(index, dtype=self.components.mu.dtype, out=out)
        if self.view is not None:
            seen = self.view(self._of_the_data(self.components))
            x = torch.cat([seen(part) for part in x.split(2048)])
        return x if self.origin is None else x - self.origin

    def _block(self, index: Tensor) -> Tensor:
        """The rows at the indices (m,), which the next call overwrites."""
        return self._rows(index, self.workspace.take("block", self.components.mu, len(index), self.model.D))

    def _repaired(self, components: Components, statistics: Statistics) -> Components:
        """Empty components become halves of the worst ones. Those stay as they are, so no sample is worse off."""
        empty = (statistics.count == 0).nonzero()[:, 0].tolist()
        if not empty:
            return components
        repaired = components.clone()
        if distributed.rank() == 0:
            rows = self._rows(torch.randperm(self.samples.N, generator=self.generator)[:START_ROWS])
            worst = statistics.distortion.argsort(descending=True).tolist()
            k = Scorer(components).nearest(rows)[1]
            for i, a in enumerate(empty):
                b = worst[i % (self.model.K - len(empty))]
                own = rows[k == b]
                pair = halved(own if len(own) else rows, components.U[b], self.generator)
                repaired.mu[a], repaired.U[a] = pair.mu[0], pair.U[0]
        distributed.from_first_([repaired.mu, repaired.U])
        self.repaired += len(empty)
        return repaired

    def state_dict(self) -> dict[str, Any]:
        """The orthonormal components themselves: the model holds them in another order and scale."""
        return {
            "mu": self.components.mu,
            "U": self.components.U,
            "strength": self.strength,
            "origin": self.origin,
            "centre": self.coordinates.centre,
            "V": self.coordinates.V,
            "generator": self.before_search if self.attempts else self.generator.get_state(),
            "attempts": [(attempt.components.mu, attempt.components.U, attempt.objective) for attempt in self.attempts],
            "finished": self.finished,
            "repaired": self.repaired,
            "before": self._lists_began(),
            "turn": self.short_lists.turn if self.short_lists else 0,
        }

    def _lists_began(self) -> Tensor | None:
        """What the last pass's short lists started from, for that pass to be repeated; one process alone keeps it."""
        before = self.short_lists.before if self.short_lists and distributed.world() == 1 else None
        return None if before is None else before.to(torch.int32)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        mu, U, here = self.components.mu, self.components.U, self.coordinates
        self.components = Components(tensor_like(state["mu"], mu), tensor_like(state["U"], U))
        self.origin = None if state["origin"] is None else tensor_like(state["origin"], here.centre)
        self.coordinates = Coordinates(tensor_like(state["centre"], here.centre), tensor_like(state["V"], here.V))
        self.strength = real(state["strength"])
        if self.short_lists and state["before"] is not None and distributed.world() == 1:
            shape, device = (self.samples.N,), self.components.mu.device
            self.short_lists.k = indices(state["before"], shape, self.model.K).to(device)
            self.short_lists.turn = max(0, whole(state["turn"]) - 1)
        K, d, E = self.model.K, here.V.shape[1], self.model.E
        self.attempts = [
            Attempt(
                Components(tensor_like(mu_d, mu.new_empty(K, d)), tensor_like(U_d, mu.new_empty(K, d, E))),
                real(objective),
            )
            for mu_d, U_d, objective in state.get("attempts", [])  # older checkpoints have none
        ]
        self.generator.set_state(state["generator"])
        self.finished, self.repaired = bool(state["finished"]), whole(state["repaired"])


def chunk_rows(K: int, D: int) -> int:
    """Rows of a chunk: 2048, and more where a component's samples in it would make a product not worth calling.

    At least 256 and at most what CHUNK_VALUES allows.
    """
    return max(256, min(max(2048, 4 * K), 8192, CHUNK_VALUES // D))
