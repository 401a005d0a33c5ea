"""BFGS on the latents: exact for a quadratic, never worse, each row on its own."""

import pytest
import torch
from torch import Tensor

from llgae_cli.models import DECODERS, ENCODERS, GAE, LLGAE, Decoder, second_order
from llgae_cli.models.second_order import RACE, Energy, Value, invert_curvature, minimise

pytestmark = pytest.mark.numeric
D, E, N = 16, 4, 40
SHAPE = (4, 4)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs cuda"))]


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_model(K: int = 3, latents: int = E, decoder: str = "conv", **options: object) -> GAE:
    sizes = (K, latents, SHAPE, 16, 4)
    parts = Decoder(LLGAE(K, D, latents), None if decoder == "linear" else DECODERS[decoder](*sizes))
    affine = LLGAE(K, D, latents, inference="least-squares")
    guide = ENCODERS["mlp"](*sizes)
    model = GAE(parts, K, D, latents, ascent="later", method="bfgs", affine=affine, guide=guide, **options).double()  # type: ignore[arg-type]
    model.initialise(2 * draw(N, D), torch.Generator().manual_seed(4))
    for seed, parameter in enumerate(affine.parameters()):
        parameter.data = draw(*parameter.shape, seed=seed) / 2
    return model


def negative_likelihood(model: GAE, x: Tensor) -> Tensor:
    code = model.encode(x)
    return (x - model.decode(code)).square().sum(1) / 2 + model.alpha / 2 * code.b.square().sum(1)


