"""Scores of pixels that are bytes, from products of integers: exact, and several times as fast as float32's.

A byte needs no rounding, so only the matrix A of `Scorer` is cut: column by column into three digits to base 254,
A ~ scale (d1 + d2 / 254 + d3 / 254^2), each in -127..127. A product of bytes and digits is exact in 32 bits, and three
of them together hold A to 2^-24 of the column's largest entry, as float32 does. Processors with instructions for
neural networks multiply bytes 4 (VNNI) to 12 times (AMX) as fast as float32; without them this is the slower way.

Source: Ootomo, Ozaki and Yokota, DGEMM on integer matrix multiplication unit, Int. J. High Perform. Comput. Appl. 38
(2024); with bytes on one side, a single cut suffices.
"""

from functools import cache

import torch
from torch import Tensor

from llgae_cli.training.components import Components
from llgae_cli.training.scoring import Scorer, Workspace

DIGITS, BASE = 3, 254
LARGEST_D = 1 << 16  # sums of D products of 127 and 128 stay within 32 bits


def pays(device: torch.device) -> bool:
    """Whether this processor has the instructions that make integer products the faster way."""
    found = getattr(torch.cpu, "_is_vnni_supported", None)  # not public: where it is gone, float32 does
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or found is None or not found():
        return False
    return products_are_exact()


@cache
def products_are_exact() -> bool:
    """Whether products of signed bytes come out exact here, as they should.

    Without VNNI, or told by ONEDNN_MAX_CPU_ISA not to use it, oneDNN adds pairs of them in 16 bits, which saturate.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, shape, generator=generator).to(torch.int8) for shape in ((300, 784), (784, 112)))
    return torch.equal(torch._int_mm(a, b).double(), a.double() @ b.double())


class ByteScorer(Scorer):
    """As `Scorer`, for samples x = v - mean(v) that are given as the bytes v, uint8 of shape (n, D), D <= LARGEST_D.

    v - 128 fits into a signed byte; neither that nor mean(v) changes the product, once A's columns sum to zero: with
    C = I - 1 1^T / D, x^T A = v^T C A.
    """

    def __init__(self, components: Components, workspace: Workspace | None = None):
        super().__init__(components, workspace)
        self.digits = [_cut(tile.matrix) for tile in self.tiles]

    def prepared(self, v: Tensor) -> Tensor:
        """V - 128, signed bytes."""
        return torch.bitwise_xor(v, 128, out=self.workspace.take("signed", v, *v.shape)).view(torch.int8)

    def product(self, i: int, v: Tensor) -> Tensor:
        """Of x and the matrix of tile i: the digits' products, the last one first."""
        scale, (first, *others) = self.digits[i]
        shape = len(v), len(scale)
        total, part = (self.workspace.take(name, scale, *shape) for name in ("product", "part"))
        exact = self.workspace.take("exact", scale.new_empty(0, dtype=torch.int32), *shape)
        total.copy_(torch._int_mm(v, first, out=exact))
        for digit in others:
            part.copy_(torch._int_mm(v, digit, out=exact))
            torch.add(part, total, alpha=1 / BASE, out=total)
        return total.mul_(scale)

    def taken(self, v: Tensor, order: Tensor) -> Tensor:
        """The rows x[order], which the next call overwrites."""
        bytes_ = torch.index_select(v, 0, order, out=self.workspace.take("sorted bytes", v, *v.shape))
        x = self.workspace.take("sorted", self.digits[0][0], *v.shape).copy_(bytes_)
        return x.sub_(x.mean(1, keepdim=True))


def _cut(A: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The scale (w,) of the columns of A (D, w), and the digits of A less its columns' means, the last one first."""
    centred = (A - A.mean(0)).double()
    scale = centred.abs().amax(0).clamp(min=1e-30) / 127
    rest, digits = centred / scale, []
    for _ in range(DIGITS):
        digit = rest.round()
        rest = (rest - digit) * BASE
        digits.append(digit.to(torch.int8))
    return scale.to(A.dtype), digits[::-1]
