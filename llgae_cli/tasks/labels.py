"""Labels and test marks as the columns of a table hold them."""

import numpy as np

from llgae_cli.errors import InputError, printable

MAX_LABEL = 65_535


def number_labels(raw: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels 0, 1, ... (N,) int64 and the names of the classes.

    Integers (also as text or floats) from 0 to 65,535 are labels themselves. Other values, such as text, are numbered
    in sorted order. Raises InputError: a row without a label, more than 65,536 classes.
    """
    values = np.asarray(raw)
    if values.dtype.kind in "US" and (values == "").any():
        raise InputError(f"{where}: row {int((values == '').argmax())} has no label (rows count from 0)")
    try:
        numbers = values.astype(np.float64)
    except ValueError:
        numbers = np.full(len(values), -1.0)
    if np.isnan(numbers).any():
        raise InputError(f"{where}: row {int(np.isnan(numbers).argmax())} has no label (rows count from 0)")
    if len(numbers) and (numbers == np.floor(numbers)).all() and numbers.min() >= 0 and numbers.max() <= MAX_LABEL:
        return numbers.astype(np.int64), tuple(str(label) for label in range(int(numbers.max()) + 1))
    names, labels = np.unique(values, return_inverse=True)
    if len(names) > MAX_LABEL + 1:
        raise InputError(f"{where}: {len(names)} different labels; {MAX_LABEL + 1} are allowed")
    return labels.astype(np.int64), tuple(str(name) for name in names)


def mark_test(raw: np.ndarray, column: str, where: str) -> np.ndarray:
    """Return a mask (N,) of the test rows from a column of 0 and 1, or false and true.

    Raises InputError: another value, and where one of the two sets would be empty.
    """
    known = {"0": False, "false": False, "0.0": False, "1": True, "true": True, "1.0": True}
    marks = np.empty(len(raw), bool)
    for row, value in enumerate(np.asarray(raw).tolist()):
        mark = known.get(str(value).lower())
        if mark is None:
            raise InputError(
                f"{where}: row {row}, column '{printable(column)}': '{printable(value)}'; a test column holds 0 "
                "(train) or 1 (test) (rows count from 0)"
            )
        marks[row] = mark
    if marks.all() or not marks.any():
        raise InputError(f"{where}: column '{printable(column)}' leaves no {'training' if marks.all() else 'test'} row")
    return marks
