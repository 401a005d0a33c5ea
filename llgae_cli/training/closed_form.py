"""The closed-form trainer: assign samples, then update every component to fit its samples; there is no step size."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from llgae_cli import distributed
from llgae_cli.errors import RunError
from llgae_cli.inference import gauge
from llgae_cli.models import LLGAE
from llgae_cli.progress import Work, expect_passes
from llgae_cli.tasks import Samples, take_part
from llgae_cli.threads import run_single_threaded
from llgae_cli.training import int8, restart_work
from llgae_cli.training.components import Components, Coordinates, align, halve
from llgae_cli.training.initialisation import Initialisation, Restart, Restarts
from llgae_cli.training.int8 import ByteScorer
from llgae_cli.training.narrow import are_quicker, choose_dtype, collect_moments
from llgae_cli.training.scoring import Scorer, Workspace
from llgae_cli.training.shortlists import NEIGHBOURS, WORTHWHILE_K, Shortlists
from llgae_cli.training.shrinkage import update_with_shrinkage
from llgae_cli.training.state import read_count, read_indices, read_number, read_tensor
from llgae_cli.training.statistics import (
    Statistics,
    chunk_rows,
    collect_in_shards,
    even_chunk_size,
    latent_covariance,
)
from llgae_cli.training.trainer import EpochRecord, Trainer

FAR = 100  # the origin is moved when |data mean|^2 exceeds this multiple of the variance between components
ENCODING = 2.4  # time of encoding a row over that of a row in a pass, about
FIRST_GAIN = 2e-3  # of the first pass after the restarts, about, by which the number of passes is first estimated

# target(components): a function from samples x (n, D) to what the components are fitted to in their place.
Target = Callable[[Components], Callable[[Tensor], Tensor]]


class ClosedForm(Trainer):
    """Alternates assignment and update until a pass lowers the objective by less than the share `tol`.

    The objective never rises: an update that does not lower it is undone and ends the run. The model is written in the
    gauge in which T ascent steps are exact for every T (see `inference.gauge`). Centred bytes are scored by integer
    products where that is faster (see `int8`). Narrow rows are computed in float64 (see `narrow`).
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
        target: Target | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Prepare a run.

        restarts    number of restarts (see `initialisation`); auto: 4 up to K = 16, else 1
        moves       split-merge moves a restart, at most; auto: 60 up to K = 64 (240 for narrow rows), else 0
        candidates  neighbours in a shortlist (see `shortlists`), or off; auto: 23 from K = 100 on
        shrinkage   strength in samples (see `shrinkage`); auto: chosen on held-out rows
        target      what the components are fitted to in place of x, for models whose code is more than k and b
        dtype       that passes compute in; None: that of `choose_dtype`, or of the model where there is a target
        """
        self.model, self.samples, self.tol, self.target = model, samples, tol, target
        self.part = take_part(samples)
        self.shrinkage, self.strength = shrinkage if model.E > 0 else 0.0, 0.0  # without axes nothing is shrunk
        dtype = dtype or (choose_dtype(model.mu, model.E) if target is None else model.mu.dtype)
        self.components = Components(*(each.detach().to(dtype, copy=True) for each in (model.mu, model.W)))
        self.coordinates = Initialisation.empty(self.components).coordinates
        self.origin: Tensor | None = None  # where not None, passes use x - origin
        neighbours = {"auto": NEIGHBOURS if model.K >= WORTHWHILE_K else 0, "off": 0}.get(str(candidates), candidates)
        self.shortlists: Shortlists | None = None
        if 0 < int(neighbours) < model.K - 1:
            self.shortlists = Shortlists(self._block, self.part.ranges, samples.N, int(neighbours))
        self.n_restarts = (4 if model.K <= 16 else 1) if restarts == "auto" else int(restarts)
        self.n_moves = restart_work.choose_moves(model.K, self._uses_products) if moves == "auto" else int(moves)
        self.generator = torch.Generator().manual_seed(seed)
        self.first_generator_state = self.generator.get_state()  # that before `initialise`
        self.restarts: Restarts | None = None  # during `initialise`
        self.restarts_done: list[Restart] = []
        self.starts: list[float] = []  # mean L2 of each restart, on its rows
        self.statistics: Statistics | None = None  # of the present components
        self.workspace = Workspace()
        self.finished = False
        self.repaired = self.passes = 0
        # What passes are reported as: their stage, the step (by default, its number), and encodings of a row (`plan`).
        self.stage, self.step, self.encodings, self.epochs = "passes", "", 0, 0

    def plan(self, work: Work, epochs: int, begun: bool) -> None:
        """Report work from now on: of the restarts, and of each pass in the stage `stage`.

        Where the target of a row needs encodings by other components, `encodings` says how many, see ENCODING.
        """
        self.work, self.epochs = work, epochs
        model, N = self.model, self.samples.N
        if not begun:
            sizes = (N, model.D, model.K, model.E, self._uses_products)
            restart_work.expect_restarts(work, *sizes, self.n_restarts, self.n_moves, self.shrinkage == "auto")
        passes = min(epochs, expect_passes(1, FIRST_GAIN, self.tol)) + (not begun)
        work.expect(self.stage, passes * N * self.row_operations)

    @property
    def row_operations(self) -> float:
        """Operations of a row in a pass: those of the scores, the statistics, and the row's target."""
        return self.count_row_operations(self.encodings)

    def count_row_operations(self, encodings: int) -> float:
        """Return the operations of a row in a pass whose target takes so many encodings."""
        model, lists = self.model, self.shortlists
        K = model.K if lists is None else lists.neighbours + 1
        scatter = 2.0 * self.coordinates.V.numel() if self.shrinkage != 0 else 0.0
        operations = restart_work.count_operations(1, model.D, K, model.E) + scatter
        return operations * (1 + ENCODING * encodings)

    @property
    def exact(self) -> bool:
        """Whether every component is scored for every sample, and not only a shortlist."""
        return self.shortlists is None

    def initialise(self) -> None:
        """Set the components to the best of several restarts on a subset of the rows, and measure them on all rows."""
        model, N = self.model, self.samples.N
        self.first_generator_state = self.generator.get_state()
        order = torch.randperm(N, generator=self.generator)
        sizes = restart_work.count_subset_rows(model.K, self._uses_products)
        few, many = (order[:rows].sort().values for rows in sizes)
        del order  # 8 bytes of each row
        drawn = self.samples.gather(many)
        if distributed.rank() == 0:
            self.restarts = Restarts(
                self._rows(torch.searchsorted(many, few), drawn),
                [partial(self._rows, part, drawn) for part in torch.arange(len(many)).split(2048)],
                model.K,
                model.E,
                parallel=self.target is None,
                restarts=self.n_restarts,
                moves=self.n_moves,
                shrinkage=self.shrinkage,
                neighbours=self.shortlists.neighbours if self.shortlists else 0,
                generator=self.generator,
                work=self.work,
            )
            self.restarts.run(self.restarts_done)
            initial = self.restarts.best(self.restarts_done)
            self.starts = list(map(self.restarts.mean_l2, self.restarts_done))
            self.restarts, self.restarts_done = None, []
        else:
            initial = Initialisation.empty(self.components)
        distributed.broadcast_(initial.tensors())
        initial = self._move_origin(initial)
        self.coordinates, self.strength = initial.coordinates, float(initial.strength)
        self._accept(initial.components, self.collect_statistics(initial.components))

    def _move_origin(self, initial: Initialisation) -> Initialisation:
        """Move the origin to the mean of the data where that is far from zero (see FAR).

        Distances are differences of squares: where |x|^2 is much larger than they are, float32 would lose their digits.
        """
        mu, centre = initial.components.mu, initial.coordinates.centre
        variance = (mu - centre).square().sum(1).mean()
        if float(centre.square().sum()) <= FAR * float(variance):
            return initial
        self.origin = centre
        coordinates = Coordinates(torch.zeros_like(centre), initial.coordinates.V)
        return Initialisation(Components(mu - centre, initial.components.U), coordinates, initial.strength)

    @torch.no_grad()
    def use_best_restart(self) -> bool:
        """Set the model to the best restart of an interrupted `initialise`; return False where none is complete."""
        if self.restarts is None or not self.restarts_done:
            return False
        best = self.restarts.best(self.restarts_done).components
        self.model.mu.copy_(best.mu)
        self.model.W.copy_(gauge(best.U, self.model.beta, self.model.alpha))
        return True

    def epoch(self) -> EpochRecord:
        """Update all components and measure them in one pass; undo the update where it does not lower the objective.

        `train_mean_l2` is the model's own; with shortlists, an upper bound of it.
        """
        if self.statistics is None:  # the run was resumed
            self.statistics = self.collect_statistics(self.components)
        before, lists = self.statistics.objective, copy.copy(self.shortlists)
        components = run_single_threaded(partial(self.next_components, self.statistics), self._on_cpu)
        statistics = self.collect_statistics(components)
        gain = before - statistics.objective
        self.passes += 1
        if not math.isfinite(gain):
            mean_l2 = statistics.objective / self.model.D
            raise RunError(f"the mean L2 became {mean_l2} in pass {self.passes} of this run")
        # With shrinkage, the plain objective may rise a little on the way to the penalised optimum.
        if gain > 0 or self.strength > 0:
            self._accept(components, statistics)
        else:
            self.shortlists = lists
        # By rounding, an objective of zero may come out slightly negative.
        self.finished = (abs(gain) if self.strength > 0 else gain) <= self.tol * abs(before)
        expected = expect_passes(self.passes, abs(gain) / (abs(before) or 1.0), self.tol)
        left = 0 if self.finished else min(max(1, expected - self.passes), self.epochs - self.passes)
        self.work.expect(self.stage, left * self.samples.N * self.row_operations)
        return EpochRecord(
            train_mean_l2=self.statistics.objective / self.model.D,
            empty=int((self.statistics.count == 0).sum()),
            repaired=self.repaired,
        )

    def next_components(self, statistics: Statistics) -> Components:
        """Return the next components, given the statistics of a pass with the present ones."""
        components = update_with_shrinkage(self.components, statistics, self.coordinates, self.strength)
        return self._repair_empty(components, statistics)

    def _accept(self, components: Components, statistics: Statistics) -> None:
        self.statistics = statistics
        self.set_components(components, latent_covariance(components, statistics))

    @torch.no_grad()
    def set_components(self, components: Components, covariance: Tensor) -> None:
        """Make these the present components, and write them into the model with their bases aligned.

        `covariance` (K, E, E) is that of their latents.
        """
        self.components = components
        aligned = self._add_origin(run_single_threaded(partial(align, components, covariance), self._on_cpu))
        self.model.mu.copy_(aligned.mu)
        self.model.W.copy_(gauge(aligned.U, self.model.beta, self.model.alpha))

    def collect_statistics(self, components: Components) -> Statistics:
        """Return the statistics of one pass over all rows, summed over all processes."""
        lists, scatter = self.shortlists, self.strength > 0
        if lists is not None and lists.k is not None:
            statistics = lists.collect_statistics(components, self.coordinates, self.workspace, scatter)
            self._count(self.samples.N)
        elif self._uses_products:
            chunks, n = partial(self._chunks, components), self.part.samples.N
            moments = collect_moments(chunks, n, components, self.workspace, parallel=self.target is None)
            distributed.sum_(moments.tensors())
            to_statistics = partial(moments.to_statistics, components, self.coordinates if scatter else None)
            return run_single_threaded(to_statistics)
        else:
            use_bytes = self._uses_bytes()
            statistics, k = collect_in_shards(
                self._byte_chunks if use_bytes else partial(self._chunks, components),
                0,
                self.part.samples.N,
                components,
                self.coordinates if scatter else None,
                (ByteScorer if use_bytes else Scorer)(components, self.workspace),
                assign=lists is not None,
                parallel=self.target is None and self._on_cpu,  # a target shares buffers between shards
            )
            if lists is not None:
                lists.before, lists.k = None, k
        distributed.sum_(statistics.tensors())
        return statistics

    @property
    def _uses_products(self) -> bool:
        """Whether passes use products of the values (see `narrow`)."""
        return self.shortlists is None and are_quicker(self.components.mu, self.model.E)

    @property
    def _on_cpu(self) -> bool:
        return self.components.mu.device.type == "cpu"

    def _uses_bytes(self) -> bool:
        """Return whether passes score the rows as bytes."""
        samples, mu = self.samples, self.components.mu
        as_stored = self.target is None and self.origin is None and mu.dtype == torch.float32
        centred_bytes = samples.stored == "uint8" and samples.centring == "sample" and samples.scaling is None
        centred_bytes = centred_bytes and samples.D <= int8.LARGEST_D
        return as_stored and centred_bytes and int8.is_faster(mu.device)

    def _count(self, n: int) -> None:
        """Report that n rows of a pass are done."""
        self.work.advance(self.stage, n * self.row_operations, self.step or f"pass {self.passes + 1}")

    def _add_origin(self, components: Components) -> Components:
        """Return the components of x, given those of x - origin."""
        return components if self.origin is None else Components(components.mu + self.origin, components.U)

    def _chunks(self, components: Components, low: int, high: int) -> Iterator[Tensor]:
        target = self.target and self.target(self._add_origin(components))
        size = self._chunk_size(high - low)
        shape, by_columns = (size, self.model.D), self._uses_products
        buffer = self.workspace.buffer("chunk", components.mu, *(shape[::-1] if by_columns else shape))
        buffer = buffer.T if by_columns else buffer
        for _, x in self.part.samples.chunks(size, dtype=buffer.dtype, start=low, stop=high, out=buffer):
            x = x if target is None else target(x)
            yield x if self.origin is None else x.sub_(self.origin)
            self._count(len(x))

    def _byte_chunks(self, low: int, high: int) -> Iterator[Tensor]:
        size = self._chunk_size(high - low)
        for first in range(low, high, size):
            last = min(first + size, high)
            yield self.part.samples.stored_rows(slice(first, last))
            self._count(last - first)

    def _chunk_size(self, n: int) -> int:
        return even_chunk_size(n, chunk_rows(self.model.K, self.model.D))

    def _rows(self, index: Tensor, samples: Samples, out: Tensor | None = None) -> Tensor:
        x = samples.rows(index, dtype=self.components.mu.dtype, out=out)
        if self.target is not None:
            target = self.target(self._add_origin(self.components))
            x = torch.cat([target(part) for part in x.split(2048)])
        return x if self.origin is None else x - self.origin

    def _block(self, index: Tensor) -> Tensor:
        """Return the rows of this process at the indices (m,); the next call overwrites them."""
        return self._rows(
            index, self.part.samples, self.workspace.buffer("block", self.components.mu, len(index), self.model.D)
        )

    def _repair_empty(self, components: Components, statistics: Statistics) -> Components:
        """Return the components with each empty one replaced by half of one with a large distortion.

        The component that was halved stays as it is, so no sample has a larger residual.
        """
        empty = (statistics.count == 0).nonzero()[:, 0].tolist()
        if not empty:
            return components
        repaired = components.clone()
        index = torch.randperm(self.samples.N, generator=self.generator)[: restart_work.SUBSET_ROWS]
        distributed.broadcast_([index])  # the processes' generators may differ
        drawn = self.samples.gather(index)
        if distributed.rank() == 0:
            rows = self._rows(torch.arange(drawn.N), drawn)
            worst = statistics.distortion.argsort(descending=True).tolist()
            k = Scorer(components).nearest(rows)[1]
            for i, a in enumerate(empty):
                b = worst[i % (self.model.K - len(empty))]
                own = rows[k == b]
                pair = halve(own if len(own) else rows, components.U[b], self.generator)
                repaired.mu[a], repaired.U[a] = pair.mu[0], pair.U[0]
        distributed.broadcast_([repaired.mu, repaired.U])
        self.repaired += len(empty)
        return repaired

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs: the model has the components in another order and scale, so they are included."""
        before = self.shortlists.before if self.shortlists and distributed.world_size() == 1 else None
        return {
            "mu": self.components.mu,
            "U": self.components.U,
            "strength": self.strength,
            "origin": self.origin,
            "centre": self.coordinates.centre,
            "V": self.coordinates.V,
            "generator": self.first_generator_state if self.restarts_done else self.generator.get_state(),
            "attempts": [(one.components.mu, one.components.U, one.objective) for one in self.restarts_done],
            "starts": self.starts,
            "finished": self.finished,
            "repaired": self.repaired,
            "before": None if before is None else before.to(torch.int32),
            "turn": self.shortlists.turn if self.shortlists else 0,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`. Raises ValueError where it does not fit."""
        if isinstance(state["mu"], Tensor) and state["mu"].dtype == torch.float32:
            # Bases that are orthonormal only in float32 would bias distances in float64.
            self.components = Components(self.components.mu.float(), self.components.U.float())
            self.coordinates = Initialisation.empty(self.components).coordinates
        mu, U, coordinates = self.components.mu, self.components.U, self.coordinates
        K, d, E = self.model.K, coordinates.V.shape[1], self.model.E
        self.components = Components(read_tensor(state["mu"], mu), read_tensor(state["U"], U))
        self.origin = None if state["origin"] is None else read_tensor(state["origin"], coordinates.centre)
        self.coordinates = Coordinates(
            read_tensor(state["centre"], coordinates.centre), read_tensor(state["V"], coordinates.V)
        )
        self.strength = read_number(state["strength"])
        if self.shortlists and state["before"] is not None and distributed.world_size() == 1:
            self.shortlists.k = read_indices(state["before"], (self.samples.N,), K).to(mu.device)
            self.shortlists.turn = max(0, read_count(state["turn"]) - 1)
        self.restarts_done = [
            Restart(
                Components(read_tensor(mu_d, mu.new_empty(K, d)), read_tensor(U_d, mu.new_empty(K, d, E))),
                read_number(objective),
            )
            for mu_d, U_d, objective in state.get("attempts", [])  # older checkpoints have none
        ]
        self.starts = [read_number(value) for value in state.get("starts", [])]  # likewise
        self.generator.set_state(state["generator"])
        self.finished, self.repaired = bool(state["finished"]), read_count(state["repaired"])
