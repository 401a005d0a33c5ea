"""Charts of tables: the right variables, numbers with signs, and how many are left out."""

from dataclasses import replace

import numpy as np
import pytest

from llgae_cli.figures.style import encode, find_missing
from llgae_cli.figures.table import CHARTS, Bars, Matrix, Points, TableView, draw_chart
from llgae_cli.figures.table.contents import number, signed

HOSTILE = ("<script>alert(1)</script>", "two\nlines", "$x^2$", "quote \"' &", "n" * 300, "温度", "", "$")


def make_view(D: int = 8, K: int = 3, J: int = 2, N: int = 60, names: tuple[str, ...] | None = None) -> TableView:
    """Variable d has mean 100 d and standard deviation 10^-d (d < 4); in component 0 variable 1 lies 2 std above."""
    generator = np.random.default_rng(1)
    mean, std = 100.0 * np.arange(D), 10.0 ** -(np.arange(D) % 4)
    v = mean + std * generator.normal(size=(N, D))
    r2 = np.linspace(0.2, 0.99, D)
    centres = np.tile(mean, (K, 1))
    centres[0, min(1, D - 1)] += 2 * std[min(1, D - 1)]
    axes = np.zeros((K, J, D))
    if J and D > 2:
        axes[:, 0, D - 1], axes[:, 0, 2] = -std[D - 1], 0.5 * std[2]
    rmse = std * np.sqrt(1 - r2)
    return TableView(
        names=names or tuple(f"v{d + 1}" for d in range(D)), v=v, v_hat=v + 0.1 * std, k=np.arange(N) % K,
        a=generator.normal(size=(N, min(J, 2))), labels=None, classes=None, N=10 * N, mean=mean, std=std, r2=r2,
        rmse=rmse, rmse_in=np.tile(rmse, (K, 1)), order=np.arange(K), use=np.full(K, 1 / K), centres=centres,
        axes=axes, explained=np.full((K, J), 0.4), drawn=v[:4],
    )  # fmt: skip


@pytest.mark.numeric
def test_bars_of_a_mean_are_in_standard_units() -> None:
    chart = CHARTS["means"](make_view())
    assert chart is not None and len(chart.panels) == 3
    bars = chart.panels[0]
    assert isinstance(bars, Bars)
    assert bars.values[bars.names.index("v2")] == pytest.approx(2.0)
    assert bars.texts[bars.names.index("v2")] == "+2.00" and bars.texts[bars.names.index("v1")] == "0.00"


@pytest.mark.numeric
def test_an_axis_lists_its_leading_variables_with_signs() -> None:
    chart = CHARTS["axes"](make_view(D=400))
    assert chart is not None and len(chart.panels) == 3 * 2
    bars = chart.panels[0]
    assert isinstance(bars, Bars) and bars.names[:2] == ("v400", "v3") and len(bars.names) == 8
    assert bars.texts[:2] == ("−1.00", "+0.50") and bars.title == "Component 0, axis 1 (40%)"


def test_parity_shows_worst_and_best_variables() -> None:
    chart = CHARTS["parity"](make_view())
    assert chart is not None
    points = [panel for panel in chart.panels if isinstance(panel, Points)]
    assert [one.x_name for one in points] == ["v1", "v2", "v3", "v6", "v7", "v8"]
    assert [one.title.split(":")[0] for one in points] == ["Worst"] * 3 + ["Best"] * 3
    assert "600 test rows; 60 rows are drawn" in chart.note
    few = CHARTS["parity"](make_view(D=3))
    assert few is not None and [panel.title.split(":")[0] for panel in few.panels] == ["Worst", "Worst", "Best"]


def test_a_variable_that_does_not_vary_has_no_parity_and_divides_nothing() -> None:
    view = make_view(D=3)
    std, r2 = np.array([1.0, 0.0, 1.0]), np.array([0.5, np.nan, 0.9])
    with np.errstate(all="raise"):
        charts = [chart for chart in (make(replace(view, std=std, r2=r2)) for make in CHARTS.values()) if chart]
    assert len(charts) == len(CHARTS)
    named = {panel.x_name for chart in charts if chart.title == "Parity" for panel in chart.panels}  # type: ignore[union-attr]
    assert named == {"v1", "v3"}


