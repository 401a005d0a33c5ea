"""The states of `llgae bench tables`, its peer, and our passes from the peer's result."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.decomposition import PCA

from llgae_cli.bench import tables
from llgae_cli.tasks import Samples

pytestmark = pytest.mark.numeric


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TEMPERATURES", (1200.0,))
    monkeypatch.setattr(tables, "PRESSURES", (1.0,))
    monkeypatch.setattr(tables, "RATIOS", (1.0,))
    monkeypatch.setattr(tables, "LONGEST", 1e-2)


def test_the_states_ignite_and_keep_their_mass(few: None) -> None:
    states = tables.make_states("h2o2.yaml", "H2")
    assert states.shape[1] == 10 and len(states) > 50
    assert states[0, 0] == pytest.approx(1200, abs=1) and states[-1, 0] > 2000
    np.testing.assert_allclose(states[:, 1:].sum(1), 1, atol=1e-6)


def test_our_passes_never_worsen_the_peers_result() -> None:
    x = np.random.default_rng(0).normal(size=(400, 6)) ** 3
    peer = tables.fit_vqpca(x, 4, 2, seed=0)
    errors = np.stack([(((x - m) - (x - m) @ U @ U.T) ** 2).sum(1) for m, U in zip(peer.mu, peer.U, strict=True)], 1)
    assert peer.error == pytest.approx(errors.min(1).mean() / 6)
    assert tables.continue_fit(Samples(x, centring="none"), peer) <= peer.error * (1 + 1e-9)


def test_a_fit_by_pcafold_is_measured_by_the_pcas_of_its_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(400, 6)) ** 3
    clusters = np.arange(400) % 3

    def one_round(x: np.ndarray, k: int, e: int, **options: object) -> SimpleNamespace:
        return SimpleNamespace(idx=clusters, collected_idx=np.zeros((len(x), 1)))

    monkeypatch.setitem(sys.modules, "PCAfold", SimpleNamespace(VQPCA=one_round))
    fit = tables.fit_pcafold(x, 3, 2, seed=0)
    pcas = [(rows, PCA(2).fit(rows)) for rows in (x[clusters == j] for j in range(3))]
    residual = [rows - pca.inverse_transform(pca.transform(rows)) for rows, pca in pcas]
    assert fit.error == pytest.approx(np.square(np.concatenate(residual)).mean())
    assert fit.rounds == 1 and fit.U.shape == (3, 6, 2)


def test_every_peer_is_compared_with_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(400, 6)) ** 3
    monkeypatch.setattr(tables, "SEEDS", range(2))
    monkeypatch.setitem(sys.modules, "PCAfold", None)  # its import fails
    assert not any("PCAfold" in row.what for row in tables.compare("cubes", x, 3, 2))
    monkeypatch.setattr(tables, "fit_pcafold", tables.fit_vqpca)
    rows = list(tables.compare("cubes", x, 3, 2))
    assert len(rows) == 10 and all(row.what.startswith("cubes, 400 x 6, K = 3, E = 2: ") for row in rows)
    for peer, seeds in (("VQPCA", "2 seeds"), ("PCAfold", "one seed")):
        own = [row for row in rows if peer in row.what]
        assert [f"{peer}'s error, {seeds}" in row.what for row in own] == [True, False, True, False, False]
        assert own[-1].value <= 1 + 1e-9
