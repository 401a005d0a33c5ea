"""A scaling of the variables of rows, u = (v - c) / s; `tasks.scaling` fits it. Importing it does not import torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llgae_cli.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scaling:
    """u = (v - centre) / scale, for `centre` and `scale` (D,) in float64; `method` says how they were found."""

    method: str
    centre: Floats
    scale: Floats

    def apply(self, v: Floats) -> Floats:
        """Return the scaled rows u (n, D) of rows v (n, D) in their own units."""
        return (v - self.centre) / self.scale

    def undo(self, u: Floats) -> Floats:
        """Return the rows v (n, D) in their own units of scaled rows u (n, D): one product, then one sum."""
        v: Floats = u * self.scale
        return v + self.centre

    def plain(self) -> dict[str, Any]:
        """Return plain values, for checkpoints."""
        return {"method": self.method, "centre": self.centre.tolist(), "scale": self.scale.tolist()}

    @property
    def identity(self) -> bytes:
        """Bytes that are equal for equal scalings."""
        return self.centre.tobytes() + self.scale.tobytes()


def restore_scaling(stored: Any, D: int) -> Scaling | None:
    """Return the scaling in a checkpoint's data; None for None.

    Raises InputError for what `Scaling.plain` never gives.
    """
    if stored is None:
        return None
    try:
        centre, scale = (np.array(stored[name], np.float64) for name in ("centre", "scale"))
        sound = centre.shape == scale.shape == (D,) and (np.isfinite(centre) & np.isfinite(scale) & (scale != 0)).all()
        if not sound:
            raise ValueError
        return Scaling(str(stored["method"]), centre, scale)
    except (TypeError, KeyError, ValueError, OverflowError):
        raise InputError("a checkpoint whose scaling is damaged") from None
