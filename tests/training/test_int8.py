"""Distances from products of bytes and digits are as exact as those of float32."""

import numpy as np
import pytest
import torch
from torch import Tensor

from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm, int8
from llgae_cli.training.components import Components, orthonormalise
from llgae_cli.training.int8 import ByteScorer
from llgae_cli.training.scoring import Scorer
from llgae_cli.training.statistics import collect_statistics

pytestmark = pytest.mark.numeric


def product_of_bytes(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`torch._int_mm` from exact products of floats: sums stay far below 2^53."""
    exact = (a.double() @ b.double()).to(torch.int32)
    return exact if out is None else out.copy_(exact)


@pytest.fixture(autouse=True)
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test on every processor, with exact products where its own are not."""
    if not int8.products_are_exact():
        monkeypatch.setattr(torch, "_int_mm", product_of_bytes)


def images(n: int, D: int) -> Tensor:
    generator = torch.Generator().manual_seed(n + D)
    v = torch.randint(0, 256, (n, D), generator=generator, dtype=torch.uint8)
    v[: n // 3] //= 8
    v[n // 3] = 255
    v[n // 3 + 1] = 0
    return v


def centred(v: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return v.to(dtype) - v.to(dtype).mean(1, keepdim=True)


def components(K: int, D: int, E: int, level: float = 0.0) -> Components:
    """Bases that are not orthogonal to the all-ones vector, which a byte scorer must not assume."""
    generator = torch.Generator().manual_seed(K)
    mu = 40 * torch.randn(K, D, generator=generator) + level
    return Components(mu, orthonormalise(torch.randn(K, D, E, generator=generator) + 0.1))


@pytest.mark.parametrize(("K", "D", "E"), [(1, 9, 0), (1, 30, 4), (5, 784, 20), (30, 100, 25), (3, 3072, 7), (7, 2, 1)])
@pytest.mark.parametrize("level", [0.0, 300.0])
def test_distances_and_projections_are_as_exact_as_those_of_float32(K: int, D: int, E: int, level: float) -> None:
    v, some = images(300, D), components(K, D, E, level)
    exact = Components(some.mu.double(), some.U.double())
    best, k, z = ByteScorer(some).nearest(v)
    distances = Scorer(exact).distances(centred(v, torch.float64))
    size = float(centred(v, torch.float64).square().sum(1).max() + some.mu.square().sum(1).max())
    off = (distances.gather(1, k[:, None])[:, 0] - distances.min(1).values) / size
    single = Scorer(some).distances(centred(v))
    worst_single = float((single - distances).abs().max()) / size
    assert float(off.max()) <= 2 * worst_single + 1e-7  # where the component differs, it could differ in float32 too
    assert float((best - distances.min(1).values).abs().max()) / size <= 2 * worst_single + 1e-7
    expected = torch.einsum("nd,nde->ne", centred(v, torch.float64), exact.U[k])
    torch.testing.assert_close(z, expected.float(), rtol=1e-4, atol=2e-6 * size**0.5)


def test_statistics_of_bytes_equal_those_of_floats() -> None:
    v, some = images(900, 200), components(6, 200, 5)
    ours = collect_statistics(v.split(256), some, score=ByteScorer(some))
    theirs = collect_statistics(centred(v).split(256), some)
    assert torch.equal(ours.count, theirs.count)
    for one, other in zip(ours.tensors(), theirs.tensors(), strict=True):
        if one.numel():
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def run_epochs(monkeypatch: pytest.MonkeyPatch, samples: Samples, faster: bool) -> tuple[list[float], list[type]]:
    """The mean L2 after each epoch, and the byte scorers that passes over all rows used."""
    made: list[type] = []

    class Byte(ByteScorer):
        def __init__(self, *arguments: object) -> None:
            made.append(ByteScorer)
            super().__init__(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(int8, "is_faster", lambda device: faster)
    monkeypatch.setattr("llgae_cli.training.closed_form.ByteScorer", Byte)
    trainer = ClosedForm(LLGAE(4, samples.D, 3), samples, seed=1, restarts=1, moves=0, tol=0.0)
    trainer.initialise()
    return [trainer.epoch()["train_mean_l2"] for _ in range(5)], made


def test_a_run_on_bytes_equals_one_on_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    v = images(700, 60).numpy()
    floats, none = run_epochs(monkeypatch, Samples(v), False)
    bytes_, all_of_them = run_epochs(monkeypatch, Samples(v), True)
    assert not none and len(all_of_them) == 6
    assert bytes_ == pytest.approx(floats, rel=1e-5)


@pytest.mark.parametrize("change", ["floats", "not centred", "far from zero"])
def test_floats_are_used_where_rows_are_not_centred_bytes(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    v = images(300, 30).numpy()
    if change == "far from zero":
        v = np.repeat([[0] * 15 + [255] * 15], 300, 0).astype(np.uint8) ^ (v & 1)
    samples = Samples(
        v.astype(np.float32) if change == "floats" else v, None, "none" if change == "not centred" else "sample"
    )
    assert run_epochs(monkeypatch, samples, True)[1] == []


@pytest.mark.parametrize(("K", "D", "E"), [(5, 784, 20), (30, 100, 25)])
@pytest.mark.parametrize("flag", [False, True])
def test_either_scorer_chooses_the_same_components_with_and_without_vnni(
    monkeypatch: pytest.MonkeyPatch, flag: bool, K: int, D: int, E: int
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: flag, raising=False)
    v, some = images(300, D), components(K, D, E)
    x = centred(v)
    squared, k, z = ByteScorer(some).nearest(v)
    expected, theirs, projected = Scorer(some).nearest(x)
    size = float(x.square().sum(1).max() + some.mu.square().sum(1).max())
    lowest = Scorer(Components(some.mu.double(), some.U.double())).distances(x.double()).sort(1).values
    clear = lowest[:, 1] - lowest[:, 0] > 1e-5 * size  # beyond what float32 can confuse
    assert clear.float().mean() > 0.9 and torch.equal(k[clear], theirs[clear])
    torch.testing.assert_close(squared, expected, rtol=0, atol=1e-6 * size)
    torch.testing.assert_close(z[clear], projected[clear], rtol=1e-4, atol=2e-6 * size**0.5)


@pytest.mark.parametrize("flag", [False, True])
def test_bytes_are_faster_only_on_a_cpu_with_the_instructions(monkeypatch: pytest.MonkeyPatch, flag: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: flag, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(int8, "products_are_exact", lambda: True)
    assert int8.is_faster(torch.device("cpu")) is flag
    assert not int8.is_faster(torch.device("meta"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not int8.is_faster(torch.device("cpu"))
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert not int8.is_faster(torch.device("cpu"))


@pytest.mark.parametrize("right", [False, True])
def test_bytes_are_used_only_where_their_products_are_exact(monkeypatch: pytest.MonkeyPatch, right: bool) -> None:
    def saturated(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        return product_of_bytes(a, b, out).clamp(-32_768, 32_767)

    monkeypatch.setattr(torch, "_int_mm", product_of_bytes if right else saturated)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(int8, "products_are_exact", int8.products_are_exact.__wrapped__)
    assert int8.is_faster(torch.device("cpu")) is right