def test_one_step_with_the_exact_curvature_is_least_squares() -> None:
    A, x = draw(D, E), draw(N, D, seed=2)

    def energy(rows: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        r = b @ A.T - x[rows]
        return r.square().sum(1) / 2, r @ A

    exact = torch.linalg.lstsq(A, x.T).solution.T
    P = torch.linalg.inv(A.T @ A).expand(N, E, E)
    assert torch.allclose(minimise(energy, draw(N, E, seed=3), P, 1, 0.0)[0], exact, atol=1e-10)
    unscaled = torch.eye(E).double().expand(N, E, E) / 50  # BFGS learns the curvature
    assert torch.allclose(minimise(energy, draw(N, E, seed=3), unscaled, 60, 0.0)[0], exact, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_last_step_needs_no_slope(steps: int) -> None:
    A, x, b = draw(D, E), draw(N, D, seed=2), draw(N, E, seed=3)
    evaluated: list[int] = []

    def value(rows: Tensor, b: Tensor) -> Tensor:
        return (torch.sin(b @ A.T) - x[rows]).square().sum(1) / 2

    def energy(rows: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        evaluated.append(len(rows))
        return value(rows, b), ((torch.sin(b @ A.T) - x[rows]) * torch.cos(b @ A.T)) @ A

    P = torch.eye(E).double().expand(N, E, E) / 20
    with_slopes = minimise(energy, b, P, steps, 0.0)[0]
    assert len(evaluated) == steps + 1
    assert torch.equal(minimise(energy, b, P, steps, 0.0, energy_only=value)[0], with_slopes)
    assert len(evaluated) == 2 * steps + 1  # one fewer
    before, after = value(torch.arange(N), b), value(torch.arange(N), with_slopes)
    assert bool((after <= before).all()) and float(after.sum()) < float(before.sum())


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_an_affine_decoder_reaches_the_exact_code(alpha: float) -> None:
    model, x = a_model(decoder="linear", n_step=20, tolerance=1e-4, alpha=alpha), 2 * draw(N, D, seed=2)
    code, pieces = model.encode(x), model.decoder.pieces
    assert pieces is not None
    for row in range(N):
        W, mu = pieces.W[code.k[row]], pieces.mu[code.k[row]]
        b = torch.linalg.solve(W.T @ W + alpha * torch.eye(E), W.T @ (x[row] - mu))
        least = (x[row] - mu - W @ b).square().sum() / 2 + alpha / 2 * b.square().sum()
        found = (x[row] - mu - W @ code.b[row]).square().sum() / 2 + alpha / 2 * code.b[row].square().sum()
        assert float(found.detach()) == pytest.approx(float(least.detach()), rel=1e-3)


@pytest.mark.parametrize("decoder", ["conv", "mlp"])
def test_the_likelihood_of_no_row_falls(decoder: str) -> None:
    model, x = a_model(decoder=decoder, alpha=1.0), 2 * draw(N, D, seed=2)
    before = None
    for steps in (0, 1, 2, 5, 20):
        model.n_step = steps
        now = negative_likelihood(model, x)
        assert before is None or bool((now <= before + 1e-9).all())
        before = now


def test_in_lower_precision_it_ends_close_to_the_same_likelihood() -> None:
    means = {}
    for steps, lower_precision in ((0, False), (8, False), (8, True)):
        model = a_model(n_step=steps, lower_precision=lower_precision).float()
        means[steps, lower_precision] = float(
            negative_likelihood(model, (2 * draw(N, D, seed=2)).float()).mean().detach()
        )
    whole, rounded = means[8, False], means[8, True]
    assert rounded < 1.05 * whole < 0.9 * means[0, False]


def test_a_code_does_not_depend_on_the_other_rows() -> None:
    model, x = a_model(n_step=6), 2 * draw(N, D, seed=2)
    whole = model.encode(x)
    for rows in (slice(0, 1), slice(7, 20)):
        part = model.encode(x[rows])
        assert torch.equal(part.k, whole.k[rows]) and torch.allclose(part.b, whole.b[rows], atol=1e-8)


def quartic(evaluated: list[int]) -> tuple[Energy, Value]:
    """Return the energy (b - 1)^4 + row of each row, and its value alone; they count how often a row is evaluated."""

    def value(rows: Tensor, b: Tensor) -> Tensor:
        for row in rows.tolist():
            evaluated[row] += 1
        return (b - 1).square().square().sum(1) + rows

    return lambda rows, b: (value(rows, b), 4 * (b - 1).pow(3)), value


def test_a_row_is_done_when_its_next_step_promises_little() -> None:
    start, P = torch.tensor([[1.0], [1.1], [3.0]]).double(), torch.ones(3, 1, 1).double() / 48
    for tolerance in (1e-1, 1e-3):
        evaluated = [0, 0, 0]
        energy, _ = quartic(evaluated)
        b, P_end, energies = minimise(energy, start, P, 100, tolerance)
        value, slope = energy(torch.arange(3), b)
        promised = (slope * (P_end @ slope[:, :, None])[:, :, 0]).sum(1) / 2
        assert torch.equal(energies, value) and bool((promised <= tolerance * value).all())
        assert evaluated[:2] == [2, 2]  # at the start, and in the check here
        assert 2 < evaluated[2] < 100


def test_the_last_step_of_a_row_evaluates_the_energy_alone() -> None:
    start, P, tolerance = torch.tensor([[1.0], [2.0], [4.0]]).double(), torch.ones(3, 1, 1).double() / 96, 1e-3
    evaluated, slopes = [0, 0, 0], [0, 0, 0]
    energy, value = quartic(evaluated)

    def energy_and_slope(rows: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for row in rows.tolist():
            slopes[row] += 1
        return energy(rows, b)

    b, _, energies = minimise(energy_and_slope, start, P, 100, tolerance, energy_only=value)
    assert slopes[0] == evaluated[0] == 1  # done at the start
    assert min(slopes[1:]) > 2  # steps before the last one
    assert [together - with_slope for together, with_slope in zip(evaluated, slopes, strict=True)] == [0, 1, 1]
    assert torch.equal(energies, value(torch.arange(3), b))
    _, _, further = minimise(energy, b, P, 100, tolerance)
    assert bool((energies - further <= 3 * tolerance * energies).all())


def test_a_row_of_infinite_energy_is_done() -> None:
    evaluated: list[list[int]] = []

    def energy(rows: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        evaluated.append(rows.tolist())
        return torch.where(rows == 1, torch.inf, b.square().sum(1)), torch.ones_like(b)

    start = torch.ones(2, E).double()
    b, _, energies = minimise(energy, start, torch.eye(E).double().expand(2, E, E) / 9, 3, 0.0)
    assert [1 in rows for rows in evaluated] == [True] + [False] * (len(evaluated) - 1)
    assert torch.equal(b[1], start[1]) and energies[1] == torch.inf and energies[0] < E


def test_of_rivals_only_the_best_goes_on() -> None:
    limit, steps = RACE[0], 10
    start = torch.tensor([[4.0], [4.02], [9.0], [4.0], [torch.nan]]).double()
    sample = torch.tensor([0, 0, 0, 3, 3])
    evaluated = [0] * 5
    energy, value = quartic(evaluated)
    initial = value(torch.arange(5), start)
    assert initial[1] < limit * initial[0] < initial[2]
    evaluated[:] = [0] * 5
    P = torch.ones(5, 1, 1).double() / 200
    b, _, energies = minimise(energy, start, P, steps, 0.0, energy_only=value, sample=sample)
    assert evaluated == [steps + 1, max(RACE) + 1, 1, steps + 1, 1]
    assert torch.equal(energies[:4], value(torch.arange(4), b[:4])) and energies[4] == torch.inf
    alone = minimise(energy, start, P, steps, 0.0, energy_only=value)[0]
    assert torch.equal(b[[0, 3]], alone[[0, 3]])


def test_encoding_takes_fewer_steps_with_a_race_and_with_a_larger_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = a_model(n_step=8, tries=3), 2 * draw(N, D, seed=2)
    evaluate, evaluated = model._energy_and_slope, []

    def count(x: Tensor, k: Tensor, rows: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        evaluated.append(len(rows))
        return evaluate(x, k, rows, b)

    monkeypatch.setattr(model, "_energy_and_slope", count)
    counts = []
    for tolerance, race in ((0.0, {}), (0.0, RACE), (1e-1, RACE)):
        monkeypatch.setattr(second_order, "RACE", race)
        model.tolerance = tolerance
        evaluated.clear()
        model.encode(x)
        counts.append(sum(evaluated))
    assert counts[0] > counts[1] > counts[2] >= N


@pytest.mark.parametrize("method", ["bfgs", "gradient"])
def test_a_row_whose_distances_overflow_leaves_the_codes_of_the_others(method: str) -> None:
    model, x = a_model(n_step=3, tries=3, beta=1e-3).float(), (2 * draw(N, D, seed=2)).float()
    model.method = method
    expected = model.encode(x)
    x[7] = 1e20
    code, others = model.encode(x), torch.arange(N) != 7
    assert len(code.k) == N and torch.equal(code.k[others], expected.k[others])
    assert torch.allclose(code.b[others], expected.b[others], atol=1e-4)


def test_steps_without_a_number_are_not_taken() -> None:
    def energy(rows: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(b[:, 0] == 0, 1.0, torch.nan), torch.ones_like(b)

    start = torch.zeros(N, E).double()
    assert torch.equal(minimise(energy, start, torch.eye(E).double().expand(N, E, E), 5, 0.0)[0], start)


@pytest.mark.parametrize("tries", [1, 2, 9])
@pytest.mark.parametrize("method", ["bfgs", "gradient"])
@pytest.mark.parametrize(("K", "latents"), [(1, E), (3, 0), (1, 0), (3, 1)])
@pytest.mark.parametrize("device", DEVICES)
def test_it_works_at_the_limits(K: int, latents: int, method: str, tries: int, device: str) -> None:
    model, x = a_model(K, latents, n_step=3, tries=tries).to(device), 2 * draw(N, D, seed=2).to(device)
    model.method = method
    code = model.encode(x)
    assert code.b.shape == (N, latents) and bool(torch.isfinite(model.decode(code)).all())
    assert model.encode(x[:0]).b.shape == (0, latents)


def test_the_curvature_of_a_decoder_that_ignores_its_latents_can_be_inverted() -> None:
    assert bool(torch.isfinite(invert_curvature(torch.zeros(2, 3, D, E), 0.0)).all())
