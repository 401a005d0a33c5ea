"""Small standard networks: from a code (k, b) to a sample, and from a sample to a latent."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from llgae_cli.errors import InputError

COARSE = 4  # a convolutional network's coarsest grid has a quarter of the image's side


class Network(nn.Module):
    """What the networks share: their sizes, and random weights from a generator."""

    def __init__(self, K: int, E: int, shape: tuple[int, ...], width: int, channels: int):
        """For K components, E latents, samples of a shape; `width` of dense layers, `channels` of convolutions."""
        super().__init__()

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Weights uniform in +-1/sqrt(inputs); residual branches and modulation zero."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) / 2)
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                assert module.bias is not None
                bound = max(1, math.prod(module.weight.shape[1:])) ** -0.5
                for parameter in (module.weight, module.bias):
                    parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
        for part in [part for block in self.modules() if isinstance(block, Block) for part in block.quiet]:
            assert part.bias is not None
            part.weight.zero_()
            part.bias.zero_()


class MLPDecoder(Network):
    """(k, b) -> D values through two hidden layers of `width`; k enters by an embedding."""

    def __init__(self, K: int, E: int, shape: tuple[int, ...], width: int, channels: int):
        super().__init__(K, E, shape, width, channels)
        self.k = nn.Embedding(K, width)
        self.first = Linear(E, width)
        self.second = nn.Linear(width, width)
        self.out = nn.Linear(width, math.prod(shape))

    def forward(self, k: Tensor, b: Tensor) -> Tensor:
        """Values of about unit size, shape (n, D)."""
        h = functional.silu(self.first(b) + self.k(k))
        return self.out(functional.silu(self.second(h)))


class MLPEncoder(Network):
    """(k, x) -> b through two hidden layers of `width`."""

    def __init__(self, K: int, E: int, shape: tuple[int, ...], width: int, channels: int):
        super().__init__(K, E, shape, width, channels)
        self.k = nn.Embedding(K, width)
        self.first = nn.Linear(math.prod(shape), width)
        self.second = nn.Linear(width, width)
        self.out = Linear(width, E)

    def forward(self, k: Tensor, x: Tensor) -> Tensor:
        """Latents b, shape (n, E), for x (n, D) of about unit size."""
        h = functional.silu(self.first(x) + self.k(k))
        return self.out(functional.silu(self.second(h)))


class ConvDecoder(Network):
    """(k, b) -> an image: dense layers to a coarse grid, then residual blocks, at a quarter and at half the side.

    Every block of the coarse grid is modulated, scale and shift of each channel, by the dense layers; what is finer
    than half the side comes out of the last convolution's channels, by pixel shuffle.
    """

    def __init__(self, K: int, E: int, shape: tuple[int, ...], width: int, channels: int):
        super().__init__(K, E, shape, width, channels)
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
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as images: nothing is copied

    def forward(self, k: Tensor, b: Tensor) -> Tensor:
        """Values of about unit size, shape (n, D)."""
        z = functional.silu(self.first(b) + self.k(k))
        z = functional.silu(self.second(z))
        h = self.spread(z).unflatten(1, (*self.grid, -1)).permute(0, 3, 1, 2)  # (n, C, h, w), channels last in memory
        for block in self.coarse:
            h = block(h, z)
        h = functional.pixel_shuffle(self.up(h), 2).contiguous(memory_format=torch.channels_last)
        h = functional.pixel_shuffle(self.out(functional.silu(self.fine(h, z))), 2)
        h = h[:, :, : self.shape[0], : self.shape[1]]  # sides that are no multiple of four were rounded up
        return h.permute(0, 2, 3, 1).flatten(1)


class ConvEncoder(Network):
    """(k, x) -> b: residual blocks at half the side and at a quarter of it, then dense layers."""

    def __init__(self, K: int, E: int, shape: tuple[int, ...], width: int, channels: int):
        super().__init__(K, E, shape, width, channels)
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
        """Latents b, shape (n, E), for x (n, D) of about unit size."""
        z = self.k(k)
        image = x.view(len(x), *self.shape, self.colours).permute(0, 3, 1, 2)
        short = [COARSE * cells - side for cells, side in zip(self.grid, self.shape, strict=True)]
        image = functional.pad(image, (0, short[1], 0, short[0]))
        h = self.stem(functional.pixel_unshuffle(image, 2).contiguous(memory_format=torch.channels_last))
        h = self.coarse(self.down(functional.silu(self.fine(h, z))), z)
        h = functional.silu(h).permute(0, 2, 3, 1).flatten(1)
        return self.out(functional.silu(self.flat(h) + z))


class Linear(nn.Linear):
    """Linear layer that may have no inputs or no outputs, for E = 0; torch's own warns of it."""

    def reset_parameters(self) -> None:
        """As in torch, where there is something to draw."""
        if self.weight.numel():
            super().reset_parameters()


class Block(nn.Module):
    """h + conv(silu(scale * conv(silu(h)) + shift)): a residual block, scale and shift of each channel from z."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    @property
    def quiet(self) -> tuple[nn.Linear, nn.Conv2d]:
        """The layers that are zero at first: the block then hands on what it is given."""
        return self.modulation, self.second

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """The same shape (n, channels, height, width), for z (n, width)."""
        scale, shift = self.modulation(z)[:, :, None, None].chunk(2, 1)
        g = torch.addcmul(shift, self.first(functional.silu(h)), 1 + scale)
        return h + self.second(functional.silu(g))


DECODERS: dict[str, type[Network]] = {"mlp": MLPDecoder, "conv": ConvDecoder}
ENCODERS: dict[str, type[Network]] = {"mlp": MLPEncoder, "conv": ConvEncoder}


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of an image's shape. Raises InputError for plain vectors."""
    if len(shape) < 2:
        raise InputError(
            f"decoder: conv is for images, and samples are plain vectors of {shape[0]} values; mlp takes them"
        )
    return shape[0], shape[1]


def colours(shape: tuple[int, ...]) -> int:
    """Values of a pixel."""
    return shape[2] if len(shape) == 3 else 1
