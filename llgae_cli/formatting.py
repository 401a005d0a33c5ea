"""Numbers and config values as text."""

import math
from typing import Any


def five_digits(value: float | None, decimals: int = 2) -> str:
    """Return a number with five significant digits, and at least `decimals` decimals; `-` for None and nan.

    724.62, 1207.98, 0.041234, and in scientific form where that takes more than 8 decimals: 1.2346e-09.
    """
    if value is None or math.isnan(value):
        return "-"
    if value == 0 or math.isinf(value):
        return f"{value:.{decimals}f}"
    decimals = max(decimals, 4 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}" if decimals <= 8 else f"{value:.4e}"


def describe_time_left(seconds: float) -> str:
    """Return words such as `about 3 min left`."""
    if round(seconds) < 100:
        return f"about {round(seconds)} s left"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"about {hours} h {minutes} min left" if hours else f"about {minutes} min left"


def percent(share: float) -> str:
    """Return a share as a percentage with two decimals; `-` for nan."""
    return "-" if math.isnan(share) else f"{share:.2%}"


def format_value(value: Any, limit: int = 0) -> str:
    """Return a value of a config or a table as text: floats with six digits at most, lists joined, `—` for None.

    A text longer than `limit` (0: no limit) is cut.
    """
    if isinstance(value, float):
        text = f"{value:g}"
    elif isinstance(value, (list, tuple)):
        text = ", ".join(map(str, value))
    else:
        text = "—" if value is None else str(value)
    return text if not limit or len(text) <= limit else f"{text[: limit - 1]}…"
