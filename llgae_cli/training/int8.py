"""Distances of byte-valued samples from products of 8-bit integers: as exact as float32, and several times as fast.

A byte needs no rounding, so only the matrix A of a tile is split: each column into three digits in base 254,
A ~ scale (d1 + d2 / 254 + d3 / 254^2), every digit in -127..127. A product of bytes and digits is exact in 32 bits, and
three digits hold A to 2^-24 of the largest entry of the column, as float32 does. Processors with instructions for
neural networks multiply bytes 4 times (VNNI) to 12 times (AMX) as fast as float32. On others this is slower.

Source: Ootomo, Ozaki and Yokota, DGEMM on integer matrix multiplication unit, Int. J. High Perform. Comput. Appl. 38
(2024). With bytes on one side, only the other side is split.
"""

from functools import cache

import torch
from torch import Tensor

from llgae_cli.training.components import Components
from llgae_cli.training.scoring import Scorer, Workspace

DIGITS, BASE = 3, 254
LARGEST_D = 1 << 16  # sums of D products of 127 and 128 stay within 32 bits


def is_faster(device: torch.device) -> bool:
    """Return whether the processor has the instructions that make integer products faster than float32."""
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", None)  # not public: without it, float32 is used
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or has_vnni is None or not has_vnni():
        return False
    return products_are_exact()


@cache
def products_are_exact() -> bool:
    """Return whether products of signed bytes are exact on this processor.

    Without VNNI, or with VNNI disabled by ONEDNN_MAX_CPU_ISA, oneDNN adds pairs of products in 16 bits, which saturate.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, shape, generator=generator).to(torch.int8) for shape in ((300, 784), (784, 112)))
    return torch.equal(torch._int_mm(a, b).double(), a.double() @ b.double())


class ByteScorer(Scorer):
    """A `Scorer` for x = v - mean(v), where the bytes v, uint8 of shape (n, D) with D <= LARGEST_D, are passed.

    The product uses v - 128, which is a signed byte. Neither 128 nor mean(v) changes it once the columns of A sum to
    zero: with C = I - 1 1^T / D, x^T A = v^T C A.
    """

    def __init__(self, components: Components, workspace: Workspace | None = None):
        super().__init__(components, workspace)
        self.digits = [_split_into_digits(tile.matrix) for tile in self.tiles]

    def prepare(self, v: Tensor) -> Tensor:
        """Return the signed bytes v - 128."""
        return torch.bitwise_xor(v, 128, out=self.workspace.buffer("signed", v, *v.shape)).view(torch.int8)

    def multiply(self, i: int, v: Tensor) -> Tensor:
        """Return the product of x and the matrix of tile i, (n, w), summed from the last digit to the first."""
        scale, (last, *others) = self.digits[i]
        shape = len(v), len(scale)
        total, part = (self.workspace.buffer(name, scale, *shape) for name in ("product", "part"))
        exact = self.workspace.buffer("exact", scale.new_empty(0, dtype=torch.int32), *shape)
        total.copy_(torch._int_mm(v, last, out=exact))
        for digit in others:
            part.copy_(torch._int_mm(v, digit, out=exact))
            torch.add(part, total, alpha=1 / BASE, out=total)
        return total.mul_(scale)

    def gather(self, v: Tensor, order: Tensor) -> Tensor:
        """Return the samples x[order] as floats; the next call overwrites them."""
        bytes_ = torch.index_select(v, 0, order, out=self.workspace.buffer("sorted bytes", v, *v.shape))
        x = self.workspace.buffer("sorted", self.digits[0][0], *v.shape).copy_(bytes_)
        return x.sub_(x.mean(1, keepdim=True))


def _split_into_digits(A: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the scale (w,) and the digits, last one first, of the columns of A (D, w) minus their means."""
    centred = (A - A.mean(0)).double()
    scale = centred.abs().amax(0).clamp(min=1e-30) / 127
    rest, digits = centred / scale, []
    for _ in range(DIGITS):
        digit = rest.round()
        rest = (rest - digit) * BASE
        digits.append(digit.to(torch.int8))
    return scale.to(A.dtype), digits[::-1]
