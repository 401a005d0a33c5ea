"""The exported file is enough to decode and to encode, with numpy alone, as docs/api.md says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, check_refused
from safetensors import safe_open
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.numeric


def train(llgae: Command, *overrides: str) -> str:
    options = [word for override in overrides for word in ("-S", override)]
    return str(json.loads(llgae("train", "-c", "fast.yaml", "--json", *options).out)["checkpoint"])


@pytest.mark.parametrize("of_table", [False, True])
def test_the_file_decodes_as_the_page_says(llgae: Command, of_table: bool) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 5)) * 10.0 ** np.arange(5)
    np.save("rows.npy", rows)
    checkpoint = train(llgae, *(["task=npy:rows.npy"] if of_table else []))
    assert llgae("export", checkpoint, "-o", "model.safetensors").code == 0
    llgae("encode", checkpoint, "-o", "codes.npz")
    llgae("decode", checkpoint, "codes.npz", "-o", "x_hat.npy")
    page = (ROOT / "docs" / "api.md").read_text()
    example = re.search(r"^    import numpy as np\n(?:    .*\n|\n)+", page, re.M)
    assert example
    names: dict[str, np.ndarray] = {}
    exec(re.sub(r"^    ", "", example[0], flags=re.M), names)
    expected = np.load("x_hat.npy")
    np.testing.assert_allclose(names["x_hat"], expected.reshape(len(expected), -1), rtol=1e-4, atol=1e-3)
    with safe_open("model.safetensors", "np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"])["K"] == 4 and metadata["centring"] == ("none" if of_table else "sample")
    assert json.loads(metadata["shape"]) == ([5] if of_table else [8, 8])


def test_it_encodes_too(llgae: Command) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 5))
    np.save("rows.npy", rows)
    checkpoint = train(llgae, "task=npy:rows.npy")
    llgae("export", checkpoint, "-o", "model.safetensors")
    llgae("encode", checkpoint, "--task", "npy:rows.npy", "-o", "codes.npz")
    model = load_file("model.safetensors")
    with np.load("codes.npz") as codes:
        k, b_of_codes = codes["k"], codes["b"]
    r = ((rows - model["centre"]) / model["scale"])[:, None] - model["mu"]
    b = np.einsum("kef,kdf,nkd->nke", model["P"], model["W"], r)
    squared = np.square(r - np.einsum("kde,nke->nkd", model["W"], b)).sum(2)
    np.testing.assert_allclose(squared[np.arange(200), k], squared.min(1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(b[np.arange(200), k], b_of_codes, rtol=1e-3, atol=1e-4)


def test_what_is_refused(llgae: Command) -> None:
    checkpoint = train(llgae)
    check_refused(llgae("export", checkpoint, "-o", "model.bin"), "-o model.bin", ".safetensors file is expected")
    residual = train(llgae, "model=residual", "levels=2")
    check_refused(llgae("export", residual, "-o", "m.safetensors"), "the model is residual", "llgae, pca and kmeans")
