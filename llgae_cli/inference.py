"""The latent b of a sample under each component, by three methods: the loop, its collapse, and least squares.

All maximise l(b) = -1/2 |x - mu - W b|^2 - alpha/2 |b|^2 from b = 0. With c = W^T (x - mu), G = W^T W and
H = G + alpha I every result is linear in c, and two of the methods compute the matrix P with b = P c:

    loop            b(t) = b(t-1) + beta (W^T (x - mu - W b(t-1)) - alpha b(t-1)),   t = 1 ... T
    collapse        P = beta * sum_{t<T} (I - beta H)^t
    least squares   P = H^+  (the limit T -> infinity, reached where beta < 2 / max eigenvalue of H)

Shapes: x (n, D), mu (K, D), W (K, D, E), b (n, K, E), G, P, Q (K, E, E).
Source: CATSMILE-1022, the recursion for b(k, t); its closed form is the geometric series of the matrix I - beta H.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK_VALUES, MIN_ROWS = 1 << 19, 128  # values of a product under all components: 2 MB, which a cache holds
LOOP_VALUES = 1 << 22  # of the (n, K, D) arrays of the loop: 16 MB each
EXACT_ROWS = 1024  # whose residuals are computed in float64 at a time
TIE, TIE_LENGTH = 2.0**-40, 2.0**-24  # distances d, d' are equal where d' <= d + TIE (d + TIE_LENGTH |x - mu|^2)
ROW_BITS, PRODUCT_BITS = 24, 52  # of a row's integers, and of their products' sums, one bit below what float64 holds


def loop(x: Tensor, mu: Tensor, W: Tensor, beta: float, n_step: int, alpha: float) -> Tensor:
    """Return b(T), shape (n, K, E), step by step as the source defines it; needs memory for (n, K, D) residuals."""
    b = x.new_zeros(len(x), W.shape[0], W.shape[2])
    for _ in range(n_step):
        residual = x[:, None] - mu - torch.einsum("kde,nke->nkd", W, b)
        b = b + beta * (torch.einsum("kde,nkd->nke", W, residual) - alpha * b)
    return b


def collapse(x: Tensor, mu: Tensor, W: Tensor, beta: float, n_step: int, alpha: float) -> Tensor:
    """Return b(T), shape (n, K, E), through the map P: equal to `loop` up to rounding, at a cost independent of T."""
    return torch.einsum("kef,nkf->nke", collapse_map(W.mT @ W, beta, n_step, alpha), correlations(x, mu, W))


def least_squares(x: Tensor, mu: Tensor, W: Tensor, beta: float, n_step: int, alpha: float) -> Tensor:
    """Return argmax_b l(b), shape (n, K, E): least squares (alpha = 0, of least norm) or ridge; beta, n_step unused."""
    return torch.einsum("kef,nkf->nke", least_squares_map(W.mT @ W, beta, n_step, alpha), correlations(x, mu, W))


INFERENCES = {"loop": loop, "collapse": collapse, "least-squares": least_squares}


def correlations(x: Tensor, mu: Tensor, W: Tensor) -> Tensor:
    """Return c = W_k^T (x - mu_k) for all k, shape (n, K, E), from one matrix product without an (n, K, D) array."""
    K, D, E = W.shape
    offsets = torch.einsum("kd,kde->ke", mu, W)
    return (x @ W.permute(1, 0, 2).reshape(D, K * E)).unflatten(1, (K, E)) - offsets


def collapse_map(G: Tensor, beta: float, n_step: int, alpha: float) -> Tensor:
    """Return P = beta * sum_{t<T} (I - beta H)^t, shape (K, E, E), with H = G + alpha I; then b(T) = P c.

    The series is summed by doubling, S_2t = S_t + M^t S_t with M = I - beta H. It takes about log2 T products and
    divides by no eigenvalue, so beta h -> 0 is harmless. Unlike a sum by `eigh`, it has a gradient where eigenvalues
    coincide.
    """
    eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    M = eye - beta * (G + alpha * eye)
    series, power = torch.zeros_like(M), eye.expand_as(M)  # S_0, M^0
    for bit in bin(n_step)[2:]:
        series, power = series + power @ series, power @ power
        if bit == "1":
            series, power = series + power, power @ M
    return beta * series


def least_squares_map(G: Tensor, beta: float, n_step: int, alpha: float) -> Tensor:
    """Return P = (G + alpha I)^+, shape (K, E, E); b is 0 along directions of zero length. beta, n_step unused."""
    eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    H, overflow = _finite(G + alpha * eye)
    return torch.linalg.pinv(H, hermitian=True) + overflow


MAPS = {"loop": collapse_map, "collapse": collapse_map, "least-squares": least_squares_map}


def gain(P: Tensor, G: Tensor) -> Tensor:
    """Return Q = 2P - PGP, shape (K, E, E): |x - mu - W P c|^2 = |x - mu|^2 - c^T Q c for every symmetric P."""
    return 2 * P - P @ G @ P


def fold(W: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    """Return bases A (K, D, E) and signs s (K, E) with c^T Q c = sum_e s_e (A_e^T (x - mu))^2.

    All s are +1 where beta * max(h) <= 2, as in all runs that converge. A is NaN where Q is not finite.
    """
    Q, overflow = _finite((Q + Q.mT) / 2)
    q, V = torch.linalg.eigh(Q)
    return W @ (V * q.abs().sqrt()[:, None, :] + overflow), torch.where(q < 0, -1.0, 1.0).to(W.dtype)


def nearest(x: Tensor, mu: Tensor, W: Tensor, Q: Tensor, exact_map: Callable[[Tensor], Tensor]) -> Tensor:
    """Return k(x) = argmin_k |x - mu_k - W_k b_k(T)|^2, shape (n,), for Q from `gain`; the first of equal ones.

    Distances are differences of squares. Where their rounding may decide, they are computed in float64 from the
    residuals, with P = exact_map(W^T W): so k depends on the row alone, and not on how a product rounds. The origin is
    the mean of the mu_k, so that an offset common to all samples costs no digits: |x|^2 may be 1e8 times the distances.
    """
    origin = mu.mean(0)
    centred = x - origin
    distances = relative_distances(centred, mu - origin, *fold(W, Q))
    k = distances.argmin(1)
    squares = centred.square().sum(1, keepdim=True) + (mu - origin).square().sum(1)  # (n, K): what rounds in a distance
    allowed = within_rounding(distances, squares)
    unclear = (allowed.sum(1) > 1).nonzero()[:, 0]
    if len(unclear):
        wide = W if W.device.type == "mps" else W.double()
        k[unclear] = choose_exactly(x[unclear], mu, W, allowed[unclear], exact_map(wide.mT @ wide))[0]
    return k


def relative_distances(x: Tensor, mu: Tensor, A: Tensor, s: Tensor) -> Tensor:
    """Return |x - mu_k - W_k b_k(T)|^2 - |x|^2, shape (n, K), with A and s from `fold`.

    Operations: 2 n D K (E + 1), in matrix products. |x|^2 is the same for every k and left out.
    """
    K, D, E = A.shape
    columns, offsets = A.permute(1, 0, 2).reshape(D, K * E), torch.einsum("kd,kde->ke", mu, A)
    all_positive, constant, lowered = bool((s > 0).all()), mu.square().sum(1), []
    size = max(MIN_ROWS, BLOCK_VALUES // max(1, K * E)) if x.device.type == "cpu" else max(1, len(x))
    for rows in x.split(size):
        squares = (rows @ columns).unflatten(1, (K, E)).sub_(offsets).square_()
        lowered.append((squares if all_positive else squares.mul_(s)).sum(2))
    return constant - 2 * x @ mu.T - torch.cat(lowered)


def has_lost_digits(distance: Tensor, squared: Tensor) -> Tensor:
    """Return where the least squared distance (n,) is so far below |x|^2, `squared` (n,), that rounding may decide k.

    A difference of squares has an error of about eps |x|^2. Where |x|^2 exceeds 256 distances (in float32), that may be
    more than 1e-4 of the distance.
    """
    return distance < 2.0**15 * torch.finfo(distance.dtype).eps * squared


def within_rounding(distances: Tensor, squared: Tensor) -> Tensor:
    """Return which components may be the nearest, (n, K), given differences of squares (n, K).

    `squared` are the squares whose rounding is the error, (n, K), or (n, 1) where only |x|^2 counts.
    """
    error = 2.0**6 * torch.finfo(distances.dtype).eps * squared
    return distances - error <= (distances + error).min(1, keepdim=True).values


def choose_exactly(x: Tensor, mu: Tensor, W: Tensor, allowed: Tensor, P: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the nearest k (n,) among the components `allowed` (n, K) for x (n, D), and the squared distance (n,).

    Distances come from the residuals x - mu_k - W_k P_k W_k^T (x - mu_k) in float64. P None is the identity, for
    orthonormal W. Of components that are equally near, but for rounding, the first is chosen.
    """
    wide = torch.float32 if x.device.type == "mps" else torch.float64  # Apple's GPU has no float64
    mu, K = mu.to(wide), len(mu)
    lowest = x.new_full((len(x),), torch.inf, dtype=wide)
    component, row = allowed.T.nonzero(as_tuple=True)  # all pairs, sorted by their component
    distance, length = x.new_empty(len(row), dtype=wide), x.new_empty(len(row), dtype=wide)
    for some in torch.arange(len(row), device=x.device).split(EXACT_ROWS):
        of, residual = component[some], x[row[some]].to(wide)
        residual -= mu[of]
        length[some] = residual.square().sum(1)
        used, counts = torch.unique_consecutive(of, return_counts=True)
        for j, r in zip(used.tolist(), residual.split(counts.tolist()), strict=True):
            W_j = W[j].to(wide)
            c = r @ W_j
            r -= (c if P is None else c @ P[j].to(wide).T) @ W_j.T
        distance[some] = residual.square_().sum(1)
    lowest.scatter_reduce_(0, row, distance, "amin")
    least = lowest[row]
    near = distance <= least + TIE * (least + TIE_LENGTH * length)
    k = component.new_full((len(x),), K).scatter_reduce_(0, row[near], component[near], "amin")
    return torch.where(k < K, k, 0), lowest


