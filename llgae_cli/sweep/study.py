"""The trials of a search: proposed by Optuna, kept in its journal in the sweep's folder.

OUT/search.log is the journal of an Optuna study with one trial for each cell; Optuna's own tools read it. A trial is
written with all its values in one line before its cell starts, so whenever the sweep is killed, each number has a cell:
those without a result run when the search resumes. What a proposal depends on is the search, its number, and the
results so far; no state of a sampler has to survive.

The first trials are spread over the ranges: their corners, then the points of a Halton sequence. Where there are two
objectives, `gp` is our own, see `surrogate`; Optuna's samplers see log(1 + value), in which small and large
improvements count by their share.
"""

import itertools
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from llgae_cli.errors import InputError, RunError, explain
from llgae_cli.regular_files import check_own
from llgae_cli.sweep import surrogate
from llgae_cli.sweep.plan import Cell, Plan, Values
from llgae_cli.sweep.search import Choice, Range, Search, Space

JOURNAL = "search.log"
ATTEMPTS = 50  # proposals that were tried before, in a row, until the search moves on to any untried cell
GP_ATTEMPTS = 5  # of these by a Gaussian process; the others by TPE
MAX_LISTED = 100_000  # cells that are looked through for an untried one
CANDIDATES = 4096  # cells that are compared by their expected gain of hypervolume
MAX_START = 8  # trials that are spread over the ranges
MAX_CORNERED = 3  # keys of a search that tries all corners of its ranges
POPULATION = 20  # of NSGA-II
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)

Figures = dict[str, Any]


