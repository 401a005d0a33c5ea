"""The curve of rate and error, and the matrix of bits."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pictured  # tests/pictured.py
import pytest

from llgae_cli import figures
from llgae_cli.evaluation import evaluate_checkpoint
from llgae_cli.figures.rate import bit_matrix, rate_curve


def test_the_curve_shows_the_points_and_marks_the_own_step() -> None:
    points = [(1.0, 90.0, 10.0), (2.0, 60.0, 40.0), (4.0, 30.0, 300.0)]
    figure = rate_curve(points, 2.0, 500)
    figure.canvas.draw()
    (axes,) = figure.axes
    curve, own = axes.lines
    assert list(zip(*curve.get_data(), strict=True)) == [(90, 10), (60, 40), (30, 300)]
    assert list(zip(*own.get_data(), strict=True)) == [(60, 40)] and axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    assert low < 10 and high > 300 and "500" in axes.get_title(loc="left")


@pytest.mark.parametrize("points", [[(1.0, 0.0, 0.0)], [(1.0, 5.0, 0.0), (2.0, 1.0, 1e9)], [(1e-9, 1e4, 1e-12)]])
def test_a_curve_of_any_numbers_can_be_drawn(points: list[tuple[float, float, float]]) -> None:
    rate_curve(points, 1.0, 1).canvas.draw()


def test_the_matrix_has_the_components_that_are_used_by_their_share() -> None:
    bits = np.arange(12.0).reshape(4, 3)
    figure = bit_matrix([bits], [np.array([0.2, 0.0, 0.5, 0.3])])
    assert figure is not None
    figure.canvas.draw()
    (image,) = figure.axes[0].images
    assert np.array_equal(np.asarray(image.get_array()), bits[[2, 3, 0]])
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["2 (50.0%)", "3 (30.0%)", "0 (20.0%)"]


def test_levels_stand_side_by_side_and_those_without_latents_are_left_out() -> None:
    use = np.full(2, 0.5)
    figure = bit_matrix([np.ones((2, 3)), np.ones((2, 0)), np.zeros((2, 5))], [use] * 3)
    assert figure is not None
    figure.canvas.draw()
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["latent of level 1", "latent of level 3"]
    assert bit_matrix([np.ones((2, 0))], [use]) is None


@pytest.mark.slow
@pytest.mark.numeric
def test_a_checkpoint_has_both_only_with_a_codec(tmp_path: Path) -> None:
    affine = evaluate_checkpoint(pictured.train(tmp_path / "affine"))
    assert [path.stem for path in figures.write_figures(affine, tmp_path, ("rate", "bits"), ("png",))] == [
        "rate",
        "bits",
    ]
    assert all(a.bits > b.bits for a, b in pairwise(affine.rate_curve))
    network = evaluate_checkpoint(pictured.train(tmp_path / "net", model="gae", decoder="mlp", beta=1e-5, width=8))
    assert figures.write_figures(network, tmp_path, ("rate", "bits"), ("png",)) == []