def project_exactly(x: Tensor, k: Tensor, mu: Tensor, W: Tensor, P: Tensor) -> Tensor:
    """Return b = P_k W_k^T (x - mu_k), shape (n, E), for float32 x (n, D): each row's bits depend on the row alone.

    A product's rounding depends on the shape of its matrices, and so on how many rows share a component. Therefore
    rows and V_k = W_k P_k^T are rounded to integers such that float64 adds their products exactly, in any order:
    |y_d| <= 2^24 for y, a row times its own power of two, and sum_d |V_de| <= 2^28 + D / 2 for a column of V times
    its own. The result differs from the product of unrounded numbers by some 2^-23 |x - mu_k| |V_e|, as in float32.
    """
    b, order = x.new_empty(len(x), W.shape[2]), torch.argsort(k, stable=True)
    if b.numel() == 0:
        return b
    integers: dict[int, tuple[Tensor, Tensor]] = {}  # of the last component, whose rows may go on in the next part
    for some in order.split(EXACT_ROWS):
        of = k[some]
        y = x[some].double()
        y -= mu[of]
        unit = _power_of_two(y.abs().amax(1, keepdim=True), ROW_BITS)
        y.mul_(unit).round_()
        z = y.new_empty(len(some), W.shape[2])
        used, counts = torch.unique_consecutive(of, return_counts=True)
        groups = zip(used.tolist(), *(each.split(counts.tolist()) for each in (y, z)), strict=True)
        for j, y_j, z_j in groups:
            if j not in integers:
                V = W[j].double() @ P[j].double().T
                unit_j = _power_of_two(V.abs().sum(0), PRODUCT_BITS - ROW_BITS)
                integers = {j: ((V * unit_j).round_(), unit_j)}
            torch.mm(y_j, integers[j][0], out=z_j)
            z_j /= integers[j][1]
        b[some] = (z / unit).to(b)
    return b