class Study:
    """The journal of a search in the sweep's folder, which is made where it does not exist.

    Raises InputError where Optuna is missing, the journal is damaged or belongs to another search. Only one process may
    write to it: the sweep's own lock sees to that.
    """

    def __init__(self, plan: Plan, folder: Path):
        assert plan.search is not None
        self.optuna = _import_optuna()
        self.plan, self.search, self.path = plan, plan.search, folder / JOURNAL
        check_own(self.path)
        _drop_torn_line(self.path)
        with self._reading():
            storage = self.optuna.storages.journal.JournalStorage(
                self.optuna.storages.journal.JournalFileBackend(str(self.path), _Unlocked())
            )
            self.study = self.optuna.create_study(
                storage=storage,
                study_name=plan.name,
                directions=["minimize"] * len(self.search.objectives),
                load_if_exists=True,
            )
            known = self.study.user_attrs.get("objectives", self.search.objectives)
            if known != self.search.objectives:
                raise InputError(
                    f"{self.path}: has other objectives, {', '.join(known)}; choose another folder with --out"
                )
            halving = plan.halving.model_dump() if plan.halving else None
            if self.study.user_attrs.get("halving", halving if not self.study.trials else None) != halving:
                raise InputError(f"{self.path}: has another halving; choose another folder with --out")
            self.study.set_user_attr("objectives", self.search.objectives)
            self.study.set_user_attr("halving", halving)
        self.distributions = {key: self._distribution(one) for key, one in plan.space.items()}

    def list_cells(self) -> list[Cell]:
        """Return the cells of all trials, by their numbers."""
        cells = []
        with self._reading():
            trials = self.study.trials
        for trial in trials:
            if set(trial.params) != set(self.plan.space):
                raise self._belongs_elsewhere(trial.number)
            cell = self.plan.make_cell({key: trial.params[key] for key in self.plan.space})
            if trial.user_attrs.get("cell") != cell.id:
                raise self._belongs_elsewhere(trial.number)
            cells.append(cell)
        return cells

    def add_trial(self, results: Sequence[Figures | None]) -> Cell | None:
        """Propose the next trial, write it into the journal and return its cell; None where every cell was tried.

        `results` are those of the trials so far, by their numbers: of one that halving stopped, at its last rung; None:
        failed, or still running.
        """
        cells = self.list_cells()
        values = self._propose(cells, results)
        if values is None:
            return None
        cell = self.plan.make_cell(values)
        state = self.optuna.trial.TrialState.RUNNING
        self.study.add_trial(self._make_trial(values, state, user_attrs={"cell": cell.id}))
        return cell

    def finish(self, number: int, result: Figures | None) -> None:
        """Write into the journal that a trial has ended: with a result, or None where it failed."""
        if result is None:
            self.study.tell(number, state=self.optuna.trial.TrialState.FAIL, skip_if_finished=True)
        else:
            self.study.tell(number, self._measure(result), skip_if_finished=True)

    def stop(self, number: int) -> None:
        """Write into the journal that halving has stopped a trial."""
        self.study.tell(number, state=self.optuna.trial.TrialState.PRUNED, skip_if_finished=True)

    @property
    def seconds(self) -> float:
        """How long the search has run, all its processes together."""
        return float(self.study.user_attrs.get("seconds", 0.0))

    @seconds.setter
    def seconds(self, value: float) -> None:
        self.study.set_user_attr("seconds", value)

    def measure_importance(self, results: Sequence[Figures | None]) -> dict[str, dict[str, float]]:
        """Return for each objective the importance of each key; they add to 1. Empty for fewer than four results.

        Source: Watanabe, Bansal and Hutter, "PED-ANOVA", IJCAI 2023.
        """
        study = self._copy(self.list_cells(), results, log=False, running=False)
        if len(study.trials) < 4:
            return {}
        found: dict[str, dict[str, float]] = {}
        for i, name in enumerate(self.search.objectives):
            with _quiet():
                shares = self.optuna.importance.get_param_importances(study, target=lambda trial, i=i: trial.values[i])
            found[name] = {key: float(shares.get(key, 0.0)) for key in self.plan.space}
        return found

    # ---- Proposing

    def _propose(self, cells: list[Cell], results: Sequence[Figures | None]) -> Values | None:
        """Return values whose cell was not tried; None where there are none."""
        tried, number = {cell.id for cell in cells}, len(cells)
        start = spread(self.plan.space, count_start(self.search, len(self.plan.space)), self.search.seed)
        for values in start[number:]:
            if self.plan.make_cell(values).id not in tried:
                return values
        if self.search.proposer == "gp" and len(self.search.objectives) > 1:
            for values in self._rank_candidates(cells, results, number):
                if self.plan.make_cell(values).id not in tried:
                    return values
        for attempt in range(ATTEMPTS):
            # A Gaussian process takes seconds, and proposes whole numbers near the same best point each time.
            sampler = "tpe" if attempt >= GP_ATTEMPTS and self.search.proposer == "gp" else self.search.proposer
            study = self._copy(cells, results, sampler, seed=1000 * (self.search.seed + number) + attempt)
            with _quiet():
                values = {key: study.ask(self.distributions).params[key] for key in self.plan.space}
            if self.plan.make_cell(values).id not in tried:
                return values
        if math.prod(one.size for one in self.plan.space.values()) > MAX_LISTED:
            return None
        rows = itertools.product(*(one.list_values() for one in self.plan.space.values()))
        every = (dict(zip(self.plan.space, row, strict=True)) for row in rows)
        return next((values for values in every if self.plan.make_cell(values).id not in tried), None)

    def _rank_candidates(self, cells: list[Cell], results: Sequence[Figures | None], number: int) -> list[Values]:
        """Return values, those with the largest expected gain of hypervolume first.

        Before two trials have a result these are the next ones that are spread over the ranges.
        """
        space, failed = self.plan.space, self.optuna.trial.TrialState.FAIL
        done, pending, measured = [], [], []
        for trial, result in zip(self.study.trials, results, strict=True):
            point = self._place(trial.params)
            if result is not None:
                done.append(point)
                measured.append(self._measure(result))
            elif trial.state != failed:
                pending.append(point)
        if len(done) < 2:
            return spread(space, number + ATTEMPTS, self.search.seed)[number:]
        if math.prod(one.size for one in space.values()) <= CANDIDATES:
            rows = itertools.product(*(one.list_values() for one in space.values()))
            candidates = [dict(zip(space, row, strict=True)) for row in rows]
        else:
            candidates = spread(space, CANDIDATES, self.search.seed + number)
        at = np.array([self._place(values) for values in candidates])
        seed, ends = self.search.seed + number, np.array(pending).reshape(-1, at.shape[1])
        order = surrogate.propose(np.array(done), np.array(measured), ends, at, seed)
        return [candidates[i] for i in order]

    def _place(self, values: Values) -> list[float]:
        """Return the point of the unit cube at which values lie."""
        return [share for key, one in self.plan.space.items() for share in one.coordinates(values[key])]

    def _copy(
        self,
        cells: Sequence[Cell],
        results: Sequence[Figures | None],
        sampler: str = "tpe",
        *,
        seed: int = 0,
        log: bool = True,
        running: bool = True,
    ) -> Any:
        """Return a study in memory with the trials so far: those without a result as running ones, or left out."""
        state = self.optuna.trial.TrialState
        log = log and len(self.search.objectives) > 1
        study = self.optuna.create_study(
            directions=["minimize"] * len(self.search.objectives), sampler=self._make_sampler(sampler, seed)
        )
        for trial, result in zip(self.study.trials, results, strict=True):
            if result is None and (not running or trial.state == state.FAIL):
                continue
            values = None if result is None else self._measure(result)
            if values is not None and log:
                values = [math.log1p(value) for value in values]
            kind = state.RUNNING if values is None else state.COMPLETE
            with suppress(ValueError):  # a value that the file's ranges no longer have
                study.add_trial(self._make_trial(trial.params, kind, values=values, system_attrs=trial.system_attrs))
        return study

    def _make_sampler(self, name: str, seed: int) -> Any:
        samplers = self.optuna.samplers
        with _quiet():
            if name == "gp":
                return samplers.GPSampler(seed=seed, n_startup_trials=1)
            if name == "nsga-ii":
                return samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
            return samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True)

    def _make_trial(self, params: Values, state: Any, **more: Any) -> Any:
        distributions = {key: self.distributions[key] for key in params}
        return self.optuna.trial.create_trial(state=state, params=params, distributions=distributions, **more)

    def _distribution(self, one: Range | Choice) -> Any:
        if isinstance(one, Choice):
            return self.optuna.distributions.CategoricalDistribution(one.values)
        if one.whole:
            return self.optuna.distributions.IntDistribution(one.low, one.high, log=one.log, step=one.step)
        return self.optuna.distributions.FloatDistribution(one.low, one.high, log=one.log, step=one.step)

    def _measure(self, result: Figures) -> list[float]:
        return [float(result[figure]) for figure in self.search.figures]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what Optuna raises for a damaged journal into one line."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
            raise InputError(f"{self.path}: not the journal of a search ({explain(error)}); remove it") from None
        except OSError as error:
            raise RunError(f"{self.path}: {explain(error)}") from None

    def _belongs_elsewhere(self, number: int) -> InputError:
        return InputError(
            f"{self.path}: trial {number} was made from another base or other keys; choose another folder with --out"
        )


