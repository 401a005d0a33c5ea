"""Residual LLGAE: several levels, each an LLGAE on what the others leave; their components add up."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llgae_cli.models.base import Code, Model
from llgae_cli.models.llgae import LLGAE


class Residual(Model):
    """L levels of K affine subspaces; one of each level, and their sum is the sample.

        x_hat = sum_l mu^l_{k_l} + W^l_{k_l} b_l

    The code is found greedily, level l on what the levels before it left of x; then in `sweeps` rounds each level is
    chosen again, k_l and b_l, given all others. With exact inference each such choice is the best there is, so that
    no round raises the squared residual. L = 1 is LLGAE.

    Code: k is k_1, the further symbols are k_2 ... k_L, and b holds b_1 ... b_L side by side, L E numbers. K^L
    combinations of components thus cost L K. E = 0 is residual vector quantisation.

    Parameters: `levels`, each an LLGAE with mu (K, D) and W (K, D, E).
    Source of the idea: Juang and Gray, Multiple stage vector quantization for speech coding, ICASSP 1982.
    """

    def __init__(self, levels: Sequence[LLGAE], sweeps: int = 1):
        """`levels`: of equal K, D and E."""
        super().__init__()
        self.levels: Sequence[LLGAE] = nn.ModuleList(levels)  # type: ignore[assignment]
        self.sweeps, self.latents = sweeps, levels[0].E
        self.K, self.D, self.E = levels[0].K, levels[0].D, sum(level.E for level in levels)
        self.symbols = tuple(level.K for level in levels[1:])
        self.k_suffix = " of the first level" if self.symbols else ""

    @torch.no_grad()
    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """The first level's random start; W^l of the others random too, but mu^l = 0, for they are to add little."""
        for level in self.levels:
            level.initialise(rows, generator)
        for level in self.levels[1:]:
            level.mu.zero_()

    @torch.no_grad()
    def begin_from(self, affine: LLGAE, rows: Tensor, generator: torch.Generator) -> None:
        """Take the first level from a trained LLGAE; the others stay as `initialise` made them."""
        self.levels[0].load_state_dict(affine.state_dict())

    def step_limit(self) -> float:
        """The least of the levels' own."""
        return min(level.step_limit() for level in self.levels)

    def step_size_problem(self) -> str | None:
        """Return the first level's problem, None where no level has one."""
        return next(filter(None, (level.step_size_problem() for level in self.levels)), None)

    def jacobian(self, at: Code) -> Tensor:
        """[W^1_{k_1} | ... | W^L_{k_L}], shape (m, D, L E)."""
        return torch.cat([level.jacobian(code) for level, code in zip(self.levels, self.split(at), strict=True)], 2)

    def split(self, code: Code) -> list[Code]:
        """The code of each level."""
        L = len(self.levels)
        s = code.k.new_empty(len(code.k), 0) if code.s is None else code.s
        k = torch.cat([code.k[:, None], s], 1)  # (n, L)
        return [Code(k[:, i], b) for i, b in enumerate(code.b.unflatten(1, (L, self.latents)).unbind(1))]

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """The code of x (n, D): k (n,), b (n, L E), s (n, L - 1)."""
        codes = self.explained(x, self.order())[2]
        s = torch.stack([code.k for code in codes[1:]], 1) if self.symbols else None
        return Code(codes[0].k, torch.cat([code.b for code in codes], 1), s)

    def decode(self, code: Code) -> Tensor:
        """x_hat = sum_l mu^l_{k_l} + W^l_{k_l} b_l, shape (n, D)."""
        first, *others = [level.decode(part) for level, part in zip(self.levels, self.split(code), strict=True)]
        return sum(others, first)

    def residual(self, x: Tensor, code: Code) -> Tensor:
        """What is left of x once every level's part is taken away, shape (n, D)."""
        for level, part in zip(self.levels, self.split(code), strict=True):
            x = level.residual(x, part)
        return x

    def loss(self, x: Tensor) -> Tensor:
        """Mean L2 of x (n, D); differentiable through every b of every round, not through the choices of k."""
        *before, last = self.order()
        left, parts, _ = self.explained(x, before)
        return self.levels[last].loss(left + parts[last])

    def order(self) -> list[int]:
        """Which level is chosen when: first to last, then again in each round; a single level only once."""
        L = len(self.levels)
        return list(range(L)) * (1 + self.sweeps if L > 1 else 1)

    def explained(self, x: Tensor, order: Sequence[int]) -> tuple[Tensor, list[Tensor], list[Code]]:
        """What is left of x (n, D) once levels were chosen in that order, each level's part of x_hat, and its code."""
        left = x
        parts = [x.new_zeros(())] * len(self.levels)
        codes = [Code(x.new_empty(0), x.new_empty(0))] * len(self.levels)
        for i in order:
            level, own = self.levels[i], left + parts[i]
            code = level.encode(own)
            if torch.is_grad_enabled():
                code = code._replace(b=level.encode_in(own, code.k))
            codes[i], parts[i] = code, level.decode(code)
            left = own - parts[i]
        return left, parts, codes
