"""The unit of a mean L2."""

import pytest

from llgae_cli.figures.units import GREY_LEVELS, OF_DATA, error_unit, error_unit_of_tasks


def test_only_unscaled_images_of_8_bits_have_grey_levels() -> None:
    assert error_unit(grey=True, scaled=False) == GREY_LEVELS
    assert error_unit(grey=False, scaled=False) == OF_DATA
    assert error_unit(grey=True, scaled=True) == error_unit(grey=False, scaled=True) == "scaled units²"


@pytest.mark.parametrize(
    ("tasks", "unit"),
    [
        (["fashion-mnist-compress", "mnist"], GREY_LEVELS),
        (["images:photos"], GREY_LEVELS),
        (["subspaces", "subspaces"], OF_DATA),
        (["csv:table.csv"], "squared units of the task"),
        (["mnist", "subspaces"], "squared units of the task"),
    ],
)
def test_the_unit_by_the_names_of_tasks(tasks: list[str], unit: str) -> None:
    assert error_unit_of_tasks(tasks) == unit
