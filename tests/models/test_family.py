"""Every model passes through every command: train, eval, encode, decode, sample, figures, report, compare."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from llgae_cli import figures
from llgae_cli.cli.app import app
from llgae_cli.config import parse_config
from llgae_cli.errors import InputError
from llgae_cli.evaluation import evaluate_checkpoints
from llgae_cli.factory import MODELS
from llgae_cli.figures.tradeoffs import separate, tradeoffs
from llgae_cli.models import LLGAE
from llgae_cli.report import page
from llgae_cli.tasks import load_task, subspaces

pytestmark = [pytest.mark.numeric, pytest.mark.slow]
K, E, D = 3, 2, 64
SMALL = {"width": 16, "channels": 4}
FAMILY: dict[str, dict[str, Any]] = {
    "llgae": {},
    "llgae by gradient": {"model": "llgae", "trainer": "gradient", "start": "closed-form"},
    "pca": {},
    "kmeans": {},
    "soft-llgae": {},
    "soft-llgae with an embedding": {"model": "soft-llgae", "gates": "embedding"},
    "gae": {"decoder": "mlp", "beta": 1e-5, "width": 16},
    "gae, linear": {"model": "gae", "decoder": "linear"},
    "deep-llgae": SMALL,
    "residual": {},
    "shift": {},
    "autoencoder": SMALL,
    "denoising-autoencoder": SMALL,
}
SYMBOLS = {"residual": (K,), "shift": (3, 3)}  # besides k
NUMBERS = {"kmeans": 0, "residual": 2 * E, "soft-llgae": E + K, "soft-llgae with an embedding": E + 2}  # in b, else E
WITHOUT_COMPONENTS = {
    "pca",
    "soft-llgae",
    "autoencoder",
    "denoising-autoencoder",
}  # no sample belongs to one of several

WITH_CODEC = {"llgae", "pca", "kmeans", "residual", "shift", "deep-llgae"}  # gae here starts at zero


def model_of(member: str) -> str:
    return str(FAMILY[member].get("model", member))


def called(*arguments: str | Path) -> Any:
    """The JSON that a command prints."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    assert "warning" not in done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", autouse=True)
def few_samples() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subspaces, "TRAIN", 240)
        patch.setattr(subspaces, "TEST", 60)
        patch.setattr(page, "FIGURES", {"spectrum": figures.FIGURES["spectrum"]})  # the others are drawn below
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("family")


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Any]:
    """The JSON that `llgae train` prints for each model."""
    results = {}
    for at, (member, more) in enumerate(FAMILY.items()):
        lines = {
            "task": "subspaces", "model": member, "embed-dim": E, "epochs": 2, "restarts": 1, "moves": 0,
            "batch-size": 60, "device": "cpu", "threads": 1, "figures": False, "checkpoint-dir": str(folder / str(at)),
            "save-every": 1, **more,
        }  # fmt: skip
        if model_of(member) == "kmeans":
            del lines["embed-dim"]
        if model_of(member) not in ("pca", "autoencoder", "denoising-autoencoder"):
            lines["K"] = K
        config = parse_config(lines)
        used = {key: value for key, value in lines.items() if key in more or config.explain_unused(key) is None}
        (folder / f"{at}.yaml").write_text(json.dumps(used))
        results[member] = called("train", "-c", folder / f"{at}.yaml")
    return results


def test_every_model_is_tested() -> None:
    assert {model_of(member) for member in FAMILY} == set(MODELS)


