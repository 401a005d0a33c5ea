"""Passes by shortlist lose little or nothing against full passes, and resumed runs are the same bit for bit."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm
from llgae_cli.training.components import Components, Coordinates, orthonormalise
from llgae_cli.training.scoring import Scorer, Workspace
from llgae_cli.training.shortlists import Shortlists
from llgae_cli.training.statistics import Statistics, collect_statistics, update_components

pytestmark = pytest.mark.numeric
K, D, E, N = 24, 40, 2, 3000


def cells() -> Tensor:
    """Samples around 40 points on a curve, so that some components are near and most are far."""
    generator = torch.Generator().manual_seed(4)
    t = torch.randint(40, (N,), generator=generator) / 40
    frequencies = torch.arange(1, D // 2 + 1)
    curve = torch.cat([torch.sin(t[:, None] * frequencies), torch.cos(t[:, None] * frequencies)], 1)
    return 30 * curve + torch.randn(N, D, generator=generator)


X = cells()


def random_components(seed: int = 0) -> Components:
    generator = torch.Generator().manual_seed(seed)
    U = orthonormalise(torch.randn(K, D, E, generator=generator))
    return Components(X[torch.randperm(N, generator=generator)[:K]].clone(), U)


def lists_of(x: Tensor, neighbours: int) -> Shortlists:
    return Shortlists(lambda index: x[index], (range(len(x)),), len(x), neighbours)


def full(components: Components, lists: Shortlists | None = None) -> Statistics:
    k = torch.empty(N, dtype=torch.int64)
    statistics = collect_statistics(X.split(500), components, assignments=k)
    if lists is not None:
        lists.k = k
    return statistics


def close(one: Statistics, other: Statistics) -> None:
    for a, b in zip(one.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()) if a.numel() else 0)


def test_shortlists_of_all_components_equal_a_full_pass() -> None:
    lists, before, after = lists_of(X, K - 1), random_components(), random_components(1)
    full(before, lists)
    assert lists.k is not None
    close(
        lists.collect_statistics(after, Coordinates.identity(X), Workspace(), scatter=True),
        collect_statistics(X.split(500), after, Coordinates.identity(X)),
    )
    assert torch.equal(lists.k, Scorer(after).nearest(X)[1])


def test_passes_by_shortlist_never_raise_the_objective() -> None:
    lists, components = lists_of(X, 1), random_components()
    objective = full(components, lists).objective
    for _ in range(6):
        components = update_components(
            components, lists.collect_statistics(components, Coordinates.identity(X), Workspace())
        )
        now = lists.collect_statistics(components, Coordinates.identity(X), Workspace()).objective
        assert now <= objective * (1 + 1e-6)
        objective = now


def test_after_some_passes_shortlists_lose_almost_nothing() -> None:
    lists, components = lists_of(X, 4), random_components()
    components = update_components(components, full(components, lists))
    for _ in range(12):
        listed = lists.collect_statistics(components, Coordinates.identity(X), Workspace())
        last, components = components, update_components(components, listed)
    assert listed.objective == pytest.approx(full(last).objective, rel=1e-3)
    assert listed.objective < 0.9 * full(random_components()).objective


def trainer(**options: Any) -> ClosedForm:
    samples = Samples(X, centring="none")
    return ClosedForm(
        LLGAE(K, D, E), samples, seed=3, dtype=torch.float32, **{"candidates": 3, "moves": 0, "tol": 0.0, **options}
    )


@pytest.mark.parametrize("shrinkage", [0.0, 10.0])
@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_a_resumed_run_equals_one_that_was_not_interrupted(shrinkage: float, epochs: int) -> None:
    whole, first, second = (trainer(shrinkage=shrinkage) for _ in range(3))
    for one in (whole, first):
        one.initialise()
    for _ in range(epochs):
        assert whole.epoch() == first.epoch()
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(3):
        assert whole.epoch() == second.epoch()
        assert torch.equal(whole.components.U, second.components.U)


def test_a_pass_that_is_undone_does_not_change_the_shortlists() -> None:
    """A resumed run that ended with such a pass repeats the pass before it, whose result it holds."""
    one, other = trainer(), trainer()
    one.initialise()
    one.components = random_components()  # so bad that the next pass is sure to gain
    one.statistics = one.collect_statistics(one.components)
    one.epoch()
    before = copy.deepcopy(one.state_dict())
    assert not one.finished
    one.next_components = lambda statistics: random_components(1)  # type: ignore[method-assign]
    one.epoch()
    after = one.state_dict()
    assert one.finished and torch.equal(before["U"], after["U"])  # it was undone
    assert after["turn"] == before["turn"] > 0 and torch.equal(before["before"], after["before"])
    other.model.load_state_dict(one.model.state_dict())
    other.load_state_dict(copy.deepcopy(after))
    assert one.statistics is not None
    assert other.collect_statistics(other.components).objective == one.statistics.objective


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (torch.zeros(N), "float32 of shape"),
        (torch.zeros(N - 1, dtype=torch.int32), "int32 of shape"),
        (torch.full((N,), K, dtype=torch.int32), f"not in 0 ... {K - 1}"),
        (torch.full((N,), -1, dtype=torch.int64), f"not in 0 ... {K - 1}"),
        ("k", "a str"),
    ],
)
def test_invalid_assignments_in_a_checkpoint_are_refused(before: object, message: str) -> None:
    one = trainer()
    one.initialise()
    one.epoch()
    with pytest.raises(ValueError, match=message):
        trainer().load_state_dict({**one.state_dict(), "before": before})


@pytest.mark.parametrize(("candidates", "neighbours"), [("off", None), (K - 1, None), (5, 5), ("auto", None)])
def test_candidates_decides_whether_shortlists_are_used(candidates: object, neighbours: int | None) -> None:
    lists = trainer(candidates=candidates).shortlists
    assert (lists and lists.neighbours) == neighbours
