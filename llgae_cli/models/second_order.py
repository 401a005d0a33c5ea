"""Second-order ascent on the latents: BFGS, started from the curvature of a Gauss-Newton step."""

from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 0.3  # added to the initial curvature, over its mean diagonal: full steps from a far start overshoot
RACE = {0: 1.05, 3: 1.0}  # before these steps, rivals above this multiple of the least energy of their sample are done
LAST = 3.0  # a step that may gain less than this multiple of the tolerance is the last one of its row
STRAIGHT = 1e-8  # least cosine of step and change of slope at which the curvature is updated

# (rows (m,), b (m, E)) -> (energy (m,), slope (m, E)) of those rows at b
Energy = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Value = Callable[[Tensor, Tensor], Tensor]  # the energy alone


def invert_curvature(J: Tensor, alpha: float) -> Tensor:
    """Return (mean J^T J + alpha I + damping)^-1, (K, E, E), for Jacobians J (K, m, D, E) at m latents of each k.

    J^T J is the curvature of 1/2 |x - g(b)|^2 without its second derivatives of g (Gauss-Newton).
    """
    H = (J.mT @ J).mean(1)
    size = H.diagonal(dim1=1, dim2=2).mean(1)
    damping = torch.where(size > 0, DAMPING * size, 1.0)  # a decoder that ignores b
    unit = torch.eye(H.shape[1], device=H.device, dtype=H.dtype)
    return torch.linalg.inv(H + (alpha + damping)[:, None, None] * unit)


@torch.no_grad()
def minimise(
    energy: Energy,
    b: Tensor,
    P: Tensor,
    steps: int,
    tolerance: float,
    energy_only: Value | None = None,
    sample: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents b (n, E) after at most `steps` steps of BFGS, each row on its own, their P, and energies (n,).

        step    b' = b - a P grad,    taken where the energy falls; else a is halved
        update  P' = (I - s y^T / y^T s) P (I - y s^T / y^T s) + s s^T / y^T s,    s = b' - b,  y = grad' - grad

    P (n, E, E) is the initial inverse curvature. The energy of a row never rises. A row is done, and is not evaluated
    again, where a/2 grad^T P grad, about what its next step may gain, is less than `tolerance` of its energy, or where
    the energy is not finite. With `energy_only`, the last step of a row evaluates nothing else, and does not update P:
    step number `steps`, or one that may gain less than LAST times `tolerance` of the energy. If the energy does not
    fall, the step is not taken. Source: Nocedal and Wright, Numerical Optimization, 2nd ed., equation 6.17.

    sample  (n,), numbers below n: rows with the same number are rivals, and those that are behind are done, see `RACE`
    """
    b, P_final = b.clone(), P.clone()
    if len(b) == 0:
        return b, P_final, b.new_zeros(0)
    rows = torch.arange(len(b), device=b.device)  # those that are not done
    value, slope = energy(rows, b)
    value = torch.where(value.isnan(), torch.inf, value)
    energies = value.clone()
    length = torch.ones_like(value)
    unit = torch.eye(b.shape[1], device=b.device, dtype=b.dtype)
    for step in range(steps):
        s = -length[:, None] * (P @ slope[:, :, None])[:, :, 0]
        gain = -(s * slope).sum(1) / 2
        going = gain > tolerance * value  # False for NaN, and where the energy is infinite
        if sample is not None and step in RACE:
            least = torch.full_like(energies, torch.inf).scatter_reduce(0, sample, energies, "amin")
            going &= value <= RACE[step] * least[sample[rows]]
        if energy_only is not None:
            last = going if step == steps - 1 else going & (gain < LAST * tolerance * value)
            if bool(last.any()):
                ending, end = rows[last], b[rows[last]] + s[last]
                new_value = energy_only(ending, end)
                lower = new_value < value[last]
                b[ending] = torch.where(lower[:, None], end, b[ending])
                energies[ending] = torch.where(lower, new_value, value[last])
                going &= ~last
        rows, value, slope, length, P, s = (each[going] for each in (rows, value, slope, length, P, s))
        if len(rows) == 0:
            break
        at = b[rows]
        new_value, new_slope = energy(rows, at + s)
        lower = new_value < value  # False for NaN
        b[rows] = torch.where(lower[:, None], at + s, at)
        energies[rows] = value = torch.where(lower, new_value, value)

        y = new_slope - slope
        ys = (y * s).sum(1)
        convex = ys > STRAIGHT * y.norm(dim=1) * s.norm(dim=1)  # False for NaN
        ys = torch.where(convex, ys, 1.0)
        rotation = unit - s[:, :, None] * (y / ys[:, None])[:, None, :]
        updated = rotation @ P @ rotation.mT + s[:, :, None] * (s / ys[:, None])[:, None, :]
        P_final[rows] = P = torch.where(convex[:, None, None], updated, P)
        slope = torch.where(lower[:, None], new_slope, slope)
        length = torch.where(lower, 1.0, length / 2)
    return b, P_final, energies
