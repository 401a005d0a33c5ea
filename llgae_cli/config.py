"""The experiment's configuration: flat YAML in, one validated frozen object out. Does not import torch."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.regular_files import read_text

MAX_CONFIG_BYTES = 100_000  # parsing takes some 10 s a megabyte
MAX_VALUES, MAX_DEPTH, MAX_BITS = 100_000, 20, 2_000  # of what YAML stands for once its anchors are followed

# Keys that say where and how a run is carried out, never what comes out of it: they stay out of a config's identity.
# `epochs` is among them because a run may be continued; the checkpoint's name holds the epoch that was reached.
NEUTRAL_KEYS = frozenset({"epochs", "data-dir", "checkpoint-dir", "save-every", "device", "threads", "figures"})

# Keys that came later than the first checkpoints: at their default they stay out of a config's plain form, so that the
# identity of older configs is what it was.
LATER_KEYS = frozenset(
    [
        *("decoder", "width", "channels", "latent-start", "ascent", "tau", "gates", "gate-dim", "levels", "sweeps"),
        *("window", "noise", "start", "schedule", "weight-decay", "average", "precision", "flip"),
    ]
)

NETWORKS = ("gae", "deep-llgae", "autoencoder", "denoising-autoencoder")  # models that have a decoder network
ENCODED = ("autoencoder", "denoising-autoencoder")  # models that take no steps on b
GRADIENT_ONLY = ("soft-llgae", *NETWORKS)

# Later keys that only the gradient trainer knows; setting one for the other is an error.
BY_GRADIENT = ("start", "schedule", "weight-decay", "average", "flip")

# The models that a key is for; setting it for another one is an error.
MEANT_FOR = {
    "decoder": NETWORKS,
    "width": NETWORKS,
    "channels": NETWORKS,
    "latent-start": ("gae", "deep-llgae"),
    "ascent": ("gae", "deep-llgae"),
    "precision": NETWORKS,
    "tau": ("soft-llgae",),
    "gates": ("soft-llgae",),
    "gate-dim": ("soft-llgae",),
    "levels": ("residual",),
    "sweeps": ("residual",),
    "window": ("shift",),
    "noise": ("denoising-autoencoder",),
}

# What a model is: such a key may be left out or said, and nothing else.
FIXED: dict[str, dict[str, Any]] = {
    "pca": {"K": 1},
    "kmeans": {"embed-dim": 0},
    "autoencoder": {"K": 1},
    "denoising-autoencoder": {"K": 1},
}

BY_NETWORK = {
    "trainer": "gradient", "optimizer": "adamw", "lr": 2e-3, "weight-decay": 0.01, "schedule": "one-cycle",
    "average": 0.998, "batch-size": 128, "epochs": 20,
}  # fmt: skip

# What a model is trained with unless the config says otherwise.
TRAINED_WITH: dict[str, dict[str, Any]] = {
    "pca": {"inference": "least-squares", "tol": 1e-7},
    "soft-llgae": {"trainer": "gradient", "start": "closed-form", "optimizer": "adam"},
    "gae": {"trainer": "gradient", "optimizer": "adam"},
    "deep-llgae": {"latent-start": "learnt", "ascent": "later", "beta": 4e-6, "n-step": 5, **BY_NETWORK},
    "autoencoder": {"n-step": 0, **BY_NETWORK},
    "denoising-autoencoder": {"n-step": 0, **BY_NETWORK},
}

ALIASES = {"fashion-mnist": "fashion-mnist-compress"}  # the source's name is the one that names carry

MOST = 10**9 - 1  # what a checkpoint's name holds
Positive = Annotated[int, Field(ge=1, le=MOST)]

# Of the JSON Schema; the docstring, which would be it, is gone under `python -OO`.
DESCRIPTION = "One experiment. Keys are spelled with dashes in YAML (`embed-dim`), with underscores in Python."


class Config(BaseModel):
    """A validated, frozen config."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        populate_by_name=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
        json_schema_extra={"description": DESCRIPTION},
    )

    task: str = Field("fashion-mnist-compress", min_length=1, description="data set: a name, npy:PATH or images:FOLDER")
    model: Literal[
        "llgae", "pca", "kmeans", "soft-llgae", "gae", "deep-llgae", "residual", "shift", "autoencoder",
        "denoising-autoencoder",
    ] = Field("llgae", description="member of the family")  # fmt: skip
    K: Positive = Field(11, description="number of components (affine subspaces)")
    embed_dim: int = Field(20, ge=0, le=MOST, description="E, latent dimensions of each component")
    prior: Literal["uniform", "gaussian"] = Field(
        "uniform", description="prior on the latent b: uniform (alpha = 0) or unit Gaussian (alpha = 1)"
    )
    inference: Literal["loop", "collapse", "least-squares"] = Field(
        "collapse", description="how b is found: T ascent steps one by one, the same in closed form, or T = infinity"
    )
    beta: float = Field(0.01, gt=0, description="step size of the ascent on b")
    n_step: int = Field(5, ge=0, description="T, steps of the ascent on b; 0 keeps a learnt or linear latent-start")
    trainer: Literal["closed-form", "gradient"] = Field("closed-form", description="how mu and W are improved")
    epochs: Positive = Field(100, description="passes over the training data, at most")
    tol: float = Field(1e-4, ge=0, description="closed-form: stop once a pass gains a smaller share than this")
    restarts: Positive | Literal["auto"] = Field("auto", description="closed-form: starts tried on some of the rows")
    moves: Annotated[int, Field(ge=0, le=MOST)] | Literal["auto"] = Field(
        "auto", description="closed-form: split-merge moves tried on each start, at most"
    )
    candidates: Positive | Literal["auto", "off"] = Field(
        "auto", description="closed-form: neighbours of its component that each sample is scored under"
    )
    shrinkage: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        0.0, description="closed-form: samples' worth of its neighbours' scatter that each component is given"
    )
    optimizer: Literal["rmsprop", "adam", "adamw", "sgd"] = Field("rmsprop", description="gradient: the optimiser")
    lr: float = Field(1e-3, gt=0, description="gradient: the learning rate")
    batch_size: Positive = Field(280, description="gradient: samples a mini-batch")
    start: Literal["random", "closed-form"] = Field("random", description="gradient: where mu and W begin")
    schedule: Literal["constant", "one-cycle"] = Field(
        "constant", description="gradient: the learning rate stays, or rises to lr and falls to 0 over the epochs"
    )
    weight_decay: float = Field(0.0, ge=0, description="gradient: decay of network weights, with adamw")
    average: float = Field(
        0.0, ge=0, lt=1, description="gradient: decay a step of the weights' running mean, which is kept; 0: the last"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of networks' products on the way to a code; every reported number is float32's"
    )
    flip: bool = Field(False, description="gradient: train on mirror images too, one of the two at random")
    decoder: Literal["linear", "mlp", "conv"] = Field("conv", description="gae and autoencoders: the decoder network")
    width: Positive = Field(512, description="numbers in a network's dense layers")
    channels: Positive = Field(32, description="conv: channels at the finest resolution")
    latent_start: Literal["zero", "linear", "learnt"] = Field(
        "zero", description="gae: where the ascent on b begins: 0, the locally linear code, or a network's guess"
    )
    ascent: Literal["through", "given", "later"] = Field(
        "through", description="gae: train through the steps on b, with the b they come to as given, or without them"
    )
    tau: float = Field(1e-5, gt=0, description="soft-llgae: gates are softmax(-tau |x - mu_k|^2)")
    gates: Literal["data", "embedding"] = Field(
        "data", description="soft-llgae: gates from the sample, or from an embedding that is part of the code"
    )
    gate_dim: Positive = Field(2, description="soft-llgae: numbers in that embedding")
    levels: Positive = Field(2, description="residual: components that add up, one of each level")
    sweeps: int = Field(1, ge=0, description="residual: rounds in which each level is chosen again, given the others")
    window: int = Field(1, ge=0, description="shift: pixels that a sample may be moved by, each way")
    noise: float = Field(50.0, ge=0, description="denoising-autoencoder: standard deviation added to each value")
    centring: Literal["sample", "none"] = Field("sample", description="subtract each sample's own mean, or nothing")
    validation: float = Field(0.0, ge=0, le=0.5, description="share of the training samples held out to choose by")
    seed: int = Field(28, ge=0, lt=2**63, description="seed of every random number generator")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where the arithmetic is done")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0 leaves the choice to torch")
    data_dir: Path = Field(Path("data"), strict=False, description="where data sets are looked for and kept")
    checkpoint_dir: Path = Field(Path("checkpoints"), strict=False, description="where checkpoints are written")
    save_every: int = Field(0, ge=0, le=MOST, description="epochs between checkpoints; 0 writes the last alone")
    figures: bool = Field(True, description="draw the training curve and reconstructions beside the checkpoint")

    @field_validator("task")
    @classmethod
    def _canonical(cls, value: str) -> str:
        return ALIASES.get(value, value)

    @field_validator("model", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value  # the source writes LLGAE

    @model_validator(mode="before")
    @classmethod
    def _of_the_model(cls, values: Any) -> Any:
        """What the model fixes, and what it is trained with unless something else is said."""
        given = {str(key).replace("_", "-"): value for key, value in values.items()}
        model = str(given.get("model", "llgae")).lower()
        for key, value in FIXED.get(model, {}).items():
            if given.setdefault(key, value) != value:
                raise ValueError(f"{key}: {given[key]} with model {model}, which is {key} {value}")
        if model in GRADIENT_ONLY and given.get("trainer", "gradient") == "closed-form":
            raise ValueError(f"trainer: closed-form with model {model}, which is trained by gradient alone")
        with_it = dict(TRAINED_WITH.get(model, {}))
        if given.get("optimizer", "adamw") != "adamw":
            with_it.pop("weight-decay", None)  # adamw's
        return {**with_it, **given}

    @model_validator(mode="after")
    def _meant(self) -> "Config":
        if self.n_step == 0 and self.latent_start == "zero" and self.model not in ENCODED:
            raise ValueError(
                "n-step: 0 leaves b at 0; at least 1 step, or another latent-start (model gae, deep-llgae)"
            )
        for key, models in MEANT_FOR.items():
            if self.model not in models and key in self.plain():
                raise ValueError(f"{key}: has no effect on model {self.model}; it is for {', '.join(models)}")
        for key in BY_GRADIENT if self.trainer == "closed-form" else ():
            if key in self.plain():
                raise ValueError(f"{key}: has no effect on trainer closed-form; it is for gradient")
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight-decay: has no effect on optimizer {self.optimizer}; it is for adamw")
        return self

    def plain(self) -> dict[str, Any]:
        """The resolved config as plain values under its YAML keys, in the order of the fields (see LATER_KEYS)."""
        values = self.model_dump(mode="json", by_alias=True)
        defaults = {str(field.alias): field.default for field in Config.model_fields.values()}
        return {key: value for key, value in values.items() if key not in LATER_KEYS or value != defaults[key]}

    def shown(self) -> dict[str, Any]:
        """The plain form with the defaults of every key that the model knows."""
        values = self.model_dump(mode="json", by_alias=True)
        return {key: value for key, value in values.items() if self.model in MEANT_FOR.get(key, (self.model,))}

    def identity(self) -> str:
        """Ten hex digits that stand for every key that can change the result (see `neutral`)."""
        neutral = self.neutral()
        what = {key: value for key, value in self.plain().items() if key not in neutral}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:10]

    def neutral(self) -> frozenset[str]:
        """The keys that cannot change the result: NEUTRAL_KEYS, without `epochs` where the schedule follows them."""
        return NEUTRAL_KEYS - {"epochs"} if self.schedule == "one-cycle" else NEUTRAL_KEYS


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
        where = printable(path, 200)
        for key, value in read_mapping(path).items():
            name = known_key(key, where)
            values[name], origin[name] = value, where
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
    where = printable(path, 200)
    try:
        text = read_text(path, MAX_CONFIG_BYTES, "config", pipe=True)  # `--config <(...)` is one
    except FileNotFoundError:
        near = nearest(path.name, (p.name for p in path.parent.glob("*.y*ml"))) if path.parent.is_dir() else ""
        raise InputError(f"{where}: no such config file{near}") from None
    values = parse_yaml(text, where)
    if values is None:
        raise InputError(f"{where}: empty; a config holds lines such as 'K: 11'")
    if not isinstance(values, dict):
        raise InputError(f"{where}: holds a {type(values).__name__}; a config is a mapping of keys to values")
    return values


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML with plain values only; InputError names the line at fault.

    Anchors are followed as far as a config can mean it: to MAX_VALUES values, MAX_DEPTH containers deep.
    """
    try:
        values = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{where}:{line} not valid YAML: {printable(error.problem)}") from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply for a config") from None
    except Exception as error:  # `!!int ""` is an IndexError, `!!bool x` a KeyError, and so on
        raise InputError(f"{where}: not valid YAML: {printable(error)}") from None
    wrong = _unfit(values)
    if wrong:
        raise InputError(f"{where}: {wrong}")
    return values


def _unfit(values: Any) -> str | None:
    """Why plain values are no config's, or None; a list may hold itself, or 10^9 values in ten lines of anchors."""
    ahead, seen = [(values, MAX_DEPTH)], 0
    while ahead:
        (value, depth), seen = ahead.pop(), seen + 1
        if seen > MAX_VALUES or depth == 0:
            return "nested too deeply for a config" if depth == 0 else f"more than {MAX_VALUES} values"
        if isinstance(value, dict):
            ahead += [(part, depth - 1) for pair in value.items() for part in pair]
        elif isinstance(value, (list, tuple, set)):
            ahead += [(part, depth - 1) for part in value]
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            return f"a whole number of more than {MAX_BITS} bits"
        elif isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
            return f"a text that no name or path can hold: {printable(value)}"
    return None


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
    together = not problems[0]["loc"]  # of several keys, in words of our own that begin with the key at fault
    said = str(problems[0]["msg"]).removeprefix("Value error, ")
    key = said.partition(":")[0] if together else key.replace("_", "-")
    where = f"{origin[key]}: " if key in origin and not origin[key].startswith("-S") else ""
    if together:
        return where + said
    value = problems[0]["input"]
    said = " or ".join(problem["msg"][0].lower() + problem["msg"][1:] for problem in problems)
    options = " ".join(str((problem.get("ctx") or {}).get("expected", "")) for problem in problems)
    near = nearest(value, re.findall(r"'([^']+)'", options)) if isinstance(value, str) else ""
    return f"{where}{key}: {printable(_spelled(value))} is not allowed: {said}{near}"


def _spelled(value: Any) -> str:
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):  # a number of 5000 digits, a list that holds itself
        return f"a {type(value).__name__}"
