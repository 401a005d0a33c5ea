"""The closed-form trainer for a bit rate: minimises J = |x - x_hat|^2 + lambda R in place of the residual alone."""

import logging
import math
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from llgae_cli import distributed
from llgae_cli.errors import RunError
from llgae_cli.formatting import five_digits
from llgae_cli.inference import gauge
from llgae_cli.models import LLGAE
from llgae_cli.progress import Work, expect_passes
from llgae_cli.tasks import Samples, take_part
from llgae_cli.threads import run_parallel, run_single_threaded
from llgae_cli.training.components import Components, Coordinates, align, choose_seeds, orthonormalise
from llgae_cli.training.expected_rate import expect_bits, solve_step, step_to_theta
from llgae_cli.training.initialisation import SEEDED_K, principal_coordinates
from llgae_cli.training.leave_one_out import compute_correction
from llgae_cli.training.mixture import (
    FIRST_ITERATIONS,
    ITERATIONS,
    Mixture,
    MixtureScorer,
    MixtureStatistics,
    choose_strength,
    split_components,
    update_mixture,
)
from llgae_cli.training.restart_work import PRINCIPAL_ROWS
from llgae_cli.training.scoring import Workspace
from llgae_cli.training.state import read_count, read_indices, read_number, read_tensor
from llgae_cli.training.statistics import even_chunk_size
from llgae_cli.training.trainer import EpochRecord, Quantisation, Trainer

logger = logging.getLogger(__name__)

COORDINATES = 512  # principal coordinates, or four times the latents if those are more
KMEANS_PASSES = 5
SPLIT_PASSES = 8  # a component that loses its rows in a later pass stays as it is: it costs no bits
HELD_OUT = 10  # every tenth row is held out to choose the strength of shrinkage
BLOCK_VALUES = 1 << 23  # values of a block of projected rows, at most: 32 MB
FIRST_GAIN = 2e-2  # of the first pass, about, by which the number of passes is first estimated
FIRST_PASSES = 2  # in `initialise`, after k-means
CODED = 0.7  # share of the latents that have bits, about
CHUNKS = 16  # of a block, scored in parallel


