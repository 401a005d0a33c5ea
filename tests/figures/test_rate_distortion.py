"""The picture of rate-distortion curves shows the numbers, and where another method is better."""

import numpy as np
import pytest

from llgae_cli.figures import style
from llgae_cli.figures.rate_distortion import Curve, choose_marks, divide, rate_distortion

BITS = np.array([20.0, 80, 320])
OURS = Curve("llgae", "ours", BITS, np.array([1000.0, 400, 160]))
WORSE = Curve("PQ", "quantiser", BITS, np.array([2000.0, 800, 320]))
NETWORK = Curve("autoencoder", "checkpoint", BITS[:2], np.array([800.0, 320]))
BETTER = Curve("AVIF", "image codec", np.array([160.0, 640]), np.array([200.0, 50]))


@pytest.mark.numeric
def test_the_ratio_is_taken_where_both_have_a_value() -> None:
    bits, ratio = divide(WORSE, OURS)
    assert bits.tolist() == BITS.tolist() and ratio == pytest.approx([2, 2, 2])
    bits, ratio = divide(BETTER, OURS)
    assert bits.tolist() == [160, 320] and (ratio < 1).all()
    assert len(divide(Curve("JPEG", "image codec", np.array([900.0]), np.array([9.0])), OURS)[0]) == 0


@pytest.mark.numeric
def test_both_panels_show_every_curve_and_the_legend_names_it() -> None:
    figure = rate_distortion([OURS, WORSE, BETTER], data="images_$")
    errors, ratios = figure.axes
    for curve, line in zip((OURS, WORSE, BETTER), errors.lines, strict=True):
        assert np.array_equal(line.get_xdata(), curve.bits) and np.array_equal(line.get_ydata(), curve.error)
    assert len(ratios.lines) == 3 and ratios.lines[0].get_ydata() == pytest.approx([1, 1, 1])
    low, high = ratios.get_ylim()
    assert low < min(ratios.lines[2].get_ydata()) and high > 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "llgae", "quantisers (faiss)", "PQ", "image codecs", "AVIF",
    ]  # fmt: skip


def test_a_checkpoint_has_its_own_colour_and_stands_below_ours_in_the_legend() -> None:
    figure = rate_distortion([NETWORK, WORSE, OURS], data="images")
    lines = figure.axes[0].lines
    assert len({line.get_color() for line in lines}) == 3
    assert figure.axes[1].lines[0].get_ydata() == pytest.approx([0.8, 0.8])
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["llgae", "autoencoder"]


def test_methods_of_a_kind_have_marks_of_their_own() -> None:
    marks = choose_marks([OURS, WORSE, BETTER, WORSE])
    assert marks[1] != marks[3] and marks[0] == marks[1] == marks[2]


@pytest.mark.parametrize(
    "curves", [[OURS], [WORSE], [WORSE, BETTER], [NETWORK]], ids=["ours", "a peer", "peers", "a checkpoint"]
)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_drawn_without_some_of_the_curves(curves: list[Curve], theme: style.Theme) -> None:
    assert style.encode(rate_distortion(curves, data="images", theme=theme), "png").startswith(b"\x89PNG")
