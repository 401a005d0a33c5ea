"""What each model fixes in a config: keys with one value, and defaults of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llgae_cli.config.conditions import DECAYING, PUBLISHED


@dataclass(frozen=True)
class ModelRules:
    """Config keys that follow from the model: `fixed` to one value, and `defaults` that replace the general ones."""

    fixed: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)


NETWORK_TRAINING = {
    "optimizer": "adamw", "lr": 2e-3, "weight-decay": 0.01, "schedule": "one-cycle", "average": 0.998,
    "batch-size": 128, "epochs": 20,
}  # fmt: skip

MODEL_RULES: dict[str, ModelRules] = {
    "llgae": ModelRules(),
    "pca": ModelRules({"K": 1}, {"inference": "least-squares", "tol": 1e-7}),
    "kmeans": ModelRules({"embed-dim": 0}),
    "soft-llgae": ModelRules({"trainer": "gradient"}, {"start": "closed-form", "optimizer": "adam"}),
    "gae": ModelRules({"trainer": "gradient"}, {"optimizer": "adam"}),
    "deep-llgae": ModelRules(
        {"trainer": "gradient"},
        {"latent-start": "learnt", "ascent": "later", "beta": 4e-6, "n-step": 5, **NETWORK_TRAINING},
    ),
    "residual": ModelRules(),
    "shift": ModelRules(),
    "autoencoder": ModelRules({"trainer": "gradient", "K": 1}, {"n-step": 0, **NETWORK_TRAINING}),
    "denoising-autoencoder": ModelRules({"trainer": "gradient", "K": 1}, {"n-step": 0, **NETWORK_TRAINING}),
}


def apply_rules(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config with what its model fixes, its model's defaults, and what `centring: auto` means.

    Raises ValueError for a value that the model does not allow.
    """
    given = {str(name).replace("_", "-"): value for name, value in values.items()}
    model = str(given.get("model", "llgae")).lower()
    rules = MODEL_RULES.get(model, ModelRules())
    for name, value in rules.fixed.items():
        if given.setdefault(name, value) != value:
            raise ValueError(f"{name}: {given[name]} is not allowed with model {model}: its {name} is {value}")
    defaults = dict(rules.defaults)
    if given.get("optimizer", "adamw") not in DECAYING:
        defaults.pop("weight-decay", None)
    task = str(given.get("task", "fashion-mnist"))
    if given.get("centring", "auto") == "auto" and (task in PUBLISHED or task.startswith("images:")):
        given["centring"] = "sample"
    return {**defaults, **given}
