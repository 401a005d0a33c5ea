"""Charts as plain values: a title, a sentence, and panels of bars, points or numbers in a matrix."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bars:
    """Horizontal bars from zero, first name at the top.

    title    of the panel
    names    one a bar, as stored, of any length
    values   lengths with sign, (n,)
    texts    what stands at each bar
    limit    length of the longest bar that can be drawn, the same in all panels of a chart
    """

    title: str
    names: tuple[str, ...]
    values: np.ndarray
    texts: tuple[str, ...]
    limit: float


@dataclass(frozen=True)
class Points:
    """Points (x, y) in groups that differ in colour and marker.

    title      of the panel
    x, y       coordinates, (n,)
    group      index into `groups` for each point, (n,)
    groups     names of the groups, for the legend
    x_name     name of the horizontal axis
    y_name     name of the vertical axis
    x_range    ends of the horizontal axis
    y_range    ends of the vertical axis
    ordered    the groups are intervals of a variable, from low to high
    diagonal   draw the line y = x
    """

    title: str
    x: np.ndarray
    y: np.ndarray
    group: np.ndarray
    groups: tuple[str, ...]
    x_name: str
    y_name: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    ordered: bool = False
    diagonal: bool = False


@dataclass(frozen=True)
class Matrix:
    """Numbers in rows and columns; the colour of a cell shows `shades`.

    title     of the panel
    rows      names of the rows, as stored, of any length
    columns   names of the columns
    texts     what stands in each cell, [row][column]
    shades    -1 to 1: negative and positive have a colour each; nan: no colour, (rows, columns)
    corner    what the rows are, above their names
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    shades: np.ndarray
    corner: str = "variable"


@dataclass(frozen=True)
class Chart:
    """A picture: its title, a sentence about how to read it, and its panels, all of one kind."""

    title: str
    note: str
    panels: tuple[Bars | Points | Matrix, ...]

    @property
    def legend(self) -> tuple[str, ...]:
        """Names of the groups of points that all panels share; empty for other charts and for a single group."""
        first = self.panels[0] if self.panels else None
        return first.groups if isinstance(first, Points) and len(first.groups) > 1 else ()
