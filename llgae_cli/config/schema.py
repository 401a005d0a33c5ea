"""The schema of a config: its keys, the rules between them, and what each model fixes."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict, model_validator

from llgae_cli.config.conditions import ENCODED, NEAR_ZERO
from llgae_cli.config.fields import Fields
from llgae_cli.config.keys import UNSET, KeyNotes, fits
from llgae_cli.config.model_rules import MODEL_RULES, apply_rules

# Of the JSON Schema. A docstring would serve as well, but `python -OO` removes it.
DESCRIPTION = "One experiment. Keys are spelled with dashes in YAML (`embed-dim`), with underscores in Python."


class Config(Fields):
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

    @model_validator(mode="before")
    @classmethod
    def _apply_model_rules(cls, values: Any) -> Any:
        return apply_rules(values)

    @model_validator(mode="after")
    def _check_ascent(self) -> "Config":
        if self.n_step == 0 and self.latent_start == "zero" and self.model not in ENCODED:
            raise ValueError(
                "n-step: 0 is not allowed with latent-start zero: b would stay at 0. Set n-step to at least 1, or "
                "another latent-start (model gae, deep-llgae)"
            )
        if self.explain_unused("ascent-epochs") is not None:
            return self
        if self.ascent_epochs > self.epochs:
            raise ValueError(f"ascent-epochs: {self.ascent_epochs} of {self.epochs} epochs; 0 is all of them")
        if self.n_step == 0 and self.ascent_steps is not None:
            raise ValueError("ascent-steps: with n-step 0, encoding would not find the codes that training uses")
        return self

    @model_validator(mode="after")
    def _check_start(self) -> "Config":
        if self.start == "near-zero" and self.model not in NEAR_ZERO:
            raise ValueError(f"start: near-zero is for model {', '.join(NEAR_ZERO)}")
        return self

    @model_validator(mode="after")
    def _check_rate(self) -> "Config":
        if self.bits is not None and self.step is not None and self.explain_unused("step") is None:
            raise ValueError("bits: only one of bits and step can be given: each follows from the other")
        return self

    def values(self) -> dict[str, Any]:
        """Return the plain value of every key under its YAML spelling, in the order of the fields."""
        return self.model_dump(mode="json", by_alias=True)

    def plain(self) -> dict[str, Any]:
        """Return the config as checkpoints store it: `values` without the later keys that have their default."""
        return {
            name: value for name, value in self.values().items() if not (KEYS[name].later and value == DEFAULTS[name])
        }

    def used_values(self) -> dict[str, Any]:
        """Return the values of all keys that have an effect. As a config file, they give the same config again.

        A key without effect is included only where leaving it out would change the config's identity.
        """
        values = self.values()
        used = {name: value for name, value in values.items() if self.explain_unused(name) is None}
        without = Config.model_validate(used).values()
        return {name: value for name, value in values.items() if name in used or value != without[name]}

    def explain_unused(self, name: str) -> str | None:
        """Return why a key has no effect, as in `has no effect with trainer closed-form`; None where it has one."""
        effect = KEYS[name].effect
        unmet = [
            [f"{needed} {self._value(needed)}" for needed in case if not self._meets(needed, case[needed])]
            for case in (effect.cases if effect else ())
        ]
        return f"has no effect with {min(unmet, key=len)[0]}" if unmet and all(unmet) else None

    @property
    def begins_in_closed_form(self) -> bool:
        """Whether the gradient trainer begins from an LLGAE that is trained in closed form first."""
        return self._meets("start", ("closed-form",)) or self._meets("latent-start", ("linear", "learnt"))

    def _value(self, name: str) -> str:
        value = getattr(self, name.replace("-", "_"))
        return UNSET if value is None else str(value)

    def _meets(self, name: str, allowed: Sequence[str]) -> bool:
        return fits(self._value(name), allowed) and self.explain_unused(name) is None

    def is_fixed(self, name: str) -> bool:
        """Return whether the model allows only one value of the key, such as K = 1 for pca."""
        return name in MODEL_RULES[self.model].fixed

    def identity(self) -> str:
        """Return ten hex digits of a hash of all keys that can change the result."""
        neutral = self.neutral()
        deciding = {name: value for name, value in self.plain().items() if name not in neutral}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:10]

    def neutral(self) -> frozenset[str]:
        """Return the keys that cannot change the result.

        `epochs` is one of them, because a run may be continued and the checkpoint's name holds the epoch; not where
        the learning rate or the ascent follows the number of epochs.
        """
        neutral = frozenset(name for name, notes in KEYS.items() if notes.neutral)
        planned = self.schedule != "constant" or self.ascent_epochs > 0
        return neutral - {"epochs"} if planned else neutral


DEFAULTS: dict[str, Any] = {str(one.alias): one.default for one in Config.model_fields.values()}

# The notes on every key, under its YAML spelling.
KEYS: dict[str, KeyNotes] = {
    str(one.alias): one.json_schema_extra
    for one in Config.model_fields.values()
    if isinstance(one.json_schema_extra, KeyNotes)
}


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a config file. Descriptions name the models and trainers that their key is for."""
    return Config.model_json_schema()
