"""Small standard networks: from a code (k, b) to a sample, and from a sample to a latent."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from llgae_cli.errors import InputError

COARSE = 4  # a convolutional network's coarsest grid has a quarter of the image's side


class Network(nn.Module):
    """Base of the networks: random weights from a generator."""

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw weights uniform in +-1/sqrt(inputs); set residual branches and modulation to zero."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) / 2)
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                assert module.bias is not None
                bound = max(1, math.prod(module.weight.shape[1:])) ** -0.5
                for parameter in (module.weight, module.bias):
                    parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
        for block in self.modules():
            if isinstance(block, Block):  # initially the identity
                for parameter in (*block.modulation.parameters(), *block.second.parameters()):
                    parameter.zero_()


class MLP(Network):
    """Network (k, v) -> values with two hidden layers of `width`; k enters by an embedding."""

    def __init__(self, K: int, inputs: int, outputs: int, width: int):
        super().__init__()
        self.k = nn.Embedding(K, width)
        self.first = Linear(inputs, width)
        self.second = nn.Linear(width, width)
        self.out = Linear(width, outputs)

    def forward(self, k: Tensor, v: Tensor) -> Tensor:
        """Return values (n, outputs), for v (n, inputs); those of a sample are of about unit size."""
        h = functional.silu(self.first(v) + self.k(k))
        return self.out(functional.silu(self.second(h)))


class ConvDecoder(Network):
    """Network (k, b) -> image: dense layers, then residual blocks at a quarter and at half of the image's side.

    The dense layers also modulate the blocks: they give the scale and shift of each channel. The last convolution is at
    half the side, and pixel shuffle makes the full image of its channels.
    """

    def __init__(self, K: int, E: int, shape: tuple[int, ...], width: int, channels: int):
        super().__init__()
        self.shape, self.colours = sides(shape), colours(shape)
        self.grid = tuple(math.ceil(side / COARSE) for side in self.shape)
        coarse = 2 * channels
        self.k = nn.Embedding(K, width)
        self.first = Linear(E, width)
        self.second = nn.Linear(width, width)
        self.spread = nn.Linear(width, coarse * math.prod(self.grid))
        self.coarse = nn.ModuleList(Block(coarse, width) for _ in range(3))
        self.up = nn.Conv2d(coarse, 4 * channels, 1)
        self.fine = Block(channels, width)
        self.out = nn.Conv2d(channels, 4 * self.colours, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the layout of images: no copies

    def forward(self, k: Tensor, b: Tensor) -> Tensor:
        """Return values of about unit size, shape (n, D)."""
        z = functional.silu(self.first(b) + self.k(k))
        z = functional.silu(self.second(z))
        h = self.spread(z).unflatten(1, (*self.grid, -1)).permute(0, 3, 1, 2)  # (n, C, h, w), channels last in memory
        for block in self.coarse:
            h = block(h, z)
        h = self.enlarge(h)
        h = functional.pixel_shuffle(self.out(functional.silu(self.fine(h, z))), 2)
        h = h[:, :, : self.shape[0], : self.shape[1]]  # the grid is rounded up where a side is not a multiple of four
        return h.permute(0, 2, 3, 1).flatten(1)

    def enlarge(self, h: Tensor) -> Tensor:
        """Return pixel_shuffle(up(h), 2), (n, channels, 2 height, 2 width), for h (n, 2 channels, height, width).

        With the rows of `up` in another order, the channels of a pixel are contiguous in its output, and are copied
        together. `pixel_shuffle` copies number by number, which takes several times as long.
        """
        assert self.up.bias is not None
        weight, bias = (
            parameter.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)
            for parameter in (self.up.weight.flatten(1), self.up.bias)
        )
        pixels = functional.linear(h.permute(0, 2, 3, 1), weight, bias).unflatten(3, (2, 2, -1))
        return pixels.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class ConvEncoder(Network):
    """Network (k, x) -> b: residual blocks at half and at a quarter of the image's side, then dense layers."""

    def __init__(self, K: int, E: int, shape: tuple[int, ...], width: int, channels: int):
        super().__init__()
        self.shape, self.colours = sides(shape), colours(shape)
        self.grid = tuple(math.ceil(side / COARSE) for side in self.shape)
        coarse = 2 * channels
        self.k = nn.Embedding(K, width)
        self.stem = nn.Conv2d(4 * self.colours, channels, 3, padding=1)
        self.fine = Block(channels, width)
        self.down = nn.Conv2d(channels, coarse, 3, stride=2, padding=1)
        self.coarse = Block(coarse, width)
        self.flat = nn.Linear(coarse * math.prod(self.grid), width)
        self.out = Linear(width, E)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, k: Tensor, x: Tensor) -> Tensor:
        """Return latents b (n, E), for x (n, D) of about unit size."""
        z = self.k(k)
        image = x.view(len(x), *self.shape, self.colours).permute(0, 3, 1, 2)
        short = [COARSE * cells - side for cells, side in zip(self.grid, self.shape, strict=True)]
        image = functional.pad(image, (0, short[1], 0, short[0]))
        h = self.stem(functional.pixel_unshuffle(image, 2).contiguous(memory_format=torch.channels_last))
        h = self.coarse(self.down(functional.silu(self.fine(h, z))), z)
        h = functional.silu(h).permute(0, 2, 3, 1).flatten(1)
        return self.out(functional.silu(self.flat(h) + z))


class Linear(nn.Linear):
    """Linear layer that may have no inputs or no outputs, for E = 0, where that of torch warns."""

    def reset_parameters(self) -> None:
        """Draw the weights as torch does, if there are any."""
        if self.weight.numel():
            super().reset_parameters()


class Block(nn.Module):
    """Residual block h + conv(silu((1 + scale) * conv(silu(h)) + shift)); scale and shift of each channel from z."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Return a tensor of the shape of h (n, channels, height, width), for z (n, width)."""
        scale, shift = self.modulation(z)[:, :, None, None].chunk(2, 1)
        g = torch.addcmul(shift, self.first(functional.silu(h)), 1 + scale)
        return h + self.second(functional.silu(g))


# Build a network for K components, E latents, samples of a shape, dense layers of a width, convolutions of channels.
DECODERS: dict[str, Callable[[int, int, tuple[int, ...], int, int], Network]] = {
    "mlp": lambda K, E, shape, width, channels: MLP(K, E, math.prod(shape), width),
    "conv": ConvDecoder,
}
ENCODERS: dict[str, Callable[[int, int, tuple[int, ...], int, int], Network]] = {
    "mlp": lambda K, E, shape, width, channels: MLP(K, math.prod(shape), E, width),
    "conv": ConvEncoder,
}


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width of the shape of an image. Raises InputError for plain vectors."""
    if len(shape) < 2:
        raise InputError(
            f"decoder: conv is for images, and samples are plain vectors of {shape[0]} values; mlp takes them"
        )
    return shape[0], shape[1]


def colours(shape: tuple[int, ...]) -> int:
    """Return the number of values of a pixel."""
    return shape[2] if len(shape) == 3 else 1
