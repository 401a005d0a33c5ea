"""The experiment's configuration: flat YAML in, one validated frozen object out. Does not import torch."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llgae_cli.errors import InputError, nearest, printable

MAX_CONFIG_BYTES = 1_000_000

# Keys that say where and how a run is carried out, never what comes out of it: they stay out of a config's identity.
# `epochs` is among them because a run may be continued; the checkpoint's name holds the epoch that was reached.
NEUTRAL_KEYS = frozenset({"epochs", "data-dir", "checkpoint-dir", "save-every", "device", "threads", "figures"})

ALIASES = {"fashion-mnist": "fashion-mnist-compress"}  # the source's name is the one that names carry

Positive = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """One experiment. Keys are spelled with dashes in YAML (`embed-dim`), with underscores in Python."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        populate_by_name=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
    )

    task: str = Field("fashion-mnist-compress", min_length=1, description="data set: a name, npy:PATH or images:FOLDER")
    model: Literal["llgae"] = Field("llgae", description="model family")
    K: Positive = Field(11, description="number of components (affine subspaces)")
    embed_dim: int = Field(20, ge=0, description="E, latent dimensions of each component")
    prior: Literal["uniform", "gaussian"] = Field(
        "uniform", description="prior on the latent b: uniform (alpha = 0) or unit Gaussian (alpha = 1)"
    )
    inference: Literal["loop", "collapse", "least-squares"] = Field(
        "collapse", description="how b is found: T ascent steps one by one, the same in closed form, or T = infinity"
    )
    beta: float = Field(0.01, gt=0, description="step size of the ascent on b")
    n_step: Positive = Field(5, description="T, steps of the ascent on b")
    trainer: Literal["closed-form", "gradient"] = Field("closed-form", description="how mu and W are improved")
    epochs: Positive = Field(100, description="passes over the training data, at most")
    tol: float = Field(1e-4, ge=0, description="closed-form: stop once a pass gains a smaller share than this")
    restarts: Positive | Literal["auto"] = Field("auto", description="closed-form: starts tried on some of the rows")
    moves: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="closed-form: split-merge moves tried on the best start"
    )
    candidates: Positive | Literal["auto", "off"] = Field(
        "auto", description="closed-form: components scored exactly for each sample"
    )
    shrinkage: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        0.0, description="closed-form: samples' worth of its neighbours' scatter that each component is given"
    )
    optimizer: Literal["rmsprop", "adam", "sgd"] = Field("rmsprop", description="gradient: the optimiser")
    lr: float = Field(1e-3, gt=0, description="gradient: the learning rate")
    batch_size: Positive = Field(280, description="gradient: samples a mini-batch")
    centring: Literal["sample", "none"] = Field("sample", description="subtract each sample's own mean, or nothing")
    validation: float = Field(0.0, ge=0, le=0.5, description="share of the training samples held out to choose by")
    seed: int = Field(28, ge=0, lt=2**63, description="seed of every random number generator")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where the arithmetic is done")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves the choice to torch")
    data_dir: Path = Field(Path("data"), strict=False, description="where data sets are looked for and kept")
    checkpoint_dir: Path = Field(Path("checkpoints"), strict=False, description="where checkpoints are written")
    save_every: int = Field(0, ge=0, description="epochs between checkpoints; 0 writes the last alone")
    figures: bool = Field(True, description="draw the training curve and reconstructions beside the checkpoint")

    @field_validator("task")
    @classmethod
    def _canonical(cls, value: str) -> str:
        return ALIASES.get(value, value)

    @field_validator("model", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value  # the source writes LLGAE

    def plain(self) -> dict[str, Any]:
        """The resolved config as plain values under its YAML keys, in the order of the fields."""
        return self.model_dump(mode="json", by_alias=True)

    def identity(self) -> str:
        """Six hex digits that stand for every key that can change the result (see NEUTRAL_KEYS)."""
        what = {key: value for key, value in self.plain().items() if key not in NEUTRAL_KEYS}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:6]


def keys() -> list[str]:
    """The config's keys as YAML spells them."""
    return [str(field.alias) for field in Config.model_fields.values()]


def schema() -> dict[str, Any]:
    """The JSON Schema of a config file."""
    return Config.model_json_schema(by_alias=True)


def read_config(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Config:
    """Read YAML files, the later over the earlier, then `key=value` overrides.

    Raises InputError, in one line, for a file that cannot be read, an unknown key or a value out of range.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for path in paths:
        for key, value in read_mapping(path).items():
            name = known_key(key, str(path))
            values[name], origin[name] = value, str(path)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"-S {printable(override)}: expected key=value")
        where = f"-S {printable(override)}"
        name = known_key(key.strip(), where)
        values[name], origin[name] = parse_yaml(text, where), where
    return validated(values, origin)


def validated(values: dict[str, Any], origin: dict[str, str] | None = None) -> Config:
    """A Config from plain values; `origin` names the file or option each key came from, for the error's line."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems: dict[str, list[Any]] = {}
        for problem in error.errors():  # a key that takes one of two types has a problem with each
            problems.setdefault(str(problem["loc"][0]) if problem["loc"] else "config", []).append(problem)
        lines = [_line(key, found, origin or {}) for key, found in problems.items()]
        raise InputError("; ".join(lines[:3])) from None


def known_key(key: object, where: str) -> str:
    """The YAML spelling of `key` (underscores accepted); InputError with the nearest key when there is none."""
    name = str(key).replace("_", "-")
    if name == "model-name":  # the source's spelling, as its checkpoint names have it
        name = "model"
    if name not in keys():
        raise InputError(f"{where}: unknown key '{printable(key)}'{nearest(name, keys())}")
    return name


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file; InputError when the file is missing, empty, binary, too large or no mapping."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        near = nearest(path.name, (p.name for p in path.parent.glob("*.y*ml"))) if path.parent.is_dir() else ""
        raise InputError(f"{printable(path, 200)}: no such config file{near}") from None
    except OSError as error:
        raise InputError(f"{printable(path, 200)}: cannot be read ({error.strerror})") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise InputError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes, this is no config")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file (UTF-8 YAML is expected)") from None
    values = parse_yaml(text, str(path))
    if values is None:
        raise InputError(f"{path}: empty; a config holds lines such as 'K: 11'")
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__}; a config is a mapping of keys to values")
    return values


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML with plain values only; InputError names the line at fault."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{where}:{line} not valid YAML: {printable(error.problem)}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{where}: not valid YAML: {printable(error)}") from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply for a config") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _line(key: str, problems: Sequence[Any], origin: dict[str, str]) -> str:
    key = key.replace("_", "-")
    where = f"{origin[key]}: " if key in origin and not origin[key].startswith("-S") else ""
    value = problems[0]["input"]
    said = " or ".join(problem["msg"][0].lower() + problem["msg"][1:] for problem in problems)
    options = " ".join(str((problem.get("ctx") or {}).get("expected", "")) for problem in problems)
    near = nearest(str(value), re.findall(r"'([^']+)'", options))
    return f"{where}{key}: {printable(json.dumps(value, default=str))} is not allowed: {said}{near}"
