"""What swept keys do to the mean L2."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from llgae_cli.figures.style import BLUE, RED, Theme, new_figure, styled

MAX_PANELS = 4
MAX_VALUES = 30


@styled
def by_key(
    rows: Sequence[dict[str, Any]], keys: Sequence[str], ranked_by: str = "mean_l2", *, theme: Theme = "light"
) -> Figure | None:
    """A panel a key: every run's mean L2 (squared grey levels per pixel) at its value, and the lowest of each value.

    `rows` have the keys and the figure `ranked_by`: `validation_mean_l2`, or `mean_l2`, which is of the test samples.
    Numeric keys stand on an axis of ranks, so that 1, 10, 100 are evenly spaced. None when no run was finished or
    nothing differs.
    """
    done = [row for row in rows if isinstance(row.get(ranked_by), (int, float)) and row[ranked_by] == row[ranked_by]]
    keys = [key for key in keys if 1 < len({str(row.get(key)) for row in done}) <= MAX_VALUES][:MAX_PANELS]
    if not done or not keys:
        return None
    figure = new_figure(max(4.6, 2.6 * len(keys) + 1.4), 3.4)
    panels = np.atleast_1d(figure.subplots(1, len(keys), sharey=True))
    for axes, key in zip(panels, keys, strict=True):
        values = sorted({row.get(key) for row in done}, key=_rank)
        at = {_name(value): place for place, value in enumerate(values)}
        x = np.array([at[_name(row.get(key))] for row in done])
        y = np.array([row[ranked_by] for row in done], dtype=float)
        axes.plot(x, y, ls="", marker="o", color=BLUE, alpha=0.6, label="a run")
        lowest = [y[x == place].min() for place in range(len(values))]
        axes.plot(range(len(values)), lowest, color=RED, marker="s", label="lowest of its value")
        axes.set_xticks(range(len(values)), [_name(value) for value in values], rotation=0 if len(values) < 6 else 60)
        axes.set(xlabel=key.replace("_", "-"), xlim=(-0.5, len(values) - 0.5))
    by_test = ranked_by == "mean_l2"
    panels[0].set_ylabel(f"{'test' if by_test else 'validation'} mean L2 (grey levels² per pixel)")
    figure.suptitle("By test mean L2: no choice of a model" if by_test else "By mean L2 on validation samples")
    panels[-1].legend()
    return figure


def _rank(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (not number, float(value) if number else 0.0, str(value))


def _name(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return (text if len(text) <= 18 else text[:17] + "…").replace("$", r"\$")
