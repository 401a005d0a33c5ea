"""What a config key carries besides its type and default: when it has an effect, and whether it decides a result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

MAX_INT = 10**9 - 1  # the largest number that a checkpoint's name holds
Positive = Annotated[int, Field(ge=1, le=MAX_INT)]
NonNegative = Annotated[int, Field(ge=0, le=MAX_INT)]
UNSET = "unset"  # what a condition calls the value of a key that is not given
GIVEN = "any value"  # that a condition is content with, of a key that is given


@dataclass(frozen=True)
class Condition:
    """When a key has an effect: in any of `cases`, each a mapping of other keys to the values that they must have.

    K and embed-dim are no part of a condition: at K = 1 or embed-dim = 0 more keys change nothing, and are accepted.
    """

    cases: tuple[Mapping[str, tuple[str, ...]], ...]

    def __or__(self, other: "Condition") -> "Condition":
        return Condition(self.cases + other.cases)

    def __str__(self) -> str:
        return ", or ".join(map(_describe_case, self.cases))


def _describe_case(case: Mapping[str, tuple[str, ...]]) -> str:
    """Return a case in words, as in `trainer closed-form with model llgae without bits and step`."""
    absent = [key for key, values in case.items() if values == (UNSET,)]
    text = " with ".join(
        key if values == (GIVEN,) else f"{key} {_join(values)}" for key, values in case.items() if key not in absent
    )
    return text + (f" without {' and '.join(absent)}" if absent else "")


def when(**needs: str | tuple[str, ...]) -> Condition:
    """Return the condition that all these keys have one of these values; `|` adds another case."""
    return Condition(
        ({key.replace("_", "-"): (value,) if isinstance(value, str) else value for key, value in needs.items()},)
    )


def fits(value: str, allowed: Sequence[str]) -> bool:
    """Return whether the value of a key is one of those that a condition needs."""
    return value in allowed or (GIVEN in allowed and value != UNSET)


@dataclass(frozen=True)
class KeyNotes:
    """Notes on a key, which stand in its field as `json_schema_extra`.

    effect    when the key has an effect; None: always
    neutral   the key says where and how a run is carried out, and cannot change its result
    later     the key is newer than the first checkpoints: at its default it stays out of stored configs, so that the
              identity of older configs is what it was
    source    one of the six keys of every config of the source document, which its checkpoint names carry: given
              where it has no effect, it causes a warning, and any other key an error
    """

    effect: Condition | None = None
    neutral: bool = False
    later: bool = False
    source: bool = False

    def __call__(self, schema: dict[str, Any]) -> None:
        """Add to a key's JSON Schema the models and trainers that the key is for. Called by pydantic."""
        if self.effect is not None:
            schema["description"] += f" (for {self.effect})"


def key(
    default: Any,
    description: str,
    effect: Condition | None = None,
    *,
    neutral: bool = False,
    later: bool = False,
    source: bool = False,
    **limits: Any,
) -> Any:
    """Return the pydantic field of a config key. `limits` are pydantic's own, such as `ge=0`."""
    notes = KeyNotes(effect, neutral, later, source)
    return Field(default, description=description, json_schema_extra=notes, **limits)


def _join(values: tuple[str, ...]) -> str:
    return " or ".join(part for part in (", ".join(values[:-1]), values[-1]) if part)
