"""The unit of a mean L2, as figures and reports write it."""

GREY_LEVELS = "grey levels² per pixel"


def error_unit(table: bool, scaled: bool) -> str:
    """Return the unit of a mean L2: of images, or of a table whose variables are scaled or not."""
    if not table:
        return GREY_LEVELS
    return "scaled units²" if scaled else "squared units of the data"