def test_of_many_variables_twenty_are_shown_and_the_others_counted() -> None:
    view = make_view(D=400)
    for name in ("means", "residuals", "samples"):
        chart = CHARTS[name](view)
        assert chart is not None and "of 400 variables; 380 are left out" in chart.note
        panel = chart.panels[0]
        assert len(panel.names if isinstance(panel, Bars) else panel.rows) == 20  # type: ignore[union-attr]
    assert "left out" not in (CHARTS["means"](make_view()) or chart).note


def test_residuals_are_sorted_by_the_worst_variable() -> None:
    chart = CHARTS["residuals"](make_view())
    assert chart is not None
    matrix = chart.panels[0]
    assert isinstance(matrix, Matrix) and matrix.rows == tuple(f"v{d}" for d in range(1, 9))
    assert matrix.columns == ("R²", "RMSE", "all", "k = 0", "k = 1", "k = 2")
    assert matrix.texts[0][0] == "0.2000" and np.nanmax(matrix.shades) == pytest.approx(1.0)


def test_codes_are_coloured_by_label_or_by_a_variable() -> None:
    view = make_view()
    labelled = CHARTS["codes"](replace(view, labels=view.k, classes=("low", "1", "high")))
    assert labelled is not None and labelled.legend == ("low", "class 1", "high")
    many = CHARTS["codes"](replace(view, labels=np.arange(60) % 30))
    assert many is not None and len(many.legend) == 6 and many.legend[-1] == "others"
    coloured = CHARTS["codes"](replace(view, colour=0))
    assert coloured is not None and len(coloured.legend) == 5 and "value of v1" in coloured.note


def test_the_map_is_over_the_chosen_variables_or_the_leading_ones() -> None:
    view = make_view()
    for over, names in (((3, 5), ("v4", "v6")), (None, ("v8", "v3"))):
        chart = CHARTS["map"](replace(view, over=over))
        assert chart is not None
        panel = chart.panels[0]
        assert isinstance(panel, Points) and (panel.x_name, panel.y_name) == names
    assert CHARTS["map"](make_view(D=1)) is None


def test_the_atlas_has_every_axis_up_to_three_in_own_units() -> None:
    chart = CHARTS["atlas"](make_view(J=3))
    assert chart is not None and len(chart.panels) == 3 * 3
    matrix = chart.panels[0]
    assert isinstance(matrix, Matrix) and matrix.columns == ("−2 sd", "−1 sd", "mean", "+1 sd", "+2 sd")
    assert matrix.rows[0] == "v8" and matrix.texts[0] == (
        "700.00200",
        "700.00100",
        "700.00000",
        "699.99900",
        "699.99800",
    )
    without = CHARTS["atlas"](make_view(J=0))
    assert without is not None and [panel.title for panel in without.panels] == [f"Component {k}" for k in range(3)]
    assert CHARTS["axes"](make_view(J=0)) is None and CHARTS["codes"](make_view(J=0)) is None


def test_numbers_show_a_hundredth_of_the_standard_deviation() -> None:
    assert number(101325.4321, 0.5) == "101325.432" and number(-0.00012, 1.0) == "0.00"
    assert number(float("nan")) == "—" and number(1e12, 1e9) == "1e+12" and number(-2.5e-9, 1e-9) == "−2.5e−09"
    assert signed(-0.001) == "0.00" and signed(-1.5) == "−1.50"


@pytest.mark.slow
@pytest.mark.parametrize("name", CHARTS)
def test_hostile_names_are_drawn(name: str) -> None:
    chart = CHARTS[name](make_view(names=HOSTILE))
    assert chart is not None
    figure = draw_chart(chart, theme="dark")
    text = encode(figure, "svg").decode()
    assert "<script" not in text and figure.get_size_inches()[1] < 30
    if find_missing(figure):  # the viewer's fonts draw what those here lack
        assert "温度" in text
