"""Shift LLGAE: the code also says where in the image the component is drawn."""

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
    """LLGAE whose images may be moved by up to `window` pixels each way: the "position" of the source's discussion.

        x_hat = S_{dy,dx} (mu_k + W_k b),    dy, dx in -window ... window

    S is the circular shift: what leaves the image on one side comes back on the other. It is orthogonal, so that
    |x - S y| = |S^-1 x - y|: a sample is moved back and coded as in LLGAE, the closed form included. With zeros filled
    in instead, S would have no inverse, and what a shift pushes out of the image would be lost to mu and W. Images
    whose border is one colour, as Fashion-MNIST's, hardly tell the two apart.

    Every shift is tried, with the components moved instead of the samples: 2 D K (E + 1) operations a sample and shift,
    in one matrix product. Correlation by FFT takes some 2.5 D log2 D + 4 D operations for each of the K (E + 1) vectors
    whatever the window, at D = 784 fewer than 14 shifts do (window 2 has 25). But its transforms write K (E + 1) D
    numbers a sample and wait for memory: at window 1 and K = 11, E = 20 it took 80 times as long, so that it would win
    from some 700 shifts on (window 13). Nobody's window is as wide, so the products are all there is.

    Parameters: `affine`, an LLGAE. Code: its k and b, and the symbols (dy, dx) + window.
    """

    places: Tensor  # (M, D): places[i][d] is where value d of a sample moved by shifts[i] comes from
    back: Tensor  # (M, D): the inverses
    shifts: Tensor  # (M, 2): dy, dx; the smallest first, for it wins a tie

    def __init__(self, affine: LLGAE, shape: tuple[int, ...], window: int):
        """`shape`: (H, W) or (H, W, 3), of an image; 2 window + 1 is at most H and W."""
        super().__init__()
        self.affine, self.window = affine, window
        self.K, self.D, self.E = affine.K, affine.D, affine.E
        if (2 * window + 1) ** 2 * self.D > MOST_PLACES:
            raise InputError(
                f"window: {window} is too wide for samples of {self.D} values; their tables would fill memory"
            )
        self.symbols = (2 * window + 1, 2 * window + 1)
        steps = sorted(itertools.product(range(-window, window + 1), repeat=2), key=lambda d: d[0] ** 2 + d[1] ** 2)
        grid = torch.arange(self.D, device="cpu").view(shape)  # also where a model is built for its sizes alone
        for name, sign in (("places", 1), ("back", -1)):
            moved = [grid.roll((sign * dy, sign * dx), (0, 1)).flatten() for dy, dx in steps]
            self.register_buffer(name, torch.stack(moved), persistent=False)
        self.register_buffer("shifts", torch.tensor(steps), persistent=False)

    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """As LLGAE's."""
        self.affine.initialise(rows, generator)

    def begin_from(self, affine: LLGAE, rows: Tensor, generator: torch.Generator) -> None:
        """Take mu and W from a trained LLGAE, with every shift 0."""
        self.affine.load_state_dict(affine.state_dict())

    def step_limit(self) -> float:
        """As LLGAE's: a shift changes no length."""
        return self.affine.step_limit()

    def step_size_problem(self) -> str | None:
        """As LLGAE's."""
        return self.affine.step_size_problem()

    def jacobian(self, at: Code) -> Tensor:
        """S W_k, shape (m, D, E)."""
        W = self.affine.jacobian(at)
        return W.gather(1, self.places[self._which(at)][:, :, None].expand_as(W))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """The code of x (n, D): k (n,), b (n, E) and s (n, 2), dy + window and dx + window."""
        k, which = nearest(self._distances(x))
        return Code(k, self.affine.encode_in(self.moved_back(x, which), k), self.shifts[which] + self.window)

    def decode(self, code: Code) -> Tensor:
        """x_hat = S (mu_k + W_k b), shape (n, D)."""
        return self.affine.decode(code).gather(1, self.places[self._which(code)])

    def residual(self, x: Tensor, code: Code) -> Tensor:
        """S (S^-1 x - mu_k - W_k b), shape (n, D)."""
        which = self._which(code)
        return self.affine.residual(self.moved_back(x, which), code).gather(1, self.places[which])

    def loss(self, x: Tensor) -> Tensor:
        """Mean L2 of x (n, D), the shift and k chosen without gradient; differentiable in mu and W."""
        with torch.no_grad():
            k, which = nearest(self._distances(x))
        return self.affine.loss(self.moved_back(x, which), k)

    def moved_back(self, x: Tensor, which: Tensor) -> Tensor:
        """S^-1 x (n, D) for the shift `which` (n,) of each sample."""
        return x.gather(1, self.back[which])

    def _distances(self, x: Tensor) -> Iterator[Tensor]:
        """|x - S x_hat_k|^2 for one shift after the other, (n, K) each, up to a number that is the same for all."""
        if self.affine.inference == "loop":
            for back in self.back:
                yield self.affine.every(x[:, back])[1]
            return
        mu, W = self.affine.mu, self.affine.W
        A, s = infer.folded(W, self.affine.maps()[1])
        m = mu.mean(0)[self.places].mean(0)  # seen from here, a common offset costs no digits
        x = x - m
        for places in self.places:
            yield infer.relative_distances(x, mu[:, places] - m, A[:, places], s)

    def _which(self, code: Code) -> Tensor:
        """The index (n,) of each code's shift."""
        assert code.s is not None
        side = 2 * self.window + 1
        at = self.shifts + self.window
        index = torch.empty(side * side, dtype=torch.int64, device=at.device)
        index[at[:, 0] * side + at[:, 1]] = torch.arange(len(at), device=at.device)
        return index[code.s[:, 0] * side + code.s[:, 1]]


def nearest(distances: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """The best component k (n,) and the index of the best shift (n,), from one (n, K) after the other.

    Holds two of them at a time, however many shifts there are. A tie goes to the earlier one.
    """
    lowest, k = next(distances).min(1)
    which = torch.zeros_like(k)
    for i, distance in enumerate(distances, 1):
        here, k_here = distance.min(1)
        better = here < lowest
        lowest, k = torch.where(better, here, lowest), torch.where(better, k_here, k)
        which = torch.where(better, i, which)
    return k, which
