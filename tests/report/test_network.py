"""Decoder networks on the report's page: the same values in the browser as in torch."""

import base64
import json
from typing import Any

import numpy as np
import pictured  # tests/pictured.py
import pytest
import torch
from browsing import canvas, click, embedded, said, set_range  # tests/browsing.py

from llgae_cli.evaluation import Evaluated, evaluate_checkpoint
from llgae_cli.models import Parts
from llgae_cli.models.networks import DECODERS
from llgae_cli.report import explorer, page
from llgae_cli.report.network import BITS, BITS_OF_LARGE, pack_integers, pack_network

pytestmark = pytest.mark.slow
SHAPE = (13, 10)  # no multiples of four


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """A deep LLGAE of small images."""
    folder = tmp_path_factory.mktemp("deep")
    generator = np.random.default_rng(5)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    at = generator.uniform(2, 9, (300, 2))
    spots = np.exp(-((y - at[:, :1, None]) ** 2 + (x - at[:, 1:, None]) ** 2) / 10)
    np.save(folder / "spots.npy", (spots * 255).astype(np.uint8))
    sizes = {"K": 3, "embed_dim": 4, "width": 24, "channels": 4, "decoder": "conv", "batch_size": 50}
    task = f"npy:{folder / 'spots.npy'}"
    return evaluate_checkpoint(pictured.train(folder, task=task, model="deep-llgae", epochs=8, lr=1e-2, **sizes))


def decode_in(browser: Any, packed: dict[str, Any], at: list[int], b: torch.Tensor, shape: tuple[int, ...]) -> Any:
    """What network.js, which any page of an explorer has, decodes the rows of b to, (n, D)."""
    script = (
        "const packed = JSON.parse(arguments[0]); network.unpack(packed);"
        "return arguments[1].map((at, i) => Array.from(network.decode(packed, at, arguments[2][i], arguments[3])))"
    )
    return np.array(browser.execute_script(script, json.dumps(packed), at, b.tolist(), list(shape)))


@pytest.fixture(scope="module")
def opened(browser: Any, deep: Evaluated) -> Any:
    path = deep.path.parent / "report.html"
    path.write_text(page.render([deep]), encoding="utf-8")
    browser.get(path.as_uri())
    return browser


@pytest.mark.parametrize(
    "decoder, shape, width",
    [("conv", (28, 28), 64), ("conv", (13, 10, 3), 32), ("mlp", (30,), 40), ("mlp", (9, 9), 1030)],
)
def test_the_network_decodes_as_in_torch(opened: Any, decoder: str, shape: tuple[int, ...], width: int) -> None:
    network = DECODERS[decoder](5, 6, shape, width, 8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            inputs = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * inputs**-0.5)
        b, at, order = torch.randn(7, 6, generator=generator), [0, 3, 1, 2, 4, 0, 3], np.array([4, 2, 0, 1, 3])
        values = network(torch.tensor(order[at]), b)
        unit = 60 / values.std()
        expected = (unit * values).numpy()
    packed = pack_network(Parts(None, None, unit, network), order)
    assert packed is not None
    used = {BITS, BITS_OF_LARGE} if width > 1024 else {BITS}
    assert {layer["bits"] for layer in packed["layers"].values()} == used
    found = decode_in(opened, packed, at, b, shape)
    assert found.shape == expected.shape and expected.std() > 50
    assert np.abs(found - expected).max() < 0.5


def test_integers_are_near_what_they_stand_for() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 7)) * np.array([[1e-3], [1.0], [50.0], [0.0]])
    packed = pack_integers(rows)
    stream = np.frombuffer(base64.b64decode(packed["values"]), np.uint8)
    digits = np.unpackbits(stream, bitorder="little")[: rows.size * BITS].reshape(rows.size, BITS).astype(np.int64)
    whole = digits @ 2 ** np.arange(BITS)
    whole -= 2**BITS * (whole >= 2 ** (BITS - 1))
    scale = np.frombuffer(base64.b64decode(packed["scale"]), "<f4")[:, None]
    assert packed["bits"] == BITS and packed["width"] == 7
    assert (np.abs(whole.reshape(rows.shape) * scale - rows) <= 0.501 * scale).all()


def test_the_page_shows_codes_and_walks_of_a_deep_model(opened: Any, deep: Evaluated) -> None:
    assert page.explain_missing([deep], ["deep"], {0}) == []
    rows = embedded(opened)["images"].popitem()[1]["rows"]
    for place in range(0, len(rows), 9):
        click(opened, "images", place)
        drawn = np.clip(np.rint(deep.reconstructions(np.array([rows[place]]))[0]), 0, 255).reshape(SHAPE)
        assert np.abs(canvas(opened, "x-hat") - drawn).max() <= 1
        assert f"Component {deep.k[rows[place]]}," in said(opened)
    for at, k in enumerate(deep.by_use()):
        click(opened, "components", at)
        set_range(opened, "b-0", 1.5)
        a = torch.tensor([1.5, 0.0, 0.0, 0.0], dtype=torch.float64)
        walked = deep.decode(int(k), (deep.axes.mean[k] + deep.axes.B[k] @ a)[None])[0]
        assert np.abs(canvas(opened, "x-hat") - np.clip(np.rint(walked), 0, 255).reshape(SHAPE)).max() <= 1
    shown = "return ['network-note', 'steps-part'].map(id => document.getElementById(id).hidden)"
    assert opened.execute_script(shown) == [False, True]
    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_network_that_is_too_large_is_named(deep: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "NETWORK_BUDGET", 1000)
    data = page.pack_explorer([deep], ["deep"], [None])
    assert data["checkpoints"] == []
    assert page.explain_missing([deep], ["deep"], set()) == [
        "deep is not in the explorer: it would make the page too large."
    ]
    monkeypatch.undo()
    packed = page.pack_explorer([deep, deep], ["a", "b"], [None, None])["checkpoints"]
    assert [one["at"] for one in packed] == [0, 1]
