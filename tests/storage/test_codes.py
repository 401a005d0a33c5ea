"""Codes on disk: encode and decode are the model, new samples have the spread they say, hostile files are refused."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pictured  # tests/pictured.py
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from llgae_cli.cli.app import app
from llgae_cli.errors import InputError
from llgae_cli.evaluation.encoding import CHUNK, LARGEST_CHUNK, list_chunks, write_codes
from llgae_cli.evaluation.latents import Latents, draw_codes, grid_codes, read_latents
from llgae_cli.evaluation.principal_axes import principal_axes
from llgae_cli.factory import restore
from llgae_cli.models import LLGAE
from llgae_cli.storage import CheckpointName, codes, save
from llgae_cli.tasks import Samples, load_task

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictured.train(tmp_path_factory.mktemp("codes"))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


def model_of(K: int, D: int, E: int) -> LLGAE:
    generator = torch.Generator().manual_seed(3)
    model = LLGAE(K, D, E, beta=0.01)
    model.load_state_dict(
        {"mu": 40 * torch.randn(K, D, generator=generator), "W": torch.randn(K, D, E, generator=generator)}
    )
    return model


@pytest.mark.parametrize(("K", "E"), [(1, 2), (5, 0), (7, 4)])
def test_decode_of_encode_is_the_model_bit_for_bit(tmp_path: Path, K: int, E: int) -> None:
    values = np.random.default_rng(4).integers(0, 256, (LARGEST_CHUNK + 77, 5, 4)).astype(np.uint8)
    samples, model = Samples(values), model_of(K, 20, E)
    mean_l2 = write_codes(model, samples, tmp_path / "codes.npz")
    file = codes.CodesFile(tmp_path / "codes.npz", model)
    whole = np.load(tmp_path / "codes.npz", allow_pickle=False)
    assert (whole["k"].dtype, whole["b"].dtype) == (np.int32, np.float32) and whole["b"].shape == (samples.N, E)
    codes.write_npy(codes.decode_file(model, file, centred=True), tmp_path / "x.npy", (file.N, 5, 4))
    codes.write_npy(codes.decode_file(model, file), tmp_path / "v.npy", (file.N, 5, 4))
    centred, images = np.load(tmp_path / "x.npy"), np.load(tmp_path / "v.npy")
    for here, x in samples.chunks(CHUNK):
        x_hat = model.decode(model.encode(x)).detach()
        assert np.array_equal(centred[here].reshape(len(x), -1), x_hat.numpy())
        assert np.array_equal(images[here].reshape(len(x), -1), (x_hat + samples.means(here)[:, None]).numpy())
        residual = model.residual(x, model.encode(x)).detach()
        torch.testing.assert_close(residual, x - x_hat, rtol=1e-4, atol=1e-4)
    # Float32 sums depend on the rows that are encoded together.
    parts = [samples.rows(here) for here in list_chunks(model, samples, range(samples.N))]
    squared = [model.residual(x, model.encode(x)).detach().square().mean(1) for x in parts]
    assert np.array_equal(whole["residual"], torch.cat(squared).numpy())
    assert mean_l2 == pytest.approx(float(whole["residual"].astype(np.float64).mean()), rel=1e-12)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]


def test_names_of_columns_are_in_the_file(tmp_path: Path) -> None:
    model, names = model_of(2, 4, 1), ("T", "p", "CO", "压力")
    write_codes(model, Samples(np.ones((5, 4)), centring="none", names=names), tmp_path / "named.npz")
    with np.load(tmp_path / "named.npz", allow_pickle=False) as named:
        assert tuple(named["columns"].tolist()) == names
    assert codes.CodesFile(tmp_path / "named.npz", model).N == 5


def test_an_npy_file_is_encoded_row_by_row_in_its_order(tmp_path: Path, checkpoint: Path) -> None:
    model, _, _ = restore(checkpoint)
    x = np.random.default_rng(1).normal(0, 100, (33, 64))
    np.save(tmp_path / "own.npy", x)
    done = run("encode", checkpoint, "--task", f"npy:{tmp_path / 'own.npy'}", "-o", tmp_path / "own.npz")
    assert done.exit_code == 0, done.output
    k = np.load(tmp_path / "own.npz")["k"]
    centred = torch.from_numpy(x - x.mean(1, keepdims=True)).float()
    assert np.array_equal(k, model.encode(centred).k.numpy())


def test_commands_round_trip_to_arrays_and_images(tmp_path: Path, checkpoint: Path) -> None:
    assert run("encode", checkpoint, "-o", tmp_path / "c.npz").exit_code == 0
    assert run("decode", checkpoint, tmp_path / "c.npz", "-o", tmp_path / "x.npy").exit_code == 0
    assert run("decode", checkpoint, tmp_path / "c.npz", "-o", tmp_path / "images").exit_code == 0
    x = np.load(tmp_path / "x.npy")
    assert x.shape == (1000, 8, 8) and len(list((tmp_path / "images").glob("*.png"))) == 1000
    with Image.open(tmp_path / "images" / "000007.png") as image:
        pixels = np.asarray(image).astype(float)
    expected = (x[7] - x.min()) * 255 / (x.max() - x.min())
    assert np.abs(pixels - expected).max() <= 0.51
    test = load_task("subspaces", Path("data")).test
    residual = (test.rows(slice(None)) - torch.from_numpy(x).reshape(1000, 64)).square().mean()
    assert float(residual) == pytest.approx(restore(checkpoint)[1].mean_l2, rel=1e-3)


def test_new_samples_have_the_frequencies_and_the_spread_of_the_codes() -> None:
    model = model_of(3, 12, 2)
    A = torch.tensor([[2.0, 0.0], [1.5, 0.5]])
    latents = Latents(
        torch.tensor([1.0, 3.0, 0.0]), torch.tensor([[1.0, -1], [5, 2], [0, 0]]), (A @ A.T).expand(3, 2, 2)
    )
    drawn = list(draw_codes(model, latents, 40_000, seed=1))
    k, b = torch.cat([code.k for code in drawn]), torch.cat([code.b for code in drawn])
    assert torch.bincount(k, minlength=3).div(40_000).tolist() == pytest.approx([0.25, 0.75, 0], abs=0.01)
    own = b[k == 1]
    assert own.mean(0).tolist() == pytest.approx([5, 2], abs=0.05)
    assert torch.cov(own.T).flatten().tolist() == pytest.approx((A @ A.T).flatten().tolist(), abs=0.1)
    again = next(draw_codes(model, latents, 10, seed=1))
    assert torch.equal(next(draw_codes(model, latents, 10, seed=1)).b, again.b)
    assert not torch.equal(next(draw_codes(model, latents, 10, seed=2)).b, again.b)


def test_a_grid_is_affine_and_reaches_two_standard_deviations() -> None:
    model = model_of(2, 12, 3)
    covariance = torch.diag(torch.tensor([1.0, 4.0, 0.25])).expand(2, 3, 3)
    latents = Latents(torch.tensor([1.0, 2.0]), torch.ones(2, 3), covariance)
    code = grid_codes(model, latents, 5)
    assert code.k.tolist() == [1] * 25
    b = code.b.reshape(5, 5, 3)
    assert torch.allclose(b[2, 2], torch.ones(3)) and torch.allclose(b[0] + b[4], 2 * b[2], atol=1e-5)
    ways = principal_axes(model.W, latents.mean, latents.covariance)
    assert torch.allclose(ways.coordinates(1, b[0, 4]), torch.tensor([2.0, -2, 0]).double(), atol=1e-5)


def test_directions_do_not_depend_on_the_basis_of_w() -> None:
    """W -> W R with b -> R^-1 b is the same model: what the directions draw must be the same."""
    generator = torch.Generator().manual_seed(6)
    W = torch.randn(2, 15, 4, generator=generator, dtype=torch.float64)
    L = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    mean, R = (
        torch.randn(2, 4, generator=generator, dtype=torch.float64),
        torch.randn(4, 4, dtype=torch.float64, generator=generator),
    )
    C, inverse = L @ L.mT, torch.linalg.inv(R)
    one = principal_axes(W, mean, C)
    other = principal_axes(W @ R, mean @ inverse.T, inverse @ C @ inverse.T)
    assert torch.allclose(one.variance, other.variance) and torch.allclose(W @ one.B, W @ R @ other.B)
    drawn = W @ one.B
    assert torch.allclose(drawn.mT @ drawn, torch.diag_embed(one.variance), atol=1e-9)  # orthogonal, by variance
    assert torch.allclose(one.B @ one.B.mT, C)  # unit variance in a


def put(**arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)  # type: ignore[arg-type]


K3 = np.zeros(4, np.int32)
B3 = np.zeros((4, 3), np.float32)
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no zip": (lambda path: path.write_bytes(b"codes"), "not a codes file"),
    "missing": (lambda path: None, "no such file"),
    "no b": (put(k=K3), "no array 'b'"),
    "objects": (put(k=np.array([{}] * 4, dtype=object), b=B3), "Python objects"),
    "k too large": (put(k=K3 + 4, b=B3), "k = 4; 0..3"),
    "k negative": (put(k=K3 - 1, b=B3), "k = -1"),
    "k of floats": (put(k=K3 + 0.5, b=B3), "integers"),
    "wrong E": (put(k=K3, b=B3[:, :2]), "(N, 3) is expected"),
    "unequal": (put(k=K3, b=B3[:2]), "4 of k and 2 of b"),
    "NaN": (put(k=K3, b=B3 * np.nan), "not finite"),
    "beyond float32": (put(k=K3, b=np.full((4, 3), 1e300)), "not finite"),
    "infinite mean": (put(k=K3, b=B3, mean=np.full(4, np.inf, np.float32)), "not finite"),
    "another model": (put(k=K3, b=B3, model=np.array("0" * 16)), "another model"),
    "huge k": (put(k=np.array([2**62] * 4), b=B3), "0..3"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_codes_file_is_refused_in_one_line(tmp_path: Path, checkpoint: Path, kind: str) -> None:
    make, words = HOSTILE[kind]
    path = tmp_path / "codes.npz"
    make(path)
    model, _, _ = restore(checkpoint)
    with pytest.raises(InputError) as caught:
        codes.write_npy(codes.decode_file(model, codes.CodesFile(path, model)), tmp_path / "x.npy", (4, 64))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "x.npy").exists()


def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    model, _, _ = restore(checkpoint)
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        for name, shape, kind in (("k", (10**12,), "<i4"), ("b", (10**12, 3), "<f4")):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(member, {"descr": kind, "fortran_order": False, "shape": shape})
    with pytest.raises(InputError, match="cut short"):
        codes.CodesFile(tmp_path / "c.npz", model)


def test_nothing_is_sampled_from_an_unfinished_run(tmp_path: Path, checkpoint: Path) -> None:
    model, stored, _ = restore(checkpoint)
    stored.extras.clear()
    assert read_latents(stored.extras, model, checkpoint) is None
    unfinished = save(stored, tmp_path, CheckpointName.parse(checkpoint.name))
    with pytest.raises(InputError, match="unfinished"):
        raise run("sample", unfinished, "-o", tmp_path / "x.npy").exception


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "CKPT", "-o", "x.txt"],
        ["sample", "CKPT", "-o", "x.jpg"],
        ["sample", "CKPT", "-n", "5", "--grid", "-o", "x.png"],
        ["sample", "CKPT", "--component", "4", "-o", "x.png"],
        ["decode", "CKPT", "missing.npz", "-o", "x.npy"],
        ["encode", "CKPT", "--split", "all", "-o", "x.npz"],
        ["report", "CKPT", "-o", "x.pdf"],
        ["figures", "CKPT", "--only", "atlsa"],
    ],
)
def test_wrong_use_is_an_input_error(tmp_path: Path, checkpoint: Path, arguments: list[str]) -> None:
    done = run(*[str(checkpoint) if part == "CKPT" else part for part in arguments])
    assert isinstance(done.exception, InputError), done.output


def test_sample_writes_pictures_and_arrays(tmp_path: Path, checkpoint: Path) -> None:
    for name, n, more in (("a.png", 9, []), ("b.png", 16, ["--grid"]), ("c.npy", 5000, ["--level", "7"])):
        assert run("sample", checkpoint, "-n", n, *more, "-o", tmp_path / name).exit_code == 0
    x = np.load(tmp_path / "c.npy")
    assert x.shape == (5000, 8, 8) and x.mean() == pytest.approx(7, abs=0.01)
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (12 + 4 * 60 - 4 + 12, 10 + 4 * 60 - 4 + 12)


def test_the_number_of_threads_does_not_change_a_byte(tmp_path: Path) -> None:
    values = np.random.default_rng(4).integers(0, 256, (3 * CHUNK + 77, 40)).astype(np.uint8)
    samples, model, threads = Samples(values), model_of(5, 40, 4), torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            write_codes(model, samples, tmp_path / f"{n}.npz")
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