class RateClosedForm(Trainer):
    """Alternates assignment by the cost J and the update of all components (see `mixture`).

    Training starts with k-means, which is the same without latents and with free bits. Everything happens in the d
    leading principal coordinates of the data, where the scatters of all components, K d^2 numbers, fit in memory. Rows
    are projected block by block. The run ends once a pass changes J by less than the share `tol`.

    At a fixed step, with neither shrinkage nor leave-one-out, J never rises: an update that does not lower it is undone
    and ends the run. Leave-one-out takes 12 bytes of memory a row, and 4 in a checkpoint.
    """

    def __init__(
        self,
        model: LLGAE,
        samples: Samples,
        *,
        seed: int,
        bits: float | None = None,
        step: float | None = None,
        tol: float = 1e-4,
        shrinkage: float | Literal["auto"] = 0.0,
        leave_one_out: bool = False,
    ):
        """Prepare a run. One of `bits` and `step` is given, else ValueError.

        bits       target rate in bits a sample; before each pass, `step` becomes that at which the mixture meets it
        step       Delta, the quantiser step in the units of the samples
        shrinkage  strength in samples (see `mixture.fit_axes`); auto: chosen on held-out rows
        leave_one_out  assign rows by their cost in a component that was fitted without them (see `leave_one_out`)
        """
        if (bits is None) == (step is None):
            raise ValueError("one of bits and step is given")
        self.model, self.samples, self.bits, self.tol = model, samples, bits, tol
        self.shrinkage, self.strength = shrinkage, 0.0
        self.step = step or 0.0  # of the present components
        d, new = min(model.D, max(COORDINATES, 4 * model.E)), model.mu.detach().new_zeros
        self.coordinates = Coordinates(new(model.D), new(model.D, d))
        self.mixture = Mixture(new(model.K, d), new(model.K, d, model.E), new(model.K, model.E), new(model.K))
        self.statistics: MixtureStatistics | None = None  # of the present components; an update consumes them
        self.objective, self.record = math.inf, EpochRecord()  # of the present components
        self.leave_one_out = leave_one_out
        self.own: Tensor | None = None  # (n,) components of this process's rows in the last pass with latents
        self.before: Tensor | None = None  # in the pass before it
        self.generator = torch.Generator().manual_seed(seed)
        self.workspace = Workspace()
        self.finished = False
        self.passes = self.repaired = 0
        self.epochs = self.epochs_done = 0  # of this process: expected at most, and done

    def plan(self, work: Work, epochs: int, begun: bool) -> None:
        """Report work from now on: the passes of k-means, and each pass of the run."""
        self.work, self.epochs = work, epochs
        (K, d, _), N = self.mixture.U.shape, self.samples.N
        if not begun:
            work.expect("k-means", KMEANS_PASSES * N * self._count_row(2.0 * d * K, scatter=False))
        passes = min(epochs, expect_passes(1, FIRST_GAIN, self.tol)) + (0 if begun else FIRST_PASSES)
        work.expect("passes", passes * (N * self.row_operations + self._count_axes()))

    @property
    def row_operations(self) -> float:
        """Operations of a row in a pass, if most latents have bits."""
        K, d, E = self.mixture.U.shape
        return self._count_row(2.0 * d * K * (E + 1) * CODED, scatter=True)

    def _count_row(self, scoring: float, scatter: bool) -> float:
        _, d, E = self.mixture.U.shape
        return 2.0 * self.model.D * d + scoring + 2.0 * d * (E + (d if scatter else 0))

    def _count_axes(self) -> float:
        """Operations of the update of all components, which needs no rows."""
        K, d, E = self.mixture.U.shape
        return 2.0 * K * d * d * E * (ITERATIONS + 1)

    @property
    def theta(self) -> float:
        """The least variance of a latent that gets bits at the present step."""
        return step_to_theta(self.step)

    @property
    def quantisation(self) -> Quantisation:
        """The present step, and variances and shares of the present components."""
        return Quantisation(self.step, self.mixture.v, self.mixture.p)

    def initialise(self) -> None:
        """Set the components to the cells of k-means with their principal axes, and measure them.

        K-means is a mixture whose latents have no variance yet, with free bits.
        """
        self.mixture = self._choose_points()
        for _ in range(KMEANS_PASSES - 1):
            self._update(self._collect(theta=0.0, scatter=False), theta=0.0)
        self.work.expect("k-means", 0.0)
        statistics = self._collect(theta=0.0, scatter=True)
        if self.model.K == 1 or self.model.E == 0:
            self.strength = 0.0  # there is nothing to shrink, or to shrink toward
        elif self.shrinkage == "auto":
            held_out = self._collect(theta=0.0, scatter=True, samples=self.samples.every(HELD_OUT))
            self.strength = choose_strength(self.mixture, statistics, held_out, self._find_theta)
            logger.info("shrinkage: %g samples, chosen on held-out rows", self.strength)
        else:
            self.strength = self.shrinkage
        self._update(statistics, theta=0.0, iterations=FIRST_ITERATIONS)
        self._measure()

    def epoch(self) -> EpochRecord:
        """Update all components and measure them in one pass.

        `train_mean_l2` is that of the components chosen by J, with all latents, unquantised.
        """
        if self.statistics is None:  # the run was resumed
            self._measure()
        assert self.statistics is not None
        before = self.mixture, self.objective, self.record
        statistics, self.statistics = self.statistics, None
        self.passes += 1
        self.epochs_done += 1
        self._update(statistics, self.theta, split=self.passes <= SPLIT_PASSES)
        del statistics  # the scatters of one pass at a time are in memory
        self._measure()
        gain = before[1] - self.objective
        monotone = self.bits is None and self.strength == 0 and not self.leave_one_out
        if monotone and gain <= 0:
            self.mixture, self.objective, self.record = before
            self.statistics = None
            self._write_model()
        self.finished = (gain if monotone else abs(gain)) <= self.tol * abs(before[1])
        expected = expect_passes(self.passes, abs(gain) / (abs(before[1]) or 1.0), self.tol)
        left = 0 if self.finished else min(max(1, expected - self.passes), self.epochs - self.epochs_done)
        self.work.expect("passes", left * (self.samples.N * self.row_operations + self._count_axes()))
        return self.record

    def _choose_points(self) -> Mixture:
        """Set the coordinates, and return K rows as components, with random axes of variance 0."""
        model, mu, centre, V = self.model, self.mixture.mu, self.coordinates.centre, self.coordinates.V
        K, d, E = self.mixture.U.shape
        U = orthonormalise(torch.randn(K, d, E, generator=self.generator).to(mu))
        order = torch.randperm(self.samples.N, generator=self.generator)[: max(PRINCIPAL_ROWS, K)]
        drawn = self.samples.gather(order)
        if distributed.rank() == 0:
            x = drawn.rows(order[:PRINCIPAL_ROWS].argsort(), dtype=mu.dtype)
            principal = run_single_threaded(lambda: principal_coordinates(x, d, self.generator), self._on_cpu)
            centre.copy_(principal.centre)
            V.copy_(torch.eye(d).to(V) if d == model.D else principal.V)
            if K > SEEDED_K:
                x = drawn.rows(slice(0, K), dtype=mu.dtype)
            y = run_single_threaded(lambda: self._project(x), self._on_cpu)
            mu.copy_(y if K > SEEDED_K else choose_seeds(y, K, self.generator))
        distributed.broadcast_([centre, V, mu])
        return Mixture(mu, U, self.mixture.v, mu.new_full((K,), 1 / K))

    def _project(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the coordinates y (n, d) of rows x (n, D), which are centred in place."""
        x = x.sub_(self.coordinates.centre)
        if x.shape[1] == self.coordinates.V.shape[1]:  # V is the identity
            return x if out is None else out.copy_(x)
        return torch.mm(x, self.coordinates.V, out=out)

    def _find_theta(self, mixture: Mixture) -> float:
        return step_to_theta(self._solve_step(mixture))

    def _solve_step(self, mixture: Mixture) -> float:
        return self.step if self.bits is None else solve_step(mixture, self.bits)

    def _update(
        self, statistics: MixtureStatistics, theta: float, *, iterations: int = ITERATIONS, split: bool = True
    ) -> None:
        """Replace the mixture by the next one; with `split`, components of fewer than 2 rows by halves of others."""
        costs = statistics.costs(self.mixture, theta)
        updated = update_mixture(self.mixture, statistics, self.strength, iterations)
        if statistics.scatter.shape[1]:
            self.work.advance("passes", self._count_axes(), f"pass {self.passes}")
        if split:
            updated, replaced = split_components(updated, costs, statistics.count, self.generator)
            self.repaired += replaced
            if replaced:  # the processes' generators may differ
                distributed.broadcast_([updated.mu, updated.U, updated.v, updated.p])
        self.mixture = updated

    def _measure(self) -> None:
        """Solve for the step, measure the mixture in one pass, and write it into the model."""
        self.step = self._solve_step(self.mixture)
        self.statistics = statistics = self._collect(self.theta, scatter=True)
        N, D = self.samples.N, self.model.D
        outside = float(statistics.outside)
        self.objective = (float(statistics.costs(self.mixture, self.theta).sum()) + outside) / N
        if not math.isfinite(self.objective):
            raise RunError(f"the objective J became {self.objective} in pass {self.passes} of this run")
        self.record = EpochRecord(
            train_mean_l2=(float(statistics.distortions().sum()) + outside) / (N * D),
            empty=int((statistics.count == 0).sum()),
            repaired=self.repaired,
        )
        rate = expect_bits(self.mixture, self.step)
        logger.info(
            "pass %d: J %s a value, %.2f bits, step %s",
            self.passes, five_digits(self.objective / D), rate, five_digits(self.step),
        )  # fmt: skip
        self._write_model()

    def _collect(self, theta: float, scatter: bool, samples: Samples | None = None) -> MixtureStatistics:
        """Return the statistics of one pass over all rows, or over `samples`, summed over all processes.

        Rows are assigned in parallel, then components updated in parallel: neither depends on the number of threads.
        """
        leave_out = self.leave_one_out and theta > 0 and samples is None
        own = self.own if leave_out else None
        samples = take_part(samples or self.samples).samples
        scatter = scatter and self.model.E > 0
        statistics = MixtureStatistics.zeros(self.mixture, scatter)
        score = MixtureScorer(self.mixture, theta, self.workspace)
        stage, step = ("k-means", "k-means") if not scatter and theta == 0 else ("passes", f"pass {self.passes}")
        assigning = 2.0 * self.model.D * self.coordinates.V.shape[1] + score.operations
        d = self.mixture.mu.shape[1]
        size = even_chunk_size(samples.N, max(CHUNKS, BLOCK_VALUES // d))
        block = self.mixture.mu.new_empty(min(size, samples.N), d)
        k = torch.empty(len(block), dtype=torch.int64, device=block.device)
        chosen = torch.empty(samples.N if leave_out else 0, dtype=torch.int32, device=block.device)
        count = self.mixture.p * self.samples.N

        def assign(rows: tuple[int, int, int]) -> Tensor:
            first, start, stop = rows  # rows start ... stop - 1 of the block that begins at `first`
            buffer = self.workspace.buffer("rows", block, stop - start, samples.D)
            x = samples.rows(slice(first + start, first + stop), dtype=block.dtype, out=buffer)
            y = self._project(x, out=block[start:stop])
            if own is None:
                k[start:stop] = score.assign(y)
            else:
                last = own[first + start : first + stop].to(torch.int64)
                correction = compute_correction(y, last, self.mixture, theta, count, self.strength)
                k[start:stop] = score.assign(y, last, correction)
            wide = statistics.outside.dtype
            return (x.square().sum(dtype=wide) - y.square().sum(dtype=wide)).clamp(min=0)

        for first in range(0, samples.N, size):
            n = min(size, samples.N - first)
            cuts = sorted({n * i // CHUNKS for i in range(CHUNKS + 1)})
            outside: list[Tensor] = []

            share = n * assigning / (len(cuts) - 1)

            def add(squared: Tensor, outside: list[Tensor] = outside, share: float = share) -> None:
                outside.append(squared)
                self.work.advance(stage, share, step)

            run_parallel(assign, [(first, *cut) for cut in pairwise(cuts)], add, self._on_cpu)
            statistics.outside += sum(outside)
            if leave_out:
                chosen[first : first + n] = k[:n]
            statistics.add_rows(self.mixture, block[:n], k[:n])
            self.work.advance(stage, n * (self._count_row(score.operations, scatter) - assigning), step)
        if leave_out:
            self.before, self.own = self.own, chosen
        distributed.sum_(statistics.tensors())
        return statistics

    @property
    def _on_cpu(self) -> bool:
        return self.mixture.mu.device.type == "cpu"

    @torch.no_grad()
    def _write_model(self) -> None:
        """Write the components into the model, in all D dimensions, with principal axes in fixed order and sign."""
        mixture, centre, V = self.mixture, self.coordinates.centre, self.coordinates.V

        def map_back() -> Components:
            components = Components(centre + mixture.mu @ V.T, V @ mixture.U)
            return align(components, mixture.v.diag_embed())

        aligned = run_single_threaded(map_back, self._on_cpu)
        self.model.mu.copy_(aligned.mu)
        self.model.W.copy_(gauge(aligned.U, self.model.beta, self.model.alpha))

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs, and `step`, which a codec needs.

        Of several processes each knows the components of its own rows only, and they are not stored: the first pass of
        a resumed run then leaves out no row.
        """
        return {
            "mu": self.mixture.mu,
            "U": self.mixture.U,
            "v": self.mixture.v,
            "p": self.mixture.p,
            "centre": self.coordinates.centre,
            "V": self.coordinates.V,
            "step": self.step,
            "strength": self.strength,
            "generator": self.generator.get_state(),
            "passes": self.passes,
            "repaired": self.repaired,
            "finished": self.finished,
            "before": self.before if distributed.world_size() == 1 else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`. Raises ValueError where it does not fit."""
        own, coordinates = self.mixture, self.coordinates
        self.mixture = Mixture(*(read_tensor(state[name], getattr(own, name)) for name in ("mu", "U", "v", "p")))
        self.coordinates = Coordinates(
            read_tensor(state["centre"], coordinates.centre), read_tensor(state["V"], coordinates.V)
        )
        self.step, self.strength = read_number(state["step"]), read_number(state["strength"])
        self.generator.set_state(state["generator"])
        self.passes, self.repaired = read_count(state["passes"]), read_count(state["repaired"])
        self.finished = bool(state["finished"])
        before = state.get("before")  # older checkpoints have none
        if self.leave_one_out and before is not None and distributed.world_size() == 1:
            self.own = read_indices(before, (self.samples.N,), self.model.K).to(own.mu.device, torch.int32)
