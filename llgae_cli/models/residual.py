"""Residual LLGAE: several levels, each an LLGAE of the residual of the others; x_hat is the sum of their parts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llgae_cli.models.base import Code, Model
from llgae_cli.models.llgae import LLGAE


class Residual(Model):
    """L levels of K affine subspaces; x_hat is the sum of one component of each level.

        x_hat = sum_l mu^l_{k_l} + W^l_{k_l} b_l

    Encoding is greedy: level l encodes the residual of the levels before it. Then, in each of `sweeps` rounds, k_l and
    b_l of every level are chosen again, given all other levels. With exact inference each choice is optimal, so that
    no round raises the squared residual. L = 1 is LLGAE; E = 0 is residual vector quantisation.

    Code: k is k_1, the further symbols are k_2 ... k_L, and b is b_1 ... b_L concatenated, L E numbers. There are K^L
    combinations of components; encoding scores L K of them in a round.

    Parameters: `levels`, each an LLGAE with mu (K, D) and W (K, D, E).
    Source of the idea: Juang and Gray, Multiple stage vector quantization for speech coding, ICASSP 1982.
    """

    def __init__(self, levels: Sequence[LLGAE], sweeps: int = 1):
        """Build from levels of equal K, D and E."""
        super().__init__()
        self.levels: Sequence[LLGAE] = nn.ModuleList(levels)  # type: ignore[assignment]
        self.sweeps, self.latents = sweeps, levels[0].E
        self.K, self.D, self.E = levels[0].K, levels[0].D, sum(level.E for level in levels)
        self.symbols = tuple(level.K for level in levels[1:])
        self.k_suffix = " of the first level" if self.symbols else ""

    @torch.no_grad()
    def initialise(self, rows: Tensor, generator: torch.Generator) -> None:
        """Draw random parameters, but set mu^l = 0 from the second level on, so that its part is small."""
        for level in self.levels:
            level.initialise(rows, generator)
        for level in self.levels[1:]:
            level.mu.zero_()

    @torch.no_grad()
    def initialise_from(self, affine: LLGAE, rows: Tensor, generator: torch.Generator) -> None:
        """Copy a trained LLGAE to the first level; the others stay as `initialise` left them."""
        self.levels[0].load_state_dict(affine.state_dict())

    def step_limit(self) -> float:
        """Return the least step limit of the levels."""
        return min(level.step_limit() for level in self.levels)

    def step_size_problem(self) -> str | None:
        """Return the first level's problem, None where no level has one."""
        return next(filter(None, (level.step_size_problem() for level in self.levels)), None)

    def jacobian(self, at: Code) -> Tensor:
        """Return [W^1_{k_1} | ... | W^L_{k_L}], shape (m, D, L E)."""
        return torch.cat([level.jacobian(code) for level, code in zip(self.levels, self.split(at), strict=True)], 2)

    def split(self, code: Code) -> list[Code]:
        """Return the code of each level."""
        L = len(self.levels)
        s = code.k.new_empty(len(code.k), 0) if code.s is None else code.s
        k = torch.cat([code.k[:, None], s], 1)  # (n, L)
        return [Code(k[:, i], b) for i, b in enumerate(code.b.unflatten(1, (L, self.latents)).unbind(1))]

    @torch.no_grad()
    def encode(self, x: Tensor) -> Code:
        """Return the code of x (n, D): k (n,), b (n, L E), s (n, L - 1)."""
        codes = self.encode_levels(x, self.order())[2]
        s = torch.stack([code.k for code in codes[1:]], 1) if self.symbols else None
        return Code(codes[0].k, torch.cat([code.b for code in codes], 1), s)

    def decode(self, code: Code) -> Tensor:
        """Return x_hat = sum_l mu^l_{k_l} + W^l_{k_l} b_l, shape (n, D)."""
        first, *others = [level.decode(part) for level, part in zip(self.levels, self.split(code), strict=True)]
        return sum(others, first)

    def residual(self, x: Tensor, code: Code) -> Tensor:
        """Return x minus the part of every level, shape (n, D)."""
        for level, part in zip(self.levels, self.split(code), strict=True):
            x = level.residual(x, part)
        return x

    def loss(self, x: Tensor) -> Tensor:
        """Return the mean L2 of x (n, D); differentiable through all b of all rounds, not through the choices of k."""
        *before, last = self.order()
        residual, parts, _ = self.encode_levels(x, before)
        return self.levels[last].loss(residual + parts[last])

    def order(self) -> list[int]:
        """Return the order in which levels are encoded: first to last, and again in each round; a single level once."""
        L = len(self.levels)
        return list(range(L)) * (1 + self.sweeps if L > 1 else 1)

    def encode_levels(self, x: Tensor, order: Sequence[int]) -> tuple[Tensor, list[Tensor], list[Code]]:
        """Encode x (n, D) by the levels in that order; return the residual (n, D), and each level's part and code."""
        residual = x
        parts = [x.new_zeros(())] * len(self.levels)
        codes = [Code(x.new_empty(0), x.new_empty(0))] * len(self.levels)
        for i in order:
            level, target = self.levels[i], residual + parts[i]
            code = level.encode(target)
            if torch.is_grad_enabled():
                code = code._replace(b=level.encode_in(target, code.k))
            codes[i], parts[i] = code, level.decode(code)
            residual = target - parts[i]
        return residual, parts, codes
