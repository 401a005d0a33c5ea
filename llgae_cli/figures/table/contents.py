"""What the pictures of a table show: arrays in, charts out.

"Standard units" are (v - mean) / std with the mean and standard deviation of the variable over the measured rows.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llgae_cli.figures.table.charts import Bars, Chart, Matrix, Points

SHOWN = 20  # variables in a list
AXES = 3
LEADING = 8  # variables shown of an axis
COMPONENTS = 12  # panels of components
PARITY = 3  # worst and best variables
GROUPS = 6  # colours; further labels are "other"
STEPS = (-2, -1, 0, 1, 2)  # standard deviations along an axis
FULL = 2.0  # standard units that have the strongest colour


@dataclass(frozen=True)
class TableView:
    """The arrays that charts of a table are made of, for D variables, K components and n of the N measured rows.

    names        of the variables, length D
    v, v_hat     rows and their reconstructions in the variables' own units, (n, D)
    k            component of each row, (n,)
    a            first two principal coordinates of each row in its component, in standard deviations, (n, 2 or less)
    labels       class of each row, (n,), or None
    classes      names of the classes, or None
    N            number of measured rows, on which the next four are computed
    mean, std    of each variable, in its own units, (D,)
    r2, rmse     of each variable; RMSE in its own units, (D,)
    rmse_in      RMSE of each variable over the rows of each component, nan without rows, (K, D)
    order        the components, most used by the training rows first, (K,)
    use          share of the training rows in each component, (K,)
    centres      what the mean code of each component decodes to, in own units, (K, D)
    axes         change of the variables for one standard deviation along each axis, in own units, (K, J, D), J <= 3
    explained    share of the component's variance along each axis, (K, J)
    drawn        rows drawn from the model, in own units, (m, D)
    colour       variable whose value colours the codes; None: the labels, or else the first of `over`
    over         two variables over which components are mapped; None: those of the largest variance along the axes
    """

    names: tuple[str, ...]
    v: np.ndarray
    v_hat: np.ndarray
    k: np.ndarray
    a: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    N: int
    mean: np.ndarray
    std: np.ndarray
    r2: np.ndarray
    rmse: np.ndarray
    rmse_in: np.ndarray
    order: np.ndarray
    use: np.ndarray
    centres: np.ndarray
    axes: np.ndarray
    explained: np.ndarray
    drawn: np.ndarray
    colour: int | None = None
    over: tuple[int, int] | None = None

    @property
    def shown_components(self) -> np.ndarray:
        """The components that have a panel of their own: the most used."""
        return self.order[: min(COMPONENTS, int((self.use > 0).sum()))]

    def standardise(self, v: np.ndarray) -> np.ndarray:
        """Return v in standard units; 0 for a variable that does not vary."""
        return (v - self.mean) / np.where(self.std > 0, self.std, np.inf)

    def rank_variables(self) -> np.ndarray:
        """Return the variables by importance: the variance, in standard units, that means and axes explain."""
        scale = np.where(self.std > 0, self.std, np.inf)
        between = self.use @ np.square(self.standardise(self.centres))
        within = np.einsum("k,kjd->d", self.use, np.square(self.axes / scale))
        return np.argsort(-(between + within), kind="stable")

    def default_over(self) -> tuple[int, int]:
        """Return the two variables that vary most along the first axes, in standard units; fewer than two repeat."""
        scale = np.where(self.std > 0, self.std, np.inf)
        variance = np.einsum("k,kjd->d", self.use, np.square(self.axes / scale))
        first = np.argsort(-variance, kind="stable")
        return int(first[0]), int(first[min(1, len(first) - 1)])


def name_class(classes: tuple[str, ...] | None, label: int) -> str:
    """Return the name of a label, which for a label without a name of its own is `class 3`."""
    name = classes[label] if classes is not None and 0 <= label < len(classes) else str(label)
    return f"class {name}" if name == str(label) else name


def number(value: float, std: float = 0.0) -> str:
    """Return a value of a variable, with the decimals that show a hundredth of its standard deviation.

    With four significant digits where `std` is zero, and for values that would take too many decimals or digits.
    """
    if not np.isfinite(value):
        return "—"
    decimals = max(0, 2 - math.floor(math.log10(std))) if std > 0 else 99
    text = f"{value:.{decimals}f}" if decimals <= 8 and abs(value) < 1e7 else f"{value:.4g}"
    return _write_minus(text)


def signed(value: float) -> str:
    """Return a value with its sign and two decimals; none for what rounds to zero."""
    return _write_minus(f"{value:+.2f}") if round(value, 2) else "0.00"


def _write_minus(text: str) -> str:
    zero = not text.strip("-+0.")
    return text.removeprefix("-") if zero else text.replace("-", "−")


def means(view: TableView) -> Chart | None:
    """Return the bars of each component's mean in standard units, the same variables in each panel."""
    chosen = view.rank_variables()[:SHOWN]
    z = view.standardise(view.centres)
    limit = _limit(z[np.ix_(view.shown_components, chosen)])
    panels = tuple(
        Bars(_component(view, k), _names(view, chosen), z[k, chosen], tuple(map(signed, z[k, chosen])), limit)
        for k in view.shown_components
    )
    note = (
        "Mean of each component in standard units: how many standard deviations it lies above (right) or below (left) "
        f"the mean of all rows.{_left_out(view, chosen, 'most important')}{_components_left_out(view)}"
    )
    return Chart("Means of the components", note, panels)


