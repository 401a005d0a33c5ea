"""Shipped configs are found by name, and editors check them with schemas that are current."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from llgae_cli.config import find_config, read_config, schema
from llgae_cli.config.yaml_files import parse_yaml
from llgae_cli.errors import InputError
from llgae_cli.sweep import read_plan, sweep_schema

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEMAS = {
    CONFIGS / "config.schema.json": schema,
    CONFIGS / "sweeps" / "sweep.schema.json": sweep_schema,
}


def schema_of(path: Path) -> Path:
    """The schema that a config's first line names, from the config's folder."""
    first = path.read_text().splitlines()[0]
    return path.parent / first.removeprefix("# yaml-language-server: $schema=")


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_the_schema_for_editors_is_current(path: Path) -> None:
    assert json.loads(path.read_text()) == SCHEMAS[path](), "make schema writes it"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_config_names_a_schema_that_accepts_it(path: Path) -> None:
    jsonschema.validate(parse_yaml(path.read_text(), path.name), json.loads(schema_of(path).read_text()))


@pytest.mark.parametrize("name", ["config.schema.json", "sweeps/sweep.schema.json"])
def test_a_schema_is_itself_sound(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads((CONFIGS / name).read_text()))


@pytest.mark.parametrize(
    "wrong", ["K: 0", "K: eleven", "embed-dimm: 3", "model: lgae", "lr: 0", "seed: -1", "start: zero", "figures: 1"]
)
def test_the_schema_refuses_what_the_program_refuses(wrong: str, tmp_path: Path) -> None:
    values = yaml.safe_load(wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"base": values}, sweep_schema())
    (tmp_path / "wrong.yaml").write_text(wrong)
    with pytest.raises(InputError):
        read_config([tmp_path / "wrong.yaml"])


@pytest.mark.parametrize("wrong", [{"grid": {"K": 3}}, {"grid": {"KK": [3]}}, {"halving": {"keep": 2}}, {"gird": {}}])
def test_the_schema_of_sweeps_refuses_a_wrong_one(wrong: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, sweep_schema())


def test_a_name_finds_a_shipped_config_and_an_existing_file_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_config([Path("fashion_mnist")]) == read_config([CONFIGS / "fashion_mnist.yaml"])
    assert find_config(Path("fashion_mnist.yaml")).samefile(CONFIGS / "fashion_mnist.yaml")
    assert read_plan(Path("smoke")).cells == read_plan(CONFIGS / "sweeps" / "smoke.yaml").cells
    Path("smoke").mkdir()
    assert find_config(Path("smoke")).samefile(CONFIGS / "smoke.yaml")
    Path("fashion_mnist").write_text("K: 3\n")
    assert read_config([Path("fashion_mnist")]).K == 3


@pytest.mark.parametrize(
    "name, words",
    [
        ("fashion_minst", "did you mean 'fashion_mnist'?"),
        ("zzz", "shipped configs: autoencoder, autoencoder_codec, codec,"),
        ("configs/pca.yaml", "did you mean 'pca'?"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such config file") as refusal:
        read_config([Path(name)])
    assert words in str(refusal.value) and "\n" not in str(refusal.value)