def _power_of_two(size: Tensor, bits: int) -> Tensor:
    """Return the power of two u with size u below 2^bits, and at least half of it; 1 where size is 0 or not finite."""
    mantissa = torch.frexp(size).mantissa
    return torch.where((size > 0) & size.isfinite(), mantissa / size * 2.0**bits, 1.0)


def step_limit(W: Tensor, alpha: float) -> float:
    """Return the largest stable step size, 2 / max eigenvalue of H over all components.

    Infinity where W is zero or E = 0; zero where W^T W is not finite.
    """
    G, overflow = _finite(W.mT @ W)
    if W.shape[2] == 0:
        return float("inf")
    if bool(overflow.isnan().any()):
        return 0.0
    largest = float(torch.linalg.eigvalsh(G).max()) + alpha
    return 2 / largest if largest > 0 else float("inf")


def gauge(U: Tensor, beta: float, alpha: float) -> Tensor:
    """Return W = U sqrt(1/beta - alpha) for orthonormal U (K, D, E): beta H = I, so b(T) = beta c for every T >= 1.

    With alpha = 0 that is least squares, W b(T) = U U^T (x - mu). With alpha > 0 it is ridge regression,
    W b(T) = (1 - alpha beta) U U^T (x - mu). alpha beta must be below 1.
    """
    return U * (1 / beta - alpha) ** 0.5


def _finite(M: Tensor) -> tuple[Tensor, Tensor]:
    """Return M (K, E, E) with zeros for each matrix that is not finite, and (K, 1, 1): NaN for those, 0 for the others.

    LAPACK would raise for all components because of one such matrix. The NaN, added to the result, reaches the loss,
    which is checked.
    """
    finite = M.isfinite().all(-1).all(-1)[:, None, None]
    return torch.where(finite, M, 0.0), torch.where(finite, 0.0, torch.nan).to(M.dtype)
