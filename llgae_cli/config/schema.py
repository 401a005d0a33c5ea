"""The experiment's configuration: flat YAML in, one validated frozen object out. Does not import torch."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from llgae_cli.errors import InputError, nearest, printable

# Keys that say where and how a run is carried out, never what comes out of it: they stay out of a config's identity.
# `epochs` is among them because a run may be continued; the checkpoint's name holds the epoch that was reached.
NEUTRAL_KEYS = frozenset(
    {"epochs", "data-dir", "checkpoint-dir", "save-every", "eval-every", "device", "threads", "figures"}
)

# Keys that came later than the first checkpoints: at their default they stay out of a config's plain form, so that the
# identity of older configs is what it was.
LATER_KEYS = frozenset(
    [
        *("decoder", "width", "channels", "latent-start", "ascent", "tau", "gates", "gate-dim", "levels", "sweeps"),
        *("window", "noise", "start", "schedule", "weight-decay", "average", "precision", "flip", "eval-every"),
    ]
)

# The keys of every config of the source, which its checkpoint names carry. Where one has no effect, a config that
# gives it gets a warning, and not an error as for any other key.
SOURCE_KEYS = ("K", "embed-dim", "beta", "n-step", "lr", "task")

ENCODED = ("autoencoder", "denoising-autoencoder")  # models that take no steps on b
NETWORKS = ("gae", "deep-llgae", *ENCODED)  # models that have a decoder network
GRADIENT_ONLY = ("soft-llgae", *NETWORKS)


@dataclass(frozen=True)
class Used:
    """When a key has an effect: in any of `cases`, each a mapping of other keys to the values that they need then.

    A key without this note always has an effect. The sizes are left aside: at K = 1 or embed-dim = 0 further keys
    change nothing, and are accepted.
    """

    cases: tuple[dict[str, tuple[str, ...]], ...]

    def __or__(self, other: "Used") -> "Used":
        return Used(self.cases + other.cases)

    def __str__(self) -> str:
        return ", or ".join(_told(case) for case in self.cases)


def used(**needs: str | tuple[str, ...]) -> Used:
    """A key has an effect where all these keys have one of these values; `|` adds another case."""
    return Used(({key.replace("_", "-"): (n,) if isinstance(n, str) else n for key, n in needs.items()},))


def _told(case: dict[str, tuple[str, ...]]) -> str:
    return " with ".join(
        f"{key} {', '.join(values[:-1])}{' or ' * bool(values[:-1])}{values[-1]}" for key, values in case.items()
    )


# The cases that several keys share.
BY_GRADIENT = used(trainer="gradient")
BY_CLOSED_FORM = (  # as the trainer, or to begin the gradient trainer from
    used(trainer="closed-form") | used(start="closed-form") | used(latent_start=("linear", "learnt"))
)
SEVERAL = (  # the same, with more than one component
    used(trainer="closed-form", model=("llgae", "kmeans", "residual", "shift"))
    | used(start="closed-form", model=("llgae", "kmeans", "residual", "shift", "soft-llgae", "gae", "deep-llgae"))
    | used(latent_start=("linear", "learnt"))
)
AFFINE = ("llgae", "pca", "residual", "shift", "soft-llgae")  # models whose ascent on b collapses into a matrix
BY_ASCENT = used(model=("gae", "deep-llgae"))

# What a model is: such a key may be left out or said, and nothing else.
FIXED: dict[str, dict[str, Any]] = {
    "pca": {"K": 1},
    "kmeans": {"embed-dim": 0},
    "autoencoder": {"K": 1},
    "denoising-autoencoder": {"K": 1},
}

NETWORK_TRAINING = {
    "trainer": "gradient", "optimizer": "adamw", "lr": 2e-3, "weight-decay": 0.01, "schedule": "one-cycle",
    "average": 0.998, "batch-size": 128, "epochs": 20,
}  # fmt: skip

# What a model is trained with unless the config says otherwise.
TRAINED_WITH: dict[str, dict[str, Any]] = {
    "pca": {"inference": "least-squares", "tol": 1e-7},
    "soft-llgae": {"trainer": "gradient", "start": "closed-form", "optimizer": "adam"},
    "gae": {"trainer": "gradient", "optimizer": "adam"},
    "deep-llgae": {"latent-start": "learnt", "ascent": "later", "beta": 4e-6, "n-step": 5, **NETWORK_TRAINING},
    "autoencoder": {"n-step": 0, **NETWORK_TRAINING},
    "denoising-autoencoder": {"n-step": 0, **NETWORK_TRAINING},
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
    prior: Annotated[Literal["uniform", "gaussian"], used(model=AFFINE) | BY_ASCENT] = Field(
        "uniform", description="prior on the latent b: uniform (alpha = 0) or unit Gaussian (alpha = 1)"
    )
    inference: Annotated[Literal["loop", "collapse", "least-squares"], used(model=AFFINE)] = Field(
        "collapse", description="how b is found: T ascent steps one by one, the same in closed form, or T = infinity"
    )
    beta: Annotated[
        float,
        used(trainer="gradient", model=AFFINE, inference=("loop", "collapse"))
        | used(trainer="closed-form", model=("llgae", "pca", "residual", "shift"))  # the scale of W
        | used(start="closed-form", model=AFFINE)
        | BY_ASCENT,
    ] = Field(0.01, gt=0, description="step size of the ascent on b; under closed-form it sets the scale of W")
    n_step: Annotated[
        int,
        used(trainer="gradient", model=AFFINE, inference=("loop", "collapse"))
        | used(model="soft-llgae", gates="embedding")
        | BY_ASCENT,
    ] = Field(
        5,
        ge=0,
        description="T, steps of the ascent on b; 0 keeps a learnt or linear latent-start. "
        "The first step is exact after closed-form, whatever T",
    )
    trainer: Literal["closed-form", "gradient"] = Field("closed-form", description="how mu and W are improved")
    epochs: Positive = Field(100, description="passes over the training data, at most")
    tol: Annotated[float, BY_CLOSED_FORM] = Field(
        1e-4, ge=0, description="stop once a pass improves the objective by a smaller share than this"
    )
    restarts: Annotated[Positive | Literal["auto"], SEVERAL] = Field(
        "auto", description="initialisations tried on some of the rows; the best is kept"
    )
    moves: Annotated[Annotated[int, Field(ge=0, le=MOST)] | Literal["auto"], SEVERAL] = Field(
        "auto", description="split-merge moves tried on each initialisation, at most"
    )
    candidates: Annotated[
        Positive | Literal["auto", "off"],
        used(trainer="closed-form", model=("llgae", "kmeans"))
        | used(start="closed-form", model=("llgae", "kmeans", "residual", "shift", "soft-llgae", "gae", "deep-llgae"))
        | used(latent_start=("linear", "learnt")),
    ] = Field("auto", description="shortlist: neighbours of its component that each sample is scored under")
    shrinkage: Annotated[
        Annotated[float, Field(ge=0)] | Literal["auto"],
        used(trainer="closed-form", model=("llgae", "residual", "shift"))
        | used(start="closed-form", model=("llgae", "residual", "shift", "soft-llgae", "gae", "deep-llgae"))
        | used(latent_start=("linear", "learnt")),
    ] = Field(0.0, description="samples' worth of its neighbours' scatter that is added to each component's own")
    optimizer: Annotated[Literal["rmsprop", "adam", "adamw", "sgd"], BY_GRADIENT] = Field(
        "rmsprop", description="the optimiser"
    )
    lr: Annotated[float, BY_GRADIENT] = Field(1e-3, gt=0, description="the learning rate")
    batch_size: Annotated[Positive, BY_GRADIENT] = Field(280, description="samples a mini-batch")
    start: Annotated[
        Literal["random", "closed-form"],
        used(model="deep-llgae", latent_start="zero")
        | used(model="gae", latent_start="zero", decoder="linear")
        | used(trainer="gradient", model=("llgae", "pca", "kmeans", "soft-llgae", "residual", "shift")),
    ] = Field("random", description="initial mu and W: random, or of an LLGAE trained in closed form")
    schedule: Annotated[Literal["constant", "one-cycle"], BY_GRADIENT] = Field(
        "constant", description="the learning rate stays, or rises to lr and falls to 0 over the epochs"
    )
    weight_decay: Annotated[
        float,
        used(optimizer="adamw", model=("gae", "deep-llgae"), decoder=("mlp", "conv"))
        | used(optimizer="adamw", latent_start="learnt"),
    ] = Field(0.0, ge=0, description="decay of network weights")
    average: Annotated[float, BY_GRADIENT] = Field(
        0.0,
        ge=0,
        lt=1,
        description="EMA decay of the weights, per step; the averaged weights are saved. 0 turns it off",
    )
    precision: Annotated[Literal["float32", "bfloat16"], used(model=NETWORKS)] = Field(
        "float32", description="of networks' products on the way to a code; every reported number is float32's"
    )
    flip: Annotated[bool, BY_GRADIENT] = Field(
        False, description="train on mirror images too, one of the two at random"
    )
    decoder: Annotated[Literal["linear", "mlp", "conv"], used(model=NETWORKS)] = Field(
        "conv", description="the decoder network"
    )
    width: Annotated[Positive, used(model=NETWORKS, decoder=("mlp", "conv")) | used(latent_start="learnt")] = Field(
        512, description="numbers in a network's dense layers"
    )
    channels: Annotated[Positive, used(model=NETWORKS, decoder="conv")] = Field(
        32, description="channels at the finest resolution"
    )
    latent_start: Annotated[Literal["zero", "linear", "learnt"], BY_ASCENT] = Field(
        "zero", description="where the ascent on b begins: 0, the locally linear code, or a network's guess"
    )
    ascent: Annotated[Literal["through", "given", "later"], BY_ASCENT] = Field(
        "through",
        description="how gradients treat the ascent: through it (unrolled), with its result detached, "
        "or no ascent in training",
    )
    tau: Annotated[float, used(model="soft-llgae", gates="data")] = Field(
        1e-5, gt=0, description="gates are softmax(-tau |x - mu_k|^2)"
    )
    gates: Annotated[Literal["data", "embedding"], used(model="soft-llgae")] = Field(
        "data", description="gates from the sample, or from an embedding that is part of the code"
    )
    gate_dim: Annotated[Positive, used(model="soft-llgae", gates="embedding")] = Field(
        2, description="numbers in that embedding"
    )
    levels: Annotated[Positive, used(model="residual")] = Field(
        2, description="components that add up, one of each level"
    )
    sweeps: Annotated[int, used(model="residual")] = Field(
        1, ge=0, description="rounds in which each level is chosen again, given the others"
    )
    window: Annotated[int, used(model="shift")] = Field(
        1, ge=0, description="pixels that a sample may be moved by, each way"
    )
    noise: Annotated[float, used(model="denoising-autoencoder")] = Field(
        50.0, ge=0, description="standard deviation added to each value"
    )
    centring: Literal["sample", "none"] = Field("sample", description="subtract each sample's own mean, or nothing")
    validation: float = Field(0.0, ge=0, le=0.5, description="share of the training samples held out to choose by")
    seed: int = Field(28, ge=0, lt=2**63, description="seed of every random number generator")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where the arithmetic is done")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0 leaves the choice to torch")
    data_dir: Path = Field(Path("data"), strict=False, description="where data sets are looked for and kept")
    checkpoint_dir: Path = Field(Path("checkpoints"), strict=False, description="where checkpoints are written")
    save_every: int = Field(0, ge=0, le=MOST, description="epochs between checkpoints; 0 writes the last alone")
    eval_every: int = Field(
        0,
        ge=0,
        le=MOST,
        description="epochs between measurements of the test (and validation) mean L2; 0 measures saved epochs alone",
    )
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
    def _possible(self) -> "Config":
        if self.n_step == 0 and self.latent_start == "zero" and self.model not in ENCODED:
            raise ValueError(
                "n-step: 0 leaves b at 0; at least 1 step, or another latent-start (model gae, deep-llgae)"
            )
        return self

    def values(self) -> dict[str, Any]:
        """Every key with its value, as plain values under its YAML key, in the order of the fields."""
        return self.model_dump(mode="json", by_alias=True)

    def plain(self) -> dict[str, Any]:
        """The resolved config as checkpoints store it: `values` without the later keys at their default."""
        defaults = {str(field.alias): field.default for field in Config.model_fields.values()}
        return {key: value for key, value in self.values().items() if key not in LATER_KEYS or value != defaults[key]}

    def shown(self) -> dict[str, Any]:
        """The values of all keys that have an effect. As a config file, this is the same config again.

        A key without effect is among them only where leaving it out would change the config's identity.
        """
        values = self.values()
        having = {key: value for key, value in values.items() if self.no_effect(key) is None}
        left_out = Config.model_validate(having).values()
        return {key: value for key, value in values.items() if key in having or value != left_out[key]}

    def no_effect(self, key: str) -> str | None:
        """Why a key changes nothing here, as in `has no effect on trainer closed-form`; None where it has an effect."""
        unmet = [
            [f"{needed} {self._choice(needed)}" for needed in case if not self._meets(needed, case[needed])]
            for case in (USED[key].cases if key in USED else ())
        ]
        return f"has no effect on {min(unmet, key=len)[0]}" if unmet and all(unmet) else None

    @property
    def begins_in_closed_form(self) -> bool:
        """Whether the gradient trainer begins from an LLGAE that is trained in closed form first."""
        return self._meets("start", ("closed-form",)) or self._meets("latent-start", ("linear", "learnt"))

    def _choice(self, key: str) -> str:
        return str(getattr(self, key.replace("-", "_")))

    def _meets(self, key: str, allowed: Sequence[str]) -> bool:
        return self._choice(key) in allowed and self.no_effect(key) is None

    def is_fixed(self, key: str) -> bool:
        """Return whether the model allows one value of the key only, such as K = 1 for pca."""
        return key in FIXED.get(self.model, {})

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


# When each key has an effect, for those that do not always have one.
USED: dict[str, Used] = {
    str(field.alias): note
    for field in Config.model_fields.values()
    for note in field.metadata
    if isinstance(note, Used)
}


def schema() -> dict[str, Any]:
    """The JSON Schema of a config file; a description says for which models and trainers its key is."""
    document = Config.model_json_schema(by_alias=True)
    for key, note in USED.items():
        document["properties"][key]["description"] += f" (for {note})"
    return document


def validated(values: dict[str, Any], origin: dict[str, str] | None = None) -> Config:
    """A Config from plain values, as files store them: keys without effect are accepted.

    `origin` names the file or option each key came from, for the error's line. Raises InputError.
    """
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


def source_of(key: str, origin: Mapping[str, str]) -> str:
    """Return the file that a key came from, as an error's line begins; nothing for an override."""
    return f"{origin[key]}: " if key in origin and not origin[key].startswith("-S") else ""


def _line(key: str, problems: Sequence[Any], origin: dict[str, str]) -> str:
    together = not problems[0]["loc"]  # of several keys, in words of our own that begin with the key at fault
    said = str(problems[0]["msg"]).removeprefix("Value error, ")
    key = said.partition(":")[0] if together else key.replace("_", "-")
    where = source_of(key, origin)
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
