"""The arrays of a table's charts, against numpy on the whole table; figures of a table as files."""

from pathlib import Path

import numpy as np
import pictured  # tests/pictured.py
import pytest
from typer.testing import CliRunner

from llgae_cli import figures
from llgae_cli.cli.app import app
from llgae_cli.errors import InputError
from llgae_cli.evaluation import Evaluated, evaluate_checkpoint
from llgae_cli.figures.table.album import find_error_unit, view_table


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = tmp_path_factory.mktemp("table")
    return evaluate_checkpoint(pictured.train(folder, task=pictured.vectors(folder, D=6), K=3, centring="none"))


@pytest.mark.numeric
def test_statistics_are_those_of_all_rows(evaluated: Evaluated) -> None:
    view, rows = view_table(evaluated), np.arange(evaluated.split_samples.N)
    v, v_hat = evaluated.originals(rows), evaluated.reconstructions(rows)
    error = np.square(v.astype(np.float64) - v_hat)
    assert view.r2 == pytest.approx(1 - error.mean(0) / v.var(0, dtype=np.float64), abs=1e-4)
    assert view.rmse == pytest.approx(np.sqrt(error.mean(0)), rel=1e-4)
    assert view.mean == pytest.approx(v.mean(0, dtype=np.float64), abs=1e-5)
    for k in np.unique(evaluated.k):
        assert view.rmse_in[k] == pytest.approx(np.sqrt(error[evaluated.k == k].mean(0)), rel=1e-4)


@pytest.mark.numeric
def test_rows_and_walks_are_in_the_variables_units(evaluated: Evaluated) -> None:
    view, scaling = view_table(evaluated), evaluated.split_samples.scaling
    assert scaling is not None
    rows = np.arange(len(view.v))
    assert view.v == pytest.approx(evaluated.originals(rows), abs=1e-5)
    assert view.v_hat == pytest.approx(evaluated.reconstructions(rows), abs=1e-5)
    for k in range(3):
        assert view.centres[k] == pytest.approx(evaluated.decode(k, evaluated.axes.mean[k][None])[0], abs=1e-5)
        squared = np.square(view.axes[k] / scaling.scale).sum(1)
        assert squared == pytest.approx(evaluated.axes.variance[k].numpy(), rel=1e-3)


def test_choices_of_variables(evaluated: Evaluated) -> None:
    view = view_table(evaluated, colour="v2", over=("v5", "v0"))
    assert view.colour == 2 and view.over == (5, 0)
    with pytest.raises(InputError, match="no variable is called 'v22'; did you mean 'v2'"):
        view_table(evaluated, colour="v22")


def test_the_unit_of_a_table_has_no_grey_levels(evaluated: Evaluated) -> None:
    assert "units" in find_error_unit(evaluated) and "grey" not in find_error_unit(evaluated)


@pytest.mark.slow
def test_figures_of_a_table(evaluated: Evaluated, tmp_path: Path) -> None:
    figures.write_figures(evaluated, tmp_path, kinds=("svg",))
    assert {path.stem for path in tmp_path.iterdir()} == set(figures.NAMES) - {"reconstructions", "classes"}


@pytest.mark.slow
def test_the_command_names_what_it_cannot_draw(evaluated: Evaluated, tmp_path: Path) -> None:
    def run(*options: str) -> BaseException | None:
        arguments = ["figures", str(evaluated.path), "-o", str(tmp_path), "--kind", "png", *options]
        return CliRunner().invoke(app, arguments).exception

    assert run("--only", "map", "--over", "v1", "--over", "v3") is None
    for options, words in ((("--over", "v1"), "two variables"), (("--colour", "nothing"), "no variable is called")):
        error = run(*options)
        assert isinstance(error, InputError) and words in str(error)
