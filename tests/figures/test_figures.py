"""Figures are right for every kind of model and data, and look the same each time."""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pictured  # tests/pictured.py
import pytest
from PIL import Image
from typer.testing import CliRunner

from llgae_cli import figures
from llgae_cli.cli.app import app
from llgae_cli.evaluation import Evaluated, evaluate_checkpoint
from llgae_cli.figures import cells, comparison, components, reconstructions, training_curve
from llgae_cli.figures.contact_sheet import find_levels
from llgae_cli.figures.sweep import name_row, panels_by_key, rate_distortion


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return evaluate_checkpoint(pictured.train(tmp_path_factory.mktemp("figures"), epochs=15, restarts=12))


KINDS = {
    "K = 1": {"K": 1},
    "E = 0": {"embed_dim": 0},
    "K = 300": {"K": 300, "embed_dim": 1, "epochs": 1},
    "lines": {"task": pictured.vectors, "K": 3, "embed_dim": 2},
    "colours": {"task": pictured.colours, "K": 3, "embed_dim": 2},
    "uncentred": {"centring": "none", "K": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_can_be_drawn(tmp_path: Path, kind: str) -> None:
    keys = dict(KINDS[kind])
    if callable(keys.get("task")):
        keys["task"] = keys["task"](tmp_path)  # type: ignore[operator]
    evaluated = evaluate_checkpoint(pictured.train(tmp_path, **keys))
    written = figures.write_figures(evaluated, tmp_path / "out", kinds=("png",))
    named = {path.stem for path in written}
    without = {"usage", "classes"} if evaluated.model.K == 1 else {"classes"} if evaluated.labels is None else set()
    table = len(evaluated.task.shape) == 1
    without |= {"reconstructions"} if table else set(figures.NAMES) - set(figures.FIGURES)
    assert named == set(figures.NAMES) - without
    for path in written:
        with Image.open(path) as file:
            image = np.asarray(file.convert("L"))
        assert image.std() > 1, f"{path.name} is blank"
        assert (image[:3] > 240).all() and (image[-3:] > 240).all(), f"{path.name}: something is cut off"


def test_the_picture_holds_the_very_pixels() -> None:
    v = np.arange(2 * 6, dtype=float).reshape(1, 12) * 20
    looks = cells.Looks((2, 6), 0, 255)
    figure = reconstructions.draw_sheet([cells.Row(v)], looks, "", "light", margin=12)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., 0]  # type: ignore[attr-defined]
    H, W = looks.size
    inside = drawn[10 : 10 + H, 12 : 12 + W]
    assert np.array_equal(inside[H // 4 :: H // 2, W // 12 :: W // 6], np.rint(v.reshape(2, 6)).astype(np.uint8))


def test_a_narrow_sheet_is_as_wide_as_its_title() -> None:
    figure = reconstructions.draw_sheet(
        [cells.Row(np.zeros((1, 4)))], cells.Looks((2, 2), 0, 1), "A title of many words", "light"
    )
    figure.canvas.draw()
    assert figure.texts[0].get_window_extent().x1 < figure.bbox.x1


def test_residuals_are_signed_colours() -> None:
    looks = cells.Looks((1, 2, 1), 0, 255)
    assert not looks.is_image
    looks = cells.Looks((2, 2), 0, 255)
    figure = reconstructions.draw_sheet(
        [cells.Row(np.array([[-128.0, 0, 0, 128]]), residual=True)], looks, "", "light", margin=12
    )
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba()).astype(int)  # type: ignore[attr-defined]
    below, none, above = drawn[20, 20], drawn[20, 60], drawn[60, 60]
    assert below[2] > below[0] + 50 and above[0] > above[2] + 50 and none[:3].min() > 240


def test_typical_best_and_worst_are_what_they_say() -> None:
    residual = np.array([5.0, 1, 9, 3, 7])
    chosen = reconstructions.rank_samples(residual, 3)
    assert residual[chosen["best"]].tolist() == [1, 3, 5]
    assert residual[chosen["worst"]].tolist() == [9, 7, 5]
    assert residual[chosen["typical"]].tolist() == [3, 5, 7]
    assert reconstructions.pick_by_class(residual, np.array([0, 0, 1, 0, 1])) == {0: 3, 1: 2}


def test_bars_lines_and_cells_show_the_numbers() -> None:
    figure = components.usage(np.array([10, 30, 60]), np.array([1, 4, 5]))
    axes = figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.6, 0.3, 0.1])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "1", "0"]
    matrix = components.class_matrix(
        np.array([0, 0, 1, 2]), np.array([0, 0, 0, 1]), 3, ("a", "b$_$"), np.array([1, 0, 2])
    )
    assert matrix.axes[0].images[0].get_array().tolist() == [[1 / 3, 2 / 3, 0], [0, 0, 1]]
    lines = components.spectrum(np.array([[8.0, 2], [4, 1]]), np.array([1, 0]), 4).axes[0].lines
    assert sorted(line.get_ydata().tolist() for line in lines) == [[1.0, 0.25], [2.0, 0.5]]


