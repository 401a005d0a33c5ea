"""The plot of a sweep's cells on the page: rate against mean L2, a point for each cell, with the Pareto front.

Points can be reached by pointer and keyboard; `sweep.js` shows the cell of a point and opens it. All points carry their
label where there are at most twelve, else those of the front do.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llgae_cli.evaluation.rate import find_pareto_front
from llgae_cli.formatting import five_digits, format_value
from llgae_cli.report.charts import Tick
from llgae_cli.sweep import Leaderboard

WIDTH, HEIGHT = 640, 400  # of the SVG, in its units
LEFT, RIGHT, TOP, BOTTOM = 62, 616, 14, 356
MAX_LABELLED = 12
MARGIN = 0.06  # share of an axis that is left free at both ends
WIDE = 8.0  # largest over least value, from which an axis is logarithmic
GAP_X, GAP_Y = 58, 13  # between labels, in the SVG's units
RISE = 4  # of the middle of a label above its baseline
SIDES = ((8, -6, "start"), (8, 14, "start"), (-8, -6, "end"), (-8, 14, "end"), (8, 27, "start"))  # of a point
COSTS = {
    "validation_bits_coded": "bits a validation sample, as coded",
    "bits_coded": "bits a sample, as coded",
    "seconds": "seconds of training",
    "bits_float": "bits a sample, b as 32-bit floats",
}
STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))  # ticks within a factor of ten, from few to many
MAX_TICKS = 7


def prepare_front(board: Leaderboard) -> dict[str, Any] | None:
    """Return what the template needs of the plot; None where fewer than two cells have both figures.

    Across is the other objective of a search, else the bits of a code, on validation samples where these rank.
    """
    cost = next((name for name in board.objectives if name != board.ranked_by), "")
    wanted = [cost] if cost else [name for name in COSTS if board.ranked_by != "mean_l2" or "validation" not in name]
    places = range(len(board.rows))
    for name in wanted:
        shown = [i for i in places if _both(board.rows[i], name, board.ranked_by)]
        if len(shown) > 1 and len({board.rows[i][name] for i in shown}) > 1:
            return _prepare(board, name, shown)
    return None


def _prepare(board: Leaderboard, cost: str, shown: Sequence[int]) -> dict[str, Any]:
    rows = [board.rows[i] for i in shown]
    x, y = (np.array([float(row[name]) for row in rows]) for name in (cost, board.ranked_by))
    across, x_ticks, x_log = _scale(x, LEFT, RIGHT)
    up, y_ticks, y_log = _scale(y, BOTTOM, TOP)
    front = find_pareto_front(list(zip(x.tolist(), y.tolist(), strict=True)))
    labels = _choose_labels(range(len(rows)) if len(rows) <= MAX_LABELLED else front, front, across, up)
    names = [_name(board, row) for row in rows]
    short = [", ".join(format_value(row.get(key), 12) for key in board.keys[:3]) for row in rows]
    points = [
        {
            "row": shown[i],
            "x": round(float(across[i]), 1),
            "y": round(float(up[i]), 1),
            "front": i in front,
            "label": short[i] if i in labels else "",
            "place": labels.get(i),
            "text": f"{names[i]}: mean L2 {five_digits(y[i])}, {five_digits(x[i])} {COSTS[cost]}",
        }
        for i in range(len(rows))
    ]
    scales = [name for name, is_log in (("across", x_log), ("up", y_log)) if is_log]
    return {
        "points": points,
        "line": "M" + "L".join(f"{across[i]:.1f} {up[i]:.1f}" for i in front),
        "x_name": COSTS[cost],
        "y_name": f"{'validation' if board.ranked_by != 'mean_l2' else 'test'} mean L2",
        "scales": f"Logarithmic {' and '.join(scales)}." if scales else "",
        "labels": ", ".join(key.replace("_", "-") for key in board.keys[:3]),
        "x_ticks": x_ticks,
        "y_ticks": y_ticks,
        "frame": {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM, "width": WIDTH, "height": HEIGHT},
        "front": len(front),
    }


def _both(row: dict[str, Any], *names: str) -> bool:
    values = [row.get(name) for name in names]
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return row.get("status", "done") == "done" and len(numbers) == len(names) and all(map(math.isfinite, numbers))


def _name(board: Leaderboard, row: dict[str, Any]) -> str:
    return " ".join(f"{key.replace('_', '-')}={format_value(row.get(key), 24)}" for key in board.keys) or "the cell"


def _scale(values: np.ndarray, first: float, last: float) -> tuple[np.ndarray, list[Tick], bool]:
    """Return the places of values on an axis that fits them, its ticks, and whether it is logarithmic."""
    low, high = float(values.min()), float(values.max())
    as_logs = low > 0 and high >= WIDE * low
    floor = 0.0
    if as_logs and low < 1e-3 * high:  # a cell without bits must not take the axis from all others
        as_logs, floor = False, 0.0
    rise = np.log if as_logs else np.asarray
    a, b = float(rise(low)), float(rise(high))
    edge = MARGIN * (b - a) or 0.1 * abs(a) or 1.0
    a, b = a - edge, b + edge
    if not as_logs and low >= 0:
        a = max(a, floor) if low > 0 else a
    places = first + (rise(values) - a) / (b - a) * (last - first)
    ticks = [
        Tick(round(first + (float(rise(t)) - a) / (b - a) * (last - first), 1), f"{t:,.10g}")
        for t in _ticks(a, b, as_logs)
    ]
    return places, ticks, as_logs


def _ticks(a: float, b: float, as_logs: bool) -> list[float]:
    """Return round numbers within an axis from a to b, which are logarithms where it is logarithmic."""
    if not as_logs:
        from matplotlib.ticker import MaxNLocator

        return [float(round(t, 10)) for t in MaxNLocator(MAX_TICKS - 1).tick_values(a, b) if a <= t <= b]
    low, high, best = math.exp(a), math.exp(b), []
    for steps in STEPS:
        ticks = [m * 10.0**p for p in range(-9, 13) for m in steps if low <= m * 10.0**p <= high]
        if len(ticks) <= MAX_TICKS:
            best = ticks
    return best


def _choose_labels(
    wanted: Sequence[int] | range, front: Sequence[int], x: np.ndarray, y: np.ndarray
) -> dict[int, dict[str, Any]]:
    """Return where the label of each point stands: where it covers no other label and the least of points and line."""
    line = [np.linspace((x[i], y[i]), (x[j], y[j]), 40) for i, j in itertools.pairwise(front)]
    obstacles = np.concatenate([np.stack([x, y], 1), *line])
    taken: list[tuple[float, float]] = []
    placed: dict[int, dict[str, Any]] = {}
    for i in wanted:
        sides = []
        for dx, dy, anchor in SIDES:
            at = float(x[i]) + dx, float(y[i]) + dy
            middle = at[0] + (GAP_X / 2 if anchor == "start" else -GAP_X / 2)
            inside = middle - GAP_X / 2 > LEFT and middle + GAP_X / 2 < WIDTH and TOP - 4 < at[1] < BOTTOM
            free = all(abs(middle - tx) > GAP_X or abs(at[1] - ty) > GAP_Y for tx, ty in taken)
            across, up = np.abs(obstacles - (middle, at[1] - RISE)).T
            covered = int(((across < GAP_X / 2) & (up < GAP_Y / 2)).sum())
            sides.append((not (inside and free), covered, at, middle, anchor))
        unfit, _, at, middle, anchor = min(sides, key=lambda side: side[:2])
        if unfit:
            if len(wanted) > MAX_LABELLED:
                continue
            _, _, at, middle, anchor = sides[0]
        taken.append((middle, at[1]))
        placed[i] = {"x": round(at[0], 1), "y": round(at[1], 1), "anchor": anchor}
    return placed
