"""Shift LLGAE: the code also holds a shift of the image."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from llgae_cli import inference as infer
from llgae_cli.errors import InputError
from llgae_cli.models.base import Code, Model
from llgae_cli.models.llgae import LLGAE

MOST_PLACES = 1 << 25  # shifts times values: two tables of 256 MB


class Shift(Model):
    """LLGAE of images that are shifted by up to `window` pixels: the "position" of the source document's discussion.

        x_hat = S_{dy,dx} (mu_k + W_k b),    dy, dx in -window ... window

    S is the circular shift: values that leave the image on one side enter it on the other. It is orthogonal, so that
    |x - S y| = |S^-1 x - y|: the shift of a sample is undone, and the result encoded as in LLGAE, in training too. A
    shift that fills in zeros has no inverse, and mu and W would lose the values outside the image. For images with a
    border of one colour, as in Fashion-MNIST, the two hardly differ.

    Every shift is scored, with shifted components in place of shifted samples: 2 D K (E + 1) operations a sample and
    shift, in one matrix product. Correlation by FFT takes about 2.5 D log2 D + 4 D operations for each of the K (E + 1)
    vectors for any window: at D = 784, fewer than the products of 14 shifts (window 2 has 25). But its transforms write
    K (E + 1) D numbers a sample and are limited by memory: at window 1, K = 11 and E = 20 it took 80 times as long, so
    that it would be faster from about 700 shifts on (window 13). Such windows are not used.

    Parameters: `affine`, an LLGAE. Code: its k and b, and the symbols (dy, dx) + window.
    """

    places: Tensor  # (M, D): value d of S x is value places[i][d] of x, for the shift S = shifts[i]
    inverse_places: Tensor  # (M, D): the same for S^-1
    shifts: Tensor  # (M, 2): dy, dx; the smallest first, because the first of equally good shifts is used

    def __init__(self, affine: LLGAE, shape: tuple[int, ...], window: int):
        """Build for images of shape (H, W) or (H, W, 3), with 2 window + 1 at most H and W."""
        super().__init__()
        self.affine, self.window = affine, window
        self.K, self.D, self.E = affine.K, affine.D, affine.E
        if (2 * window + 1) ** 2 * self.D > MOST_PLACES:
            raise InputError(
                f"window: {window} is too wide for samples of {self.D} values; their tables would fill memory"
            )
        self.symbols = (2 * window + 1, 2 * window + 1)
        steps = sorted(itertools.product(range(-window, window + 1), repeat=2), key=lambda d: d[0] ** 2 + d[1] ** 2)
        grid = torch.arange(self.D, device="cpu").view(shape)  # on the CPU wherever the model is built
        for name, sign in (("places", 1), ("inverse_places", -1)):
            shifted = [grid.roll((sign * dy, sign * dx), (0, 1)).flatten() for dy, dx in steps]
            self.register_buffer(name, torch.stack(shifted), persistent=False)
        self.register_buffer("shifts", torch.tensor(steps), persistent=False)

    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """Draw random parameters, as those of LLGAE."""
        self.affine.initialise(rows, generator)

    def initialise_from(self, affine: LLGAE, rows: Tensor, generator: torch.Generator) -> None:
        """Copy mu and W from a trained LLGAE, whose samples had no shift."""
        self.affine.load_state_dict(affine.state_dict())

    def step_limit(self) -> float:
        """Return that of LLGAE: a shift changes no length."""
        return self.affine.step_limit()

    def step_size_problem(self) -> str | None:
        """Return that of LLGAE."""
        return self.affine.step_size_problem()

    def jacobian(self, at: Code) -> Tensor:
        """Return S W_k, shape (m, D, E)."""
        W = self.affine.jacobian(at)
        return W.gather(1, self.places[self.shift_index(at)][:, :, None].expand_as(W))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Return the code of x (n, D): k (n,), b (n, E) and s (n, 2), dy + window and dx + window."""
        k, which = nearest(self._distances(x))
        return Code(k, self.affine.encode_in(self.undo_shift(x, which), k), self.shifts[which] + self.window)

    def decode(self, code: Code) -> Tensor:
        """Return x_hat = S (mu_k + W_k b), shape (n, D)."""
        return self.affine.decode(code).gather(1, self.places[self.shift_index(code)])

    def residual(self, x: Tensor, code: Code) -> Tensor:
        """Return S (S^-1 x - mu_k - W_k b), shape (n, D)."""
        which = self.shift_index(code)
        return self.affine.residual(self.undo_shift(x, which), code).gather(1, self.places[which])

    def loss(self, x: Tensor) -> Tensor:
        """Return the mean L2 of x (n, D); shift and k are chosen without gradient; differentiable in mu and W."""
        with torch.no_grad():
            k, which = nearest(self._distances(x))
        return self.affine.loss(self.undo_shift(x, which), k)

    def undo_shift(self, x: Tensor, which: Tensor) -> Tensor:
        """Return S^-1 x (n, D), where `which` (n,) are the indices of the shifts."""
        return x.gather(1, self.inverse_places[which])

    def _distances(self, x: Tensor) -> Iterator[Tensor]:
        """Return |x - x_hat_k|^2 for each shift in turn, shape (n, K), up to a constant that all shifts share."""
        if self.affine.inference == "loop":
            for places in self.inverse_places:
                yield self.affine.encode_all(x[:, places])[1]
            return
        mu, W = self.affine.mu, self.affine.W
        A, s = infer.fold(W, self.affine.maps()[1])
        m = mu.mean(0)[self.places].mean(0)  # with this origin, an offset common to all samples costs no digits
        x = x - m
        for places in self.places:
            yield infer.relative_distances(x, mu[:, places] - m, A[:, places], s)

    def shift_index(self, code: Code) -> Tensor:
        """Return the index (n,) of the shift of each code."""
        assert code.s is not None
        side = 2 * self.window + 1
        at = self.shifts + self.window
        index = torch.empty(side * side, dtype=torch.int64, device=at.device)
        index[at[:, 0] * side + at[:, 1]] = torch.arange(len(at), device=at.device)
        return index[code.s[:, 0] * side + code.s[:, 1]]


def nearest(distances: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the best component k (n,) and the index of the best shift (n,), from the distances (n, K) of each shift.

    Only two shifts' distances are in memory at a time. Of equally good shifts the first is returned.
    """
    lowest, k = next(distances).min(1)
    which = torch.zeros_like(k)
    for i, distance in enumerate(distances, 1):
        of_shift, k_of_shift = distance.min(1)
        better = of_shift < lowest
        lowest, k = torch.where(better, of_shift, lowest), torch.where(better, k_of_shift, k)
        which = torch.where(better, i, which)
    return k, which
