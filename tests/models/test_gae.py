"""GAE: with an affine decoder it is LLGAE; with a network it ascends the likelihood of that network."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from llgae_cli.config import parse_config
from llgae_cli.errors import InputError
from llgae_cli.factory import build_model
from llgae_cli.models import DECODERS, ENCODERS, GAE, LLGAE, Autoencoder, Code, Decoder, gae, second_order
from llgae_cli.models.networks import ConvDecoder
from llgae_cli.models.second_order import DAMPING

pytestmark = pytest.mark.numeric
K, D, E, N = 3, 16, 4, 40
SHAPE = (4, 4)


def samples() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2


def an_llgae(**options: object) -> LLGAE:
    model = LLGAE(K, D, E, **options).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
    return model


def a_network(kind: str, **options: object) -> GAE:
    network = DECODERS[kind](K, E, SHAPE, 16, 4)
    model = GAE(Decoder(None, network), K, D, E, **options).double()  # type: ignore[arg-type]
    model.initialise(samples(), torch.Generator().manual_seed(4))
    return model


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_with_an_affine_decoder_it_is_llgae_in_values_and_gradients(alpha: float) -> None:
    x, steps = samples(), {"beta": 0.03, "n_step": 6, "alpha": alpha}
    affine = an_llgae(inference="loop", **steps)
    model = GAE(Decoder(LLGAE(K, D, E), None), K, D, E, **steps).double()
    pieces = model.decoder.pieces
    assert pieces is not None
    pieces.load_state_dict(affine.state_dict())
    one, other = affine.encode(x), model.encode(x)
    assert torch.equal(one.k, other.k) and torch.allclose(one.b, other.b, atol=1e-12)
    assert torch.allclose(affine.decode(one), model.decode(other), atol=1e-12)
    losses = affine.loss(x), model.loss(x)
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    for mine, theirs in ((pieces.mu, affine.mu), (pieces.W, affine.W)):
        assert mine.grad is not None and theirs.grad is not None
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_the_ascent_raises_the_likelihood_and_the_best_component_is_chosen(kind: str) -> None:
    model, x = a_network(kind, beta=0.02, n_step=1), samples()
    squared = []
    for steps in (1, 4, 16):
        model.n_step = steps
        code = model.encode(x)
        squared.append((x - model.decode(code)).square().sum().item())
        each = [
            (x - model.decode(Code(k, model.ascend(x, k, torch.zeros(N, E).double(), steps)))).square().sum(1)
            for k in (torch.full((N,), j) for j in range(K))
        ]
        assert torch.equal(torch.stack(each, 1).argmin(1), code.k)
    assert squared[0] > squared[1] > squared[2]


@pytest.mark.parametrize("ascent", ["through", "given"])
def test_the_gradient_is_that_of_the_loss_through_the_steps_or_at_their_end(ascent: str) -> None:
    model, x = a_network("mlp", beta=0.02, n_step=3, ascent=ascent), samples()
    model.loss(x).backward()
    code = model.encode(x)
    assert model.decoder.network is not None
    weight = model.decoder.network.out.weight  # type: ignore[union-attr]
    assert isinstance(weight, torch.nn.Parameter) and weight.grad is not None
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            weight += step * direction
            values.append((model.loss(x) if ascent == "through" else (x - model.decode(code)).square().mean()).item())
            weight -= step * direction
    assert float((weight.grad * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def with_a_guide(**options: object) -> GAE:
    parts, guide = Decoder(LLGAE(K, D, E), DECODERS["mlp"](K, E, SHAPE, 16, 4)), ENCODERS["mlp"](K, E, SHAPE, 16, 4)
    model = GAE(parts, K, D, E, affine=an_llgae(), guide=guide, **options).double()  # type: ignore[arg-type]
    model.initialise(samples(), torch.Generator().manual_seed(5))
    return model


def test_with_a_given_ascent_the_decoder_learns_at_its_end_and_the_guide_at_its_beginning() -> None:
    given = with_a_guide(beta=0.02, n_step=9, ascent="given", training_steps=3)
    later = with_a_guide(beta=0.02, n_step=3, ascent="later")
    x = samples()
    loss, first = given.loss(x), later.loss(x)
    loss.backward()
    first.backward()
    end = (x - later.decode(later.encode(x))).square().mean()  # after three steps from the guide's latents
    assert loss.item() == pytest.approx(end.item(), rel=1e-12) and loss.item() < first.item()
    end_gradients = torch.autograd.grad(end, list(later.decoder.parameters()))
    for mine, theirs in zip(given.decoder.parameters(), end_gradients, strict=True):
        assert mine.grad is not None and torch.allclose(mine.grad, theirs, rtol=1e-9, atol=1e-12)
    assert given.guide is not None and later.guide is not None
    for mine, of_first in zip(given.guide.parameters(), later.guide.parameters(), strict=True):
        assert mine.grad is not None and of_first.grad is not None
        assert torch.allclose(mine.grad, of_first.grad, rtol=1e-9, atol=1e-12)


def test_training_takes_the_ascent_from_an_epoch_on() -> None:
    model, later = with_a_guide(beta=0.02, ascent="given", ascent_from=2), with_a_guide(ascent="later")
    losses = []
    for done in range(4):
        model.begin_epoch(done)
        losses.append(model.loss(samples()).item())
    first = later.loss(samples()).item()
    assert losses[:2] == [first] * 2 and losses[2] == losses[3] < first


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("method", ["gradient", "bfgs"])
def test_with_more_tries_the_best_of_several_components_is_kept(
    method: str, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = with_a_guide(beta=0.02, n_step=3, ascent="later", method=method, alpha=alpha), samples()
    assert model.affine is not None and model.guide is not None
    first = model.encode(x)
    assert torch.equal(first.k, model.affine.choose(x))
    codes, energies = [], []
    for j in range(K):
        with monkeypatch.context() as only:
            only.setattr(model.affine, "choose", lambda x, j=j: torch.full((len(x),), j))
            codes.append(model.encode(x))
        with torch.no_grad():
            energies.append(model._energy(x, codes[-1].k, codes[-1].b))
    best = torch.stack(energies, 1).argmin(1)
    model.tries = K
    monkeypatch.setattr(gae, "RIVAL", 1e9)
    monkeypatch.setattr(second_order, "RACE", {})  # all rivals take all steps
    code = model.encode(x)
    assert torch.equal(code.k, best) and not torch.equal(code.k, first.k)
    assert torch.allclose(code.b, torch.stack([one.b for one in codes])[best, torch.arange(N)])
    monkeypatch.setattr(gae, "RIVAL", 1.0)  # no other component is below the least
    assert torch.equal(model.encode(x).k, first.k)


def test_the_initial_curvature_is_that_of_samples_of_the_affine_model_and_follows_the_parameters() -> None:
    model = with_a_guide(n_step=3, ascent="later", method="bfgs", alpha=0.5)
    assert model.affine is not None and model.guide is not None
    P = model._initial_curvature()
    assert model._initial_curvature() is P

    k = torch.arange(K).repeat_interleave(gae.CURVATURE_DRAWS)
    z = torch.randn(len(k), E, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        b = model.guide(k, model.affine.decode(Code(k, z)) / model.decoder.unit)
        steps = 1e-5 * torch.eye(E).double()
        J = torch.stack([(model.decoder(k, b + h) - model.decoder(k, b - h)) / 2e-5 for h in steps], 2)
    for j in range(K):
        H = (J[k == j].mT @ J[k == j]).mean(0)
        damped = H + (0.5 + DAMPING * H.trace() / E) * torch.eye(E)
        assert torch.allclose(P[j] @ damped, torch.eye(E).double(), atol=1e-6)

    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=0.1, fused=True)  # it counts no version of a parameter
    model.loss(samples()).backward()
    optimizer.step()
    changed = model._initial_curvature()
    assert not torch.allclose(changed, P) and model._initial_curvature() is changed


@pytest.mark.parametrize("method", ["gradient", "bfgs"])
def test_parts_of_the_rows_are_coded_in_order(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = with_a_guide(beta=0.02, n_step=3, ascent="later", method=method), samples()
    whole = model.encode(x)
    with_gradient = model.decode(whole)
    monkeypatch.setattr(gae, "PART_ROWS", 7)
    parts = model.encode(x)
    assert torch.equal(parts.k, whole.k) and torch.allclose(parts.b, whole.b, atol=1e-9)
    with torch.no_grad():
        assert torch.allclose(model.decode(whole), with_gradient, atol=1e-9)


def test_a_model_is_built_as_its_config_says() -> None:
    values = {"ascent": "given", "ascent-epochs": 2, "ascent-steps": 3, "epochs": 5, "tries": 2, "n-step": 7}
    values |= {"ascent-method": "bfgs", "ascent-tol": 0.25}
    model = build_model(
        parse_config({"model": "deep-llgae", "decoder": "mlp", "K": 3, "embed-dim": 2, **values}), SHAPE
    )
    assert isinstance(model, GAE)
    assert (model.ascent_from, model.training_steps, model.tries, model.n_step) == (3, 3, 2, 7)
    assert (model.method, model.tolerance) == ("bfgs", 0.25)


def test_initialised_from_an_llgae_it_keeps_the_component_and_latents_have_unit_variance() -> None:
    affine, x = an_llgae(inference="least-squares"), samples().repeat(20, 1)
    parts = Decoder(LLGAE(K, D, E), DECODERS["conv"](K, E, SHAPE, 16, 4))
    guide = ENCODERS["conv"](K, E, SHAPE, 16, 4)
    held = LLGAE(K, D, E, inference="least-squares")
    model = GAE(parts, K, D, E, n_step=0, ascent="later", affine=held, guide=guide).double()
    model.initialise(x, torch.Generator().manual_seed(5))
    model.initialise_from(affine, x, torch.Generator().manual_seed(6))
    code = model.encode(x)
    assert torch.equal(code.k, affine.encode(x).k)
    assert torch.allclose(code.b, guide(code.k, x / model.decoder.unit))
    k, b, _ = held.encode(x)
    assert all(torch.allclose(b[k == j].std(0), torch.ones(E).double()) for j in range(K) if (k == j).sum() > 1)
    assert torch.allclose(held.decode(Code(k, b)), affine.decode(affine.encode(x)))  # another gauge, the same model
    before = [parameter.clone() for parameter in held.parameters()]
    groups = model.parameter_groups()
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    optimizer = torch.optim.AdamW([parameter for group in groups for parameter in group["params"]], lr=1e-3)
    first = float(model.loss(x).detach())
    for _ in range(20):
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()
    assert float(model.loss(x).detach()) < first
    assert all(torch.equal(p, q) for p, q in zip(before, held.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(28, 28), (5, 7), (9, 6, 3), (4, 4)])
def test_networks_accept_images_of_any_size(shape: tuple[int, ...]) -> None:
    n = 1
    for side in shape:
        n *= side
    k, b = torch.tensor([0, 2]), torch.randn(2, E)
    for kind in ("mlp", "conv"):
        x = DECODERS[kind](K, E, shape, 8, 4)(k, b)
        assert x.shape == (2, n) and ENCODERS[kind](K, E, shape, 8, 4)(k, x).shape == (2, E)
        assert DECODERS[kind](K, 0, shape, 8, 4)(k, b[:, :0]).shape == (2, n)


def test_a_convolutional_decoder_enlarges_by_pixel_shuffle() -> None:
    generator = torch.Generator().manual_seed(9)
    decoder = ConvDecoder(K, E, (10, 9), 8, 3).double()
    decoder.initialise(generator)
    h = torch.randn(5, 6, 3, 2, generator=generator, dtype=torch.float64)
    h = h.contiguous(memory_format=torch.channels_last).requires_grad_()
    larger, expected = decoder.enlarge(h), pixel_shuffle(decoder.up(h), 2)
    assert larger.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(larger, expected, atol=1e-12)
    inputs = [h, *decoder.up.parameters()]
    gradients = [torch.autograd.grad(values.square().sum(), inputs) for values in (larger, expected)]
    assert all(torch.allclose(p, q, atol=1e-12) for p, q in zip(*gradients, strict=True))
    assert decoder.enlarge(h[:0]).shape == (0, 3, 6, 4)


def test_a_convolution_over_plain_vectors_is_refused() -> None:
    for kinds in (DECODERS, ENCODERS):
        with pytest.raises(InputError, match="plain vectors"):
            kinds["conv"](K, E, (10,), 8, 4)


def test_the_losses_of_the_ordinary_and_the_denoising_autoencoder_are_their_definitions() -> None:
    x = samples()
    model = Autoencoder(ENCODERS["mlp"](1, E, SHAPE, 32, 4), DECODERS["mlp"](1, E, SHAPE, 32, 4), D, E).double()
    model.initialise(x, torch.Generator().manual_seed(7))
    code = model.encode(x)
    assert code.k.eq(0).all() and code.b.shape == (N, E)
    assert torch.allclose(model.loss(x), (x - model.decode(code)).square().mean())
    assert torch.allclose(model.denoising_loss(x, x + 1), (x - model.decode(model.encode(x + 1))).square().mean())


def test_the_jacobian_is_the_derivative_of_the_decoder() -> None:
    for model in (a_network("conv"), a_network("mlp")):
        at = Code(torch.tensor([0, 2]), torch.randn(2, E, generator=torch.Generator().manual_seed(8)).double())
        J = model.jacobian(at)
        assert J.shape == (2, D, E)
        for e in range(E):
            step = torch.zeros(2, E).double()
            step[:, e] = 1e-6
            slope = (model.decode(Code(at.k, at.b + step)) - model.decode(Code(at.k, at.b - step))) / 2e-6
            assert torch.allclose(J[:, :, e], slope, atol=1e-5)
    without = GAE(Decoder(None, DECODERS["mlp"](K, 0, SHAPE, 16, 4)), K, D, 0)
    assert without.jacobian(Code(torch.tensor([0, 2]), torch.zeros(2, 0))).shape == (2, D, 0)
    affine = an_llgae()
    assert torch.equal(affine.jacobian(Code(torch.tensor([2, 0]), torch.zeros(2, E))), affine.W.detach()[[2, 0]])
    assert torch.allclose(
        super(LLGAE, affine).jacobian(Code(torch.tensor([2, 0]), torch.zeros(2, E))), affine.W.detach()[[2, 0]]
    )