def count_start(search: Search, keys: int) -> int:
    """Return how many trials are spread over the ranges before the sampler proposes: 2^keys, at most 8 or a third.

    With two objectives two: all ends low and all high are the ends of the front, and other corners are far from it.
    """
    most = 2 if len(search.objectives) > 1 else min(2**keys, MAX_START)
    return most if search.trials is None else max(2, min(most, search.trials // 3))


def spread(space: Space, n: int, seed: int) -> list[Values]:
    """Return n points of the space: its corners, opposite ones first, then a Halton sequence shifted by the seed.

    Of more than three keys only two corners are among them: all ends low, and all high.
    """
    keys = len(space)
    corners = [[0.0] * keys, [1.0] * keys]
    if 1 < keys <= MAX_CORNERED:
        corners += [list(row) for row in itertools.product((1.0, 0.0), repeat=keys) if 0 < sum(row) < keys]
    rng = random.Random(seed)
    shifts = [rng.random() for _ in space]
    shares = corners + [
        [(_invert(i, PRIMES[j % len(PRIMES)]) + shift) % 1.0 for j, shift in enumerate(shifts)] for i in range(1, n)
    ]
    return [{key: one.place(share) for (key, one), share in zip(space.items(), row, strict=True)} for row in shares[:n]]


def _invert(i: int, base: int) -> float:
    """Return the radical inverse of i: its digits behind the point, in reverse order."""
    value, scale = 0.0, 1.0
    while i:
        i, digit = divmod(i, base)
        scale /= base
        value += digit * scale
    return value


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line without an end, which a full disk can leave: what is appended would otherwise join it."""
    if path.exists():
        with open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


class _Unlocked:
    """No lock: the sweep's own keeps others away, and one of Optuna's, left by a killed sweep, would be waited for."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's warnings that an option is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError("search: Optuna is not installed; pip install 'llgae[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