def axes(view: TableView) -> Chart | None:
    """Return the bars of the leading variables of each principal axis, in standard units; None without axes."""
    z = view.axes / np.where(view.std > 0, view.std, np.inf)
    if not z.shape[1]:
        return None
    shown = view.shown_components
    limit, panels = _limit(z[shown]), []
    for k in shown:
        for j in range(z.shape[1]):
            top = np.argsort(-np.abs(z[k, j]), kind="stable")[:LEADING]
            title = f"{_component(view, k, use=False)}, axis {j + 1} ({view.explained[k, j]:.0%})"
            panels.append(Bars(title, _names(view, top), z[k, j, top], tuple(map(signed, z[k, j, top])), limit))
    note = (
        "Principal axes of each component: by how much a variable rises (right) or falls (left), in standard units, "
        "for one standard deviation along the axis. In brackets: the share of the component's variance. "
        f"The {min(LEADING, len(view.names))} leading of {len(view.names)} variables.{_components_left_out(view)}"
    )
    return Chart("Principal axes of the components", note, tuple(panels))


def parity(view: TableView) -> Chart | None:
    """Return original against reconstruction for the variables of the lowest and the highest R^2."""
    worst_first = np.argsort(np.where(np.isfinite(view.r2), view.r2, np.inf), kind="stable")
    worst_first = worst_first[np.isfinite(view.r2[worst_first])]
    if not len(worst_first):
        return None
    half = min(PARITY, (len(worst_first) + 1) // 2)
    chosen = [*worst_first[:half], *worst_first[half:][::-1][:half][::-1]]
    panels = []
    for at, d in enumerate(chosen):
        title = f"{'Worst' if at < half else 'Best'}: R² {_r2(view.r2[d])}"
        ends = _ends(np.concatenate([view.v[:, d], view.v_hat[:, d]]))
        none = np.zeros(len(view.v), np.int64)
        panels.append(
            Points(
                title,
                view.v[:, d],
                view.v_hat[:, d],
                none,
                ("",),
                view.names[d],
                "reconstruction",
                ends,
                ends,
                diagonal=True,
            )
        )
    note = (
        "Reconstruction against original, in the variable's own units; a perfect reconstruction lies on the line. "
        f"R² of all {view.N} test rows; {len(view.v)} rows are drawn. "
        f"The worst and the best of {len(view.names)} variables."
    )
    return Chart("Parity", note, tuple(panels))


def codes(view: TableView) -> Chart | None:
    """Return the first two coordinates of the rows of each component, coloured by label or by a variable."""
    if view.a.shape[1] == 0:
        return None
    colour = view.colour
    if colour is None and view.labels is None:
        colour = (view.over or view.default_over())[0]
    group, groups, ordered = _by_label(view) if colour is None else _by_value(view, colour)
    panels = []
    # The coordinates have unit variance; rows beyond four standard deviations stand at the edge.
    a = np.clip(view.a if view.a.shape[1] == 2 else np.hstack([view.a, np.zeros_like(view.a)]), -4, 4)
    for k in view.shown_components:
        own = view.k == k
        panels.append(
            Points(
                _component(view, k),
                a[own, 0],
                a[own, 1],
                group[own],
                groups,
                "b₁, standard deviations",
                "b₂, standard deviations" if view.a.shape[1] == 2 else "",
                (-4.0, 4.0),
                (-4.0, 4.0),
                ordered,
            )
        )
    by = "label" if colour is None else f"value of {view.names[colour]}"
    note = (
        f"Test rows by their first two coordinates in each component, coloured by {by}. {len(view.v)} of {view.N} "
        f"rows are drawn.{_components_left_out(view)}"
    )
    return Chart("Codes", note, tuple(panels))


def residuals(view: TableView) -> Chart | None:
    """Return the matrix of RMSE / std by variable (rows, worst first) and component (columns)."""
    scale = np.where(view.std > 0, view.std, np.nan)
    share = np.vstack([view.rmse, view.rmse_in[view.shown_components]]) / scale  # (1 + components, D)
    rows = np.argsort(-np.nan_to_num(share[0], nan=-1.0), kind="stable")[:SHOWN]
    top = max(1e-300, float(np.nanmax(share[:, rows], initial=0.0)))
    texts, shades = [], np.full((len(rows), len(share) + 2), np.nan)
    for i, d in enumerate(rows):
        texts.append((_r2(view.r2[d]), number(view.rmse[d]), *(_ratio(value) for value in share[:, d])))
        shades[i, 2:] = share[:, d] / top
    columns = ("R²", "RMSE", "all", *(f"k = {k}" for k in view.shown_components))
    note = (
        "RMSE of each variable in its own units, then divided by its standard deviation: over all rows and over the "
        f"rows of each component. Darker is worse; worst variables first. {view.N} test rows."
        f"{_left_out(view, rows, 'worst')}{_components_left_out(view)}"
    )
    return Chart(
        "Residual by variable and component", note, (Matrix("", _names(view, rows), columns, tuple(texts), shades),)
    )


def component_map(view: TableView) -> Chart | None:
    """Return the rows over two variables, coloured by component, with each component's share."""
    first, second = view.over or view.default_over()
    if view.over is None and first == second:
        return None
    shown = view.order[: GROUPS if len(view.order) <= GROUPS else GROUPS - 1]
    place = np.full(len(view.order), len(shown))
    place[shown] = np.arange(len(shown))
    other = ("others",) if len(view.order) > len(shown) else ()
    groups = (*(f"component {k}" for k in shown), *other)
    x, y = view.v[:, first], view.v[:, second]
    panel = Points("", x, y, place[view.k], groups, view.names[first], view.names[second], _ends(x), _ends(y))
    note = f"Test rows over two variables in their own units, coloured by component. {len(view.v)} of {view.N} rows."
    return Chart("Map of the components", note, (panel,))


def atlas(view: TableView) -> Chart | None:
    """Return for each component and principal axis what the codes decode to, -2 to +2 standard deviations along it."""
    ranked = view.rank_variables()
    panels = []
    for k in view.shown_components:
        for j in range(max(1, view.axes.shape[1])):
            steps = STEPS if view.axes.shape[1] else (0,)
            walk = np.stack([view.centres[k] + (s * view.axes[k, j] if s else 0.0) for s in steps], 1)
            strength = np.abs(view.axes[k, j] / np.where(view.std > 0, view.std, np.inf)) if len(steps) > 1 else None
            rows = ranked[:LEADING] if strength is None else np.argsort(-strength, kind="stable")[:LEADING]
            columns = tuple("mean" if s == 0 else f"{signed(s)[:2]} sd" for s in steps)
            title = _component(view, k, use=False) + (f", axis {j + 1}" if view.axes.shape[1] else "")
            panels.append(_values(view, title, rows, walk, columns))
    if not panels:
        return None
    note = (
        "What codes at −2 to +2 standard deviations along each principal axis decode to, in the variables' own units; "
        "colour: above (blue) or below (red) the mean of all rows. The "
        f"{min(LEADING, len(view.names))} leading of {len(view.names)} variables.{_components_left_out(view)}"
    )
    return Chart("Atlas", note, tuple(panels))


def samples(view: TableView) -> Chart | None:
    """Return rows drawn from the model as a table in own units."""
    if not len(view.drawn):
        return None
    rows = view.rank_variables()[:SHOWN]
    columns = tuple(str(i + 1) for i in range(len(view.drawn)))
    note = (
        "Rows drawn from the model, one a column, in the variables' own units; colour: above (blue) or below (red) "
        f"the mean of all rows.{_left_out(view, rows, 'most important')}"
    )
    return Chart("Samples from the model", note, (_values(view, "", rows, view.drawn.T, columns),))


CHARTS: dict[str, Callable[[TableView], Chart | None]] = {
    "means": means,
    "axes": axes,
    "parity": parity,
    "codes": codes,
    "residuals": residuals,
    "map": component_map,
    "atlas": atlas,
    "samples": samples,
}


def _values(view: TableView, title: str, rows: np.ndarray, v: np.ndarray, columns: tuple[str, ...]) -> Matrix:
    """Return the matrix of values v (D, columns) of the variables `rows`, coloured in standard units."""
    shades = np.clip(view.standardise(v.T).T[rows] / FULL, -1, 1)
    texts = tuple(tuple(number(value, view.std[d]) for value in v[d]) for d in rows)
    return Matrix(title, _names(view, rows), columns, texts, shades)


def _component(view: TableView, k: int, use: bool = True) -> str:
    return f"Component {k}" + (f", {view.use[k]:.1%} of the rows" if use else "")


def _names(view: TableView, chosen: np.ndarray) -> tuple[str, ...]:
    return tuple(view.names[d] for d in chosen)


def _left_out(view: TableView, chosen: np.ndarray, which: str) -> str:
    rest = len(view.names) - len(chosen)
    return f" The {len(chosen)} {which} of {len(view.names)} variables; {rest} are left out." if rest else ""


def _components_left_out(view: TableView) -> str:
    shown = len(view.shown_components)
    return f" The {shown} most used of {len(view.order)} components." if shown < len(view.order) else ""


def _limit(z: np.ndarray) -> float:
    return float(np.abs(z).max(initial=0.0)) or 1.0


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Return the range of the values with a margin of 3 %; one value has a range around it."""
    low, high = float(values.min()), float(values.max())
    margin = 0.03 * (high - low) or abs(low) * 0.05 or 1.0
    return low - margin, high + margin


def _r2(value: float) -> str:
    return "—" if not np.isfinite(value) else f"{value:.4f}".replace("-", "−") if value > -10 else number(value)


def _ratio(value: float) -> str:
    return "—" if not np.isfinite(value) else f"{value:.3f}"


def _by_label(view: TableView) -> tuple[np.ndarray, tuple[str, ...], bool]:
    assert view.labels is not None
    present, count = np.unique(view.labels, return_counts=True)
    kept = np.sort(present[np.argsort(-count, kind="stable")][: GROUPS if len(present) <= GROUPS else GROUPS - 1])
    place = np.where(np.isin(view.labels, kept), np.searchsorted(kept, view.labels), len(kept))
    named = [name_class(view.classes, int(c)) for c in kept]
    return place, (*named, *(("others",) if len(kept) < len(present) else ())), False


def _by_value(view: TableView, d: int) -> tuple[np.ndarray, tuple[str, ...], bool]:
    """Return the fifth of its values that each row's variable d is in; fewer parts where values repeat."""
    std = float(view.std[d])
    edges = np.unique(np.quantile(view.v[:, d], np.linspace(0, 1, 6)))
    if len(edges) < 3:
        return np.zeros(len(view.v), np.int64), (number(edges[0]),), True
    group = np.clip(np.searchsorted(edges, view.v[:, d], side="right") - 1, 0, len(edges) - 2)
    return (
        group,
        tuple(f"{number(low, std)} to {number(high, std)}" for low, high in itertools.pairwise(edges)),
        True,
    )