def test_the_training_curve_has_units_and_both_clocks() -> None:
    history = [{"epoch": i, "seconds": 2.0 * i, "test_mean_l2": 9.0 - i, "train_mean_l2": 8.0 - i} for i in (1, 2, 3)]
    by_epoch, by_time = training_curve.training_curve(history).axes
    assert "grey levels² per pixel" in by_epoch.get_ylabel() and "seconds" in by_time.get_xlabel()
    assert by_epoch.lines[0].get_xdata().tolist() == [1, 2, 3] and by_time.lines[1].get_ydata().tolist() == [8, 7, 6]
    assert training_curve.training_curve([]).axes


def test_the_training_curve_shows_each_start_and_which_was_used() -> None:
    history = [{"epoch": 1, "seconds": 2.0, "test_mean_l2": 9.0, "train_mean_l2": 8.0}]
    starts, by_epoch, _ = training_curve.training_curve(history, {"1": 8.5, "2": 8.2, "3": 8.7}).axes
    assert [line.get_ydata()[0] for line in starts.lines] == [8.5, 8.2, 8.7]
    assert [line.get_mfc() == line.get_color() for line in starts.lines] == [False, True, False]
    assert [text.get_text() for text in starts.texts] == ["8.5000", "8.2000", "8.7000"]
    assert "grey levels² per pixel" in starts.get_ylabel() and not by_epoch.get_ylabel()
    many = training_curve.training_curve(history, {str(i): 9.0 - i / 100 for i in range(1, 31)}).axes[0]
    assert len(many.lines) == 30 and not many.texts and len(many.get_xticks()) <= 6


def test_axes_of_rate_and_distortion_have_ticks_and_hold_all_points() -> None:
    rows = [
        {"bits_float": 30.0 + i, "bits_coded": 5.0 + i, "mean_l2": 60.0 + 2 * i, "mean_l2_coded": 61.0 + 5 * i, "K": i}
        for i in range(9)
    ]
    for axes in rate_distortion(rows, "mean_l2").axes:
        low, high = axes.get_ylim()
        assert low < 60 and high > 101 and sum(low <= tick <= high for tick in axes.get_yticks()) >= 3
        left, right = axes.get_xlim()
        assert sum(left <= tick <= right for tick in axes.get_xticks()) >= 2
        x = axes.lines[0].get_xdata()
        assert left < min(x) and max(x) < right


def test_a_heading_never_overlaps_the_next() -> None:
    looks = cells.Looks((12, 9), 0, 1)
    row = cells.Row(np.zeros((3, 108)), captions=["automobile factory", "Ankle boot", "99999"])
    figure = reconstructions.draw_sheet([row], looks, "", "light", margin=60)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert all(one.x1 <= other.x0 for one, other in itertools.pairwise(boxes))
    assert figure.axes[0].texts[0].get_text().endswith("…")