@pytest.mark.parametrize("member", FAMILY)
def test_a_model_passes_through_every_command(member: str, trained: dict[str, Any], tmp_path: Path) -> None:
    mean_l2, checkpoint = trained[member]["mean_l2"], trained[member]["checkpoint"]

    measured = called("eval", checkpoint)
    assert measured["mean_l2"] == pytest.approx(mean_l2, rel=1e-5) and measured["warnings"] == []
    assert len(measured["usage"]) == (1 if model_of(member) in WITHOUT_COMPONENTS else K)
    plainly = CliRunner().invoke(app, ["eval", checkpoint]).stdout
    assert ("components" in plainly) == (model_of(member) not in WITHOUT_COMPONENTS)

    assert called("encode", checkpoint, "-o", tmp_path / "c.npz")["mean_l2"] == pytest.approx(mean_l2, rel=1e-5)
    with np.load(tmp_path / "c.npz") as codes:
        assert codes["b"].shape == (60, NUMBERS.get(member, E)) and codes["k"].shape == (60,)
        assert ("s" in codes) == (member in SYMBOLS)
        if member in SYMBOLS:
            assert codes["s"].shape[1] == len(SYMBOLS[member]) and (codes["s"] < SYMBOLS[member]).all()

    assert called("decode", checkpoint, tmp_path / "c.npz", "-o", tmp_path / "x.npy")["shape"] == [8, 8]
    test = load_task("subspaces", Path(), "none", 28).test
    x = test.rows(slice(0, None)).numpy()
    assert np.square(x - np.load(tmp_path / "x.npy").reshape(60, D)).mean() == pytest.approx(mean_l2, rel=1e-4)

    for more in ([], ["--grid"]):
        called("sample", checkpoint, "-n", "9", *more, "-o", tmp_path / "s.npy")
        drawn = np.load(tmp_path / "s.npy")
        assert drawn.shape == (9, 8, 8) and np.isfinite(drawn).all() and np.abs(drawn).max() < 2000

    written = called("figures", checkpoint, "-o", tmp_path / "drawn", "--kind", "png")["figures"]
    names = {Path(path).stem for path in written}
    left_out = {"usage", "classes"} if model_of(member) in WITHOUT_COMPONENTS else set()
    left_out |= set() if model_of(member) in WITH_CODEC else {"rate", "bits"}
    left_out |= {"bits"} if model_of(member) == "kmeans" and "bits" not in names else set()  # without latents
    assert names == set(figures.FIGURES) - left_out

    called("report", checkpoint, "-o", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    lead, numbers = text.split('class="lead">')[1].split("</p>")[0], text.split('id="numbers"')[1].split("</table>")[0]
    assert lead.startswith(model_of(member))
    assert ("Components in use" in numbers) == (model_of(member) not in WITHOUT_COMPONENTS)
    assert ("is not in the explorer" in text) == (model_of(member) in ("residual", "shift", "soft-llgae"))


@pytest.fixture(scope="module")
def compared(trained: dict[str, Any], folder: Path) -> dict[str, Any]:
    paths = [one["checkpoint"] for one in trained.values()]
    return called("compare", *paths, "-o", folder / "compare", "--kind", "png")  # type: ignore[no-any-return]


def test_the_whole_family_is_compared(compared: dict[str, Any], trained: dict[str, Any], folder: Path) -> None:
    rows = compared["checkpoints"]
    assert {Path(path).name for path in compared["figures"]} == {"tradeoffs.png", "comparison.png"}
    assert all((folder / "compare" / name).stat().st_size > 5000 for name in ("tradeoffs.png", "comparison.png"))
    assert compared["threads"] >= 1 and compared["test_samples"] == 60 and len(rows) == len(FAMILY)
    assert [row["mean_l2"] for row in rows] == sorted(row["mean_l2"] for row in rows)
    assert len({row["name"] for row in rows}) == len(FAMILY)

    row_of = {row["checkpoint"]: row for row in rows}
    for member, one in trained.items():
        row = row_of[one["checkpoint"]]
        assert row["mean_l2"] == pytest.approx(one["mean_l2"], rel=1e-5)
        assert (row["train_mean_l2"], row["train_seconds"]) == (one["train_mean_l2"], one["seconds"])
        symbols = (1 if model_of(member) in WITHOUT_COMPONENTS else K, *SYMBOLS.get(member, ()))
        assert row["E"] == NUMBERS.get(member, E)
        assert row["bits_float"] == pytest.approx(math.log2(math.prod(symbols)) + 32 * row["E"])
        assert row["bits_coded"] >= 0 and row["encode_seconds"] > 0
        assert row["bits_estimated"] == (model_of(member) not in WITH_CODEC)
    affine = K * D * (E + 1)
    parameters = {member: row_of[one["checkpoint"]]["parameters"] for member, one in trained.items()}
    assert parameters["llgae"] == parameters["gae, linear"] == affine and parameters["residual"] == 2 * affine
    assert parameters["kmeans"] == K * D and parameters["pca"] == D * (E + 1)


def test_every_member_has_a_rate(compared: dict[str, Any]) -> None:
    for row in compared["checkpoints"]:
        assert row["mean_l2_coded"] >= 0 and math.isfinite(row["bits_coded"]), row["name"]


def test_models_are_compared_at_the_same_bits(trained: dict[str, Any], tmp_path: Path) -> None:
    paths = [trained[member]["checkpoint"] for member in ("pca", "deep-llgae", "llgae", "kmeans")]
    compared = called("compare", *paths, "-o", tmp_path / "drawn", "--kind", "png", "--bits", 60)
    assert {Path(path).name for path in compared["figures"]} == {"tradeoffs.png", "comparison.png", "same_bits.png"}
    errors = []
    for row in compared["checkpoints"]:
        file = called("compress", row["checkpoint"], "-o", tmp_path / f"{len(errors)}.llgae", "--bits", 60)
        assert row["file_samples"] == file["n"] == 60 and row["file_bits"] <= 60
        assert row["file_bits"] == pytest.approx(file["bits_per_row"], abs=2)
        errors.append(row["file_mean_squared_error"])
        assert errors[-1] == pytest.approx(file["mean_squared_error"], rel=0.1)
    assert errors == sorted(errors) and len(set(errors)) == 4


@pytest.mark.parametrize("member, bits, reason", [("autoencoder", 60, "has no codec"), ("llgae", 9, "bits 9: ")])
def test_a_rate_that_a_model_does_not_reach_is_refused_in_one_line(
    member: str, bits: float, reason: str, trained: dict[str, Any], tmp_path: Path
) -> None:
    paths = [trained[one]["checkpoint"] for one in ("pca", member)]
    done = CliRunner().invoke(app, ["compare", *paths, "-o", str(tmp_path / "no"), "--bits", str(bits)])
    line = str(done.exception)
    assert isinstance(done.exception, InputError) and done.exception.exit_code == 2
    assert f".pkl: {reason}" in line and "\n" not in line and not (tmp_path / "no").exists()


def test_the_table_is_plain_in_a_pipe(trained: dict[str, Any], tmp_path: Path) -> None:
    paths = [trained[member]["checkpoint"] for member in ("kmeans", "llgae")]
    done = CliRunner().invoke(app, ["compare", *paths, "-o", str(tmp_path), "--kind", "svg,png", "--theme", "dark"])
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in ("tradeoffs", "comparison") for kind in ("svg", "png")
    }
    head, *rows = (line.split("\t") for line in done.stdout.splitlines())
    assert done.exit_code == 0 and [row[0] for row in rows] == ["llgae", "kmeans"]
    assert {len(row) for row in rows} == {len(head)} and head[0] == "model" and head[-1] == "checkpoint"
    assert "thread" in done.stderr and "tradeoffs.png" in done.stderr


