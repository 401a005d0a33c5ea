"""Sweep files: their cells, and what is refused before any cell starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeping_helper import write_sweep_file

from llgae_cli.config import Config
from llgae_cli.errors import InputError
from llgae_cli.sweep import Cell, read_plan
from llgae_cli.sweep.halving import Halving

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "sweeps").glob("*.yaml"))
assert SHIPPED


def pairs(path: Path, *keys: str, overrides: list[str] | None = None) -> list[tuple[Any, ...]]:
    return [tuple(cell.config.plain()[key] for key in keys) for cell in read_plan(path, overrides or []).cells]


def refusal(path: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(InputError) as error:
        read_plan(path, overrides or [])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_grid_gives_all_combinations_in_the_files_order(tmp_path: Path) -> None:
    file = write_sweep_file(tmp_path / "s.yaml", grid={"K": [3, 2], "embed_dim": [0, 5]})
    assert pairs(file, "K", "embed-dim") == [(3, 0), (3, 5), (2, 0), (2, 5)]
    assert read_plan(file).keys == ("K", "embed-dim")


def test_several_grids_follow_each_other_and_equal_cells_are_one(tmp_path: Path) -> None:
    grids = [{"K": [2, 3], "embed-dim": 1}, {"K": 3, "embed-dim": [1, 4]}]
    plan = read_plan(write_sweep_file(tmp_path / "s.yaml", grid=grids))
    assert [(c.config.K, c.config.embed_dim) for c in plan.cells] == [(2, 1), (3, 1), (3, 4)]
    assert plan.duplicates == 1


def test_zip_pairs_its_lists_and_is_crossed_with_grid_and_seeds(tmp_path: Path) -> None:
    file = write_sweep_file(
        tmp_path / "s.yaml",
        zip={"beta": [1, 0.1], "n-step": [1, 9]},
        grid={"K": [2, 4]},
        repeat=2,
        base={"seed": 5, "trainer": "gradient"},
    )
    assert pairs(file, "K", "beta", "n-step", "seed") == [
        (K, *step, seed) for K in (2, 4) for step in ((1.0, 1), (0.1, 9)) for seed in (5, 6)
    ]


def test_repeat_takes_a_list_of_seeds(tmp_path: Path) -> None:
    assert pairs(write_sweep_file(tmp_path / "s.yaml", repeat=[7, 1]), "seed") == [(7,), (1,)]


def test_the_path_of_a_base_starts_at_the_sweep_files_folder_and_the_later_wins(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("K: 7\nembed-dim: 2\n")
    file = tmp_path / "s.yaml"
    file.write_text("base: [base.yaml, {embed-dim: 3}]\ngrid: {beta: [1.0]}\n")
    assert pairs(file, "K", "embed-dim") == [(7, 3)]
    assert pairs(file, "K", "embed-dim", overrides=["K=9"]) == [(9, 3)]


def test_cells_that_differ_only_in_epochs_are_two_and_neutral_keys_make_no_difference(tmp_path: Path) -> None:
    cells = read_plan(write_sweep_file(tmp_path / "s.yaml", grid={"epochs": [5, 6]})).cells
    assert len({cell.id for cell in cells}) == 2 and len({cell.config.identity() for cell in cells}) == 1
    assert Cell(Config(K=3)).id == Cell(Config(K=3, threads=2, save_every=7, data_dir=Path("elsewhere"))).id


def test_a_cells_id_does_not_depend_on_the_rest_of_the_sweep(tmp_path: Path) -> None:
    few = read_plan(write_sweep_file(tmp_path / "a.yaml", grid={"K": [2]}))
    many = read_plan(write_sweep_file(tmp_path / "b.yaml", grid={"embed-dim": [20], "K": [1, 2], "seed": [28]}))
    assert few.cells[0].id in {cell.id for cell in many.cells}


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        ({"gird": {"K": [1]}}, "did you mean 'grid'"),
        ({"K": 3}, "belong under base or grid"),
        ({"grid": {"embed-dmi": [1]}}, "did you mean 'embed-dim'"),
        ({"grid": {"K": []}}, "grid: K: the list is empty"),
        ({"grid": 3}, "grid: 3 is not allowed"),
        ({"grid": [3]}, "grid: "),
        ({"grid": {"threads": [1, 2]}}, "does not change a result"),
        ({"grid": {"K": [1]}, "zip": {"K": [2]}}, "K: is in grid and in zip"),
        ({"zip": {"K": [1, 2], "beta": [1.0, 2.0, 3.0]}}, "K has 2, beta has 3"),
        ({"grid": {"seed": [1]}, "repeat": 2}, "varies seed as well"),
        ({"repeat": True}, "repeat: true is not allowed"),
        ({"grid": {"K": list(range(1, 1001)), "embed-dim": list(range(1000))}}, "at most"),
        ({"halving": 3}, "halving: 3 is not allowed"),
        ({"halving": None}, "halving: null is not allowed"),
        ({"halving": {}}, "halving: rungs is missing"),
        ({"halving": {"rungs": [True]}}, "halving: rungs: true is not allowed"),
        ({"halving": {"rungs": [2]}}, "needs trainer gradient"),
        ({"halving": {"rungs": [2, 1]}}, "have to increase"),
        ({"halving": {"rugs": [2]}}, "did you mean 'rungs'"),
        ({"halving": {"rungs": [2], "keep": 1.5}}, "keep: 1.5 is not allowed"),
        ({"base": {"trainer": "gradient"}, "halving": {"rungs": [2]}}, "needs 'validation' above 0"),
        (
            {"base": {"trainer": "gradient", "validation": 0.1, "epochs": 2}, "halving": {"rungs": [2]}},
            "has to be below",
        ),
    ],
)
def test_a_wrong_sweep_file_is_refused_in_one_line(tmp_path: Path, sections: dict[str, Any], error: str) -> None:
    assert error in refusal(write_sweep_file(tmp_path / "s.yaml", **sections))


def test_all_faulty_cells_are_named_in_one_error(tmp_path: Path) -> None:
    error = refusal(write_sweep_file(tmp_path / "s.yaml", grid={"K": [2, 0, -1], "embed-dim": [3]}))
    assert "cell 2 of 3 (K=0, embed-dim=3)" in error and "cell 3 of 3 (K=-1" in error


def test_an_override_of_a_swept_key_is_refused(tmp_path: Path) -> None:
    assert "varies K" in refusal(write_sweep_file(tmp_path / "s.yaml", grid={"K": [1, 2]}), ["K=3"])


def test_a_key_without_effect_in_every_cell_is_refused_before_the_sweep_starts(tmp_path: Path) -> None:
    error = refusal(write_sweep_file(tmp_path / "s.yaml", grid={"K": [2, 3], "optimizer": ["adam"]}))
    assert "s.yaml: grid: optimizer: has no effect with trainer closed-form; it is for trainer gradient" in error
    assert "s.yaml: base: window" in refusal(
        write_sweep_file(tmp_path / "s.yaml", base={"window": 1}, grid={"K": [2, 3]})
    )
    assert "batch-size: has no effect" in refusal(
        write_sweep_file(tmp_path / "s.yaml", grid={"K": [2]}), ["batch-size=9"]
    )


def test_a_key_of_the_source_document_without_effect_is_a_warning_unless_the_sweep_varies_it(
    tmp_path: Path, messages: list[str]
) -> None:
    (cell,) = read_plan(write_sweep_file(tmp_path / "s.yaml", base={"lr": 1e-2}, grid={"K": [2]})).cells
    assert cell.config.lr == 1e-2 and len(messages) == 1
    assert "base: lr: has no effect with trainer closed-form" in messages[0]
    assert "grid: lr: has no effect" in refusal(write_sweep_file(tmp_path / "s.yaml", grid={"lr": [1e-2, 1e-3]}))


def test_a_cell_leaves_out_the_keys_that_only_other_cells_use(tmp_path: Path, messages: list[str]) -> None:
    grid = {"trainer": ["closed-form", "gradient"], "batch-size": [70, 280], "lr": [1e-2, 1e-3]}
    plan = read_plan(write_sweep_file(tmp_path / "s.yaml", grid=grid, base={"optimizer": "adam"}))
    settings = [(c.config.trainer, c.config.batch_size, c.config.lr, c.config.optimizer) for c in plan.cells]
    by_gradient = [("gradient", size, lr, "adam") for size in (70, 280) for lr in (1e-2, 1e-3)]
    assert settings == [("closed-form", 280, 1e-3, "rmsprop"), *by_gradient]
    assert plan.duplicates == 3 and messages == []


def test_a_later_key_is_in_the_settings_where_the_sweep_varies_it(tmp_path: Path) -> None:
    plan = read_plan(write_sweep_file(tmp_path / "s.yaml", base={"model": "residual"}, grid={"levels": [1, 2]}))
    assert plan.keys == ("levels",) and [plan.label(cell) for cell in plan.cells] == ["levels=1", "levels=2"]
    assert [plan.settings(cell)["levels"] for cell in plan.cells] == [1, 2]


@pytest.mark.parametrize(
    ("sections", "by"),
    [
        ({}, "mean_l2"),
        ({"base": {"validation": 0.1}}, "validation_mean_l2"),
        ({"base": {"validation": 0.1}, "repeat": 2}, "validation_mean_l2"),
        ({"zip": {"validation": [0.1, 0.2]}}, "mean_l2"),
        ({"zip": {"validation": [0.0, 0.2]}}, "mean_l2"),
        ({"base": {"validation": 0.1}, "zip": {"task": ["subspaces", "mnist"]}}, "mean_l2"),
    ],
)
def test_cells_are_ranked_by_validation_where_all_hold_out_the_same_fraction(
    tmp_path: Path, sections: dict[str, Any], by: str
) -> None:
    assert read_plan(write_sweep_file(tmp_path / "s.yaml", grid={"K": [2, 3]}, **sections)).ranked_by == by


def test_halving_keeps_the_better_fraction_rounded_up() -> None:
    halving = Halving(rungs=[1], keep=0.5)
    assert halving.select({"a": 3.0, "b": 1.0, "c": 2.0}) == ["b", "c"]
    assert halving.select({"b": 1.0, "a": 1.0, "c": 1.0}) == ["a", "b"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid_and_open_with_their_command(path: Path, messages: list[str]) -> None:
    plan = read_plan(path)
    assert (len(plan.cells) > 1 or plan.search) and plan.ranked_by == "validation_mean_l2" and messages == []
    schema, command = path.read_text().splitlines()[:2]
    assert schema == "# yaml-language-server: $schema=sweep.schema.json"
    assert command.startswith(f"# llgae sweep --config configs/sweeps/{path.name}")
    assert yaml.safe_load(path.read_text())
