"""Muon: which matrices it takes, its step, and that it resumes exactly."""

import pytest
import torch
from torch import nn

from llgae_cli.models import DECODERS, ENCODERS, GAE, LLGAE, Decoder
from llgae_cli.tasks import Samples
from llgae_cli.training import Gradient
from llgae_cli.training.muon import ITERATIONS, Muon, divide_groups, list_matrices, orthogonalise

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("shape", [(3, 5, 9), (2, 9, 5), (1, 30, 60)])
def test_orthogonalising_keeps_singular_vectors_and_makes_singular_values_about_one(shape: tuple[int, ...]) -> None:
    G = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    U, S, V = torch.linalg.svd(G, full_matrices=False)
    found = U.mT @ orthogonalise(G) @ V.mT
    values = found.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found, torch.diag_embed(values), atol=1e-9, rtol=0)
    clear = 0.02 * S.norm(dim=1, keepdim=True) < S  # smaller ones have not risen to 1 after five iterations
    assert ITERATIONS == 5 and clear.float().mean() > 0.9
    assert float(values[clear].min()) > 0.5 and float(values[clear].max()) < 1.3


def test_a_step_is_that_of_the_docstring_and_of_adamw_for_the_others() -> None:
    start = torch.randn(32, 40, generator=torch.Generator().manual_seed(2))
    gradients = torch.randn(2, 32, 40, generator=torch.Generator().manual_seed(3))
    matrix, other, alone = (nn.Parameter(start.clone()) for _ in range(3))
    options = {"lr": 0.01, "weight_decay": 0.1}
    muon = Muon(divide_groups([{"params": [matrix, other], **options}], [matrix]), betas=(0.9, 0.99))
    adamw = torch.optim.AdamW([alone], betas=(0.9, 0.99), **options)
    expected, momentum = start.clone(), torch.zeros_like(start)
    for gradient in gradients:
        for parameter in (matrix, other, alone):
            parameter.grad = gradient.clone()
        muon.step()
        adamw.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        direction = orthogonalise((gradient + 0.95 * (momentum - gradient))[None])[0]
        expected = (1 - 0.01 * 0.1) * expected - 0.2 * 0.01 * 40**0.5 * direction
    torch.testing.assert_close(matrix.detach(), expected)
    torch.testing.assert_close(other, alone)


def test_it_takes_convolutions_and_hidden_layers_but_no_thin_or_very_large_ones() -> None:
    layers = {
        "thin": nn.Linear(20, 512),
        "hidden": nn.Linear(512, 128),
        "large": nn.Linear(512, 3136),
        "convolution": nn.Conv2d(64, 64, 3),
        "last": nn.Conv2d(64, 4, 3),
        "embedding": nn.Embedding(40, 40),
    }
    chosen = list_matrices(nn.ModuleDict(layers))
    assert [name for name, layer in layers.items() if any(layer.weight is one for one in chosen)] == [
        "hidden",
        "convolution",
    ]


def test_a_resumed_run_equals_one_that_was_not_interrupted() -> None:
    def a_trainer() -> Gradient:
        sizes = (2, 3, (8, 8), 64, 16)
        parts, guide = Decoder(LLGAE(2, 64, 3), DECODERS["conv"](*sizes)), ENCODERS["conv"](*sizes)
        affine = LLGAE(2, 64, 3, inference="least-squares")
        model = GAE(parts, 2, 64, 3, ascent="later", affine=affine, guide=guide)
        assert len(list_matrices(model)) > 10
        x = torch.randn(60, 64, generator=torch.Generator().manual_seed(4))
        return Gradient(model, Samples(x, centring="none"), seed=5, optimizer="muon", lr=1e-3, batch_size=20)

    whole, cut, resumed = a_trainer(), a_trainer(), a_trainer()
    for trainer in (whole, cut):
        torch.manual_seed(6)
        trainer.initialise()
        before = trainer.epoch()["train_mean_l2"]
    resumed.model.load_state_dict(cut.model.state_dict())
    resumed.load_state_dict(cut.state_dict())
    assert whole.epoch() == resumed.epoch() != {"train_mean_l2": before}
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