def test_an_unfinished_run_is_compared_by_the_codes_of_training_samples(
    trained: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    finished = Path(trained["llgae by gradient"]["checkpoint"])
    unfinished = next(path for path in finished.parent.glob("*_1_*.pkl"))
    done = CliRunner().invoke(app, ["compare", str(finished), str(unfinished), "-o", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    rows = {row["checkpoint"]: row for row in json.loads(done.stdout)["checkpoints"]}
    early, late = rows[str(unfinished)], rows[str(finished)]
    assert "unfinished run" in done.stderr and early["train_mean_l2"] > 0
    assert early["bits_estimated"] and not late["bits_estimated"] and early["bits_coded"] > 0


def test_checkpoints_of_other_data_are_refused_in_one_line(trained: dict[str, Any], folder: Path) -> None:
    (folder / "other.yaml").write_text(
        f"task: subspaces\nK: 2\nembed-dim: 1\nepochs: 1\nrestarts: 1\nmoves: 0\nseed: 3\nfigures: false\n"
        f"checkpoint-dir: {folder / 'other'}\n"
    )
    other = called("train", "-c", folder / "other.yaml")["checkpoint"]
    with pytest.raises(InputError, match="other data .* than .*compare checkpoints of one task") as refusal:
        evaluate_checkpoints([Path(trained["pca"]["checkpoint"]), Path(other)], one_task=True)
    assert refusal.value.exit_code == 2 and "\n" not in str(refusal.value)


def test_initialise_from_copies_the_parameters() -> None:
    generator = torch.Generator().manual_seed(1)
    affine, model = LLGAE(K, D, E), LLGAE(K, D, E)
    x = torch.randn(20, D, generator=generator)
    affine.initialise(x, generator)
    model.initialise_from(affine, x, generator)
    torch.testing.assert_close(model.decode(model.encode(x)), affine.decode(affine.encode(x)))
    model.mu.data.zero_()
    assert bool(affine.mu.any())  # a copy, not the same tensor


def test_names_keep_apart_and_near_their_marks() -> None:
    at = np.array([0.5, 0.1, 0.51, 0.52, 0.9])
    places = separate(at, 0.1)
    assert np.all(np.diff(places[np.argsort(at)]) >= 0.1 - 1e-12)
    assert places[[1, 4]] == pytest.approx([0.1, 0.9]) and places[[0, 2, 3]].mean() == pytest.approx(0.51)


@pytest.mark.parametrize("mean_l2", [[0.0, 0.0], [5.0, 5.0], [1e-3, 1e3]])
def test_tradeoffs_of_any_numbers_can_be_drawn(mean_l2: list[float]) -> None:
    rows = [
        {"name": f"${i}", "mean_l2": value, "mean_l2_coded": value, "bits_float": 640.0 * i, "bits_coded": 80.0 * i,
         "train_seconds": 1.0 + i, "encode_seconds": 1e-6}
        for i, value in enumerate(mean_l2)
    ]  # fmt: skip
    figure = tradeoffs(rows)
    figure.canvas.draw()
    assert len(figure.axes) == 3