@pytest.mark.parametrize("bits", [None, 79.9])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_comparison_has_tiles_that_are_seen_and_room_for_long_names(n: int, bits: float | None) -> None:
    looks = cells.Looks((28, 28), 0, 255)
    names = ["pca E=64", *(f"deep-llgae K=11 E=20 restarts={i} shrinkage=auto" for i in range(n - 1))]
    rows = [comparison.Reconstructed(name, 1234.56, np.zeros((2, 784)), bits) for name in names[:n]]
    figure = comparison.comparison(np.zeros((2, 784)), ["a", "b"], rows, [], looks)
    figure.canvas.draw()
    texts = [text.get_window_extent() for text in figure.axes[0].texts]
    assert all(box.x0 >= 0 for box in texts) and figure.bbox.height >= 84 * (n + 1)
    beside = sorted(box.y0 for box in texts if box.x1 < figure.axes[0].get_window_extent().x0)
    heights = [box.height for box in texts]
    assert len(beside) == n + 1 and min(b - a for a, b in itertools.pairwise(beside)) > min(heights)


def test_points_of_a_sweep_name_only_keys_that_differ_for_their_model() -> None:
    rows = [{"model": "llgae", "K": K, "embed_dim": 20} for K in (5, 11)]
    assert [name_row(row, rows) for row in rows] == ["K=5", "K=11"]
    rows += [{"model": "kmeans", "K": K, "embed_dim": 0} for K in (5, 50)] + [{"model": "pca", "K": 1, "embed_dim": 9}]
    assert [name_row(row, rows) for row in rows[2:]] == ["kmeans K=5", "kmeans K=50", "pca"]


def test_a_sweep_is_drawn_by_its_keys() -> None:
    rows = [{"mean_l2": 5.0, "K": 1}, {"mean_l2": 3.0, "K": 10}, {"mean_l2": 4.0, "K": 10}, {"mean_l2": None, "K": 2}]
    figure = panels_by_key(rows, ["K"])
    assert figure is not None and figure.axes[0].lines[1].get_ydata().tolist() == [5.0, 3.0]
    assert panels_by_key([], ["K"]) is None


@pytest.mark.slow
def test_the_same_figure_gives_the_same_file(tmp_path: Path, evaluated: Evaluated) -> None:
    for name in ("one", "two"):
        figures.write_figures(evaluated, tmp_path / name, ("training", "usage"))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_drawing_leaves_matplotlib_as_it_was(evaluated: Evaluated) -> None:
    import matplotlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = dict(matplotlib.rcParams)
        figures.FIGURES["atlas"](evaluated, "dark")
        assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_train_draws_beside_the_checkpoint_unless_told_not_to(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "task: subspaces\nK: 2\nembed-dim: 1\nepochs: 1\nrestarts: 1\nmoves: 0\ndevice: cpu\n"
    )
    arguments = ["train", "-c", str(tmp_path / "c.yaml"), "-q", "-S"]
    for folder, more in (("with", []), ("without", ["-S", "figures=false"])):
        done = CliRunner().invoke(app, [*arguments, f"checkpoint-dir={tmp_path / folder}", *more])
        assert done.exit_code == 0, done.output
    assert sorted(path.name.rpartition(".pkl")[2].split(".")[-2:] for path in (tmp_path / "with").glob("*.png")) == [
        ["reconstructions", "png"],
        ["training", "png"],
    ]
    assert len(list((tmp_path / "with").iterdir())) == 3 and len(list((tmp_path / "without").iterdir())) == 1


def test_a_figure_that_fails_loses_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(figures, "write_after_training", broken)
    (tmp_path / "c.yaml").write_text(
        "task: subspaces\nK: 2\nembed-dim: 1\nepochs: 1\nrestarts: 1\nmoves: 0\ndevice: cpu\n"
    )
    done = CliRunner().invoke(app, ["train", "-c", str(tmp_path / "c.yaml"), "-q", "-S", f"checkpoint-dir={tmp_path}"])
    assert done.exit_code == 0 and "no ink" in done.output
    assert len(list(tmp_path.glob("*.pkl"))) == 1


def test_a_sample_gets_the_mean_of_the_nearest_training_image() -> None:
    x = np.array([[1.0, -1.0, 0.0], [-2.0, 1.0, 1.0]])
    assert find_levels(x[::-1] * 0.9, x, np.array([200.0, 30.0])).tolist() == [[30.0], [200.0]]
