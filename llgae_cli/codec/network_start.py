"""Where the search for a row's latents begins: the component of an affine model, and the latents of a guide network."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llgae_cli.inference import INFERENCES
from llgae_cli.models import GAE, LLGAE
from llgae_cli.models.networks import MLP, ConvEncoder, Network

GUIDE = "guide."  # the prefix of the names of its parameters


@dataclass(frozen=True, eq=False)
class Start:
    """The component and the first latents of a row: those of an affine model, or the latents of a guide under it.

    unit  of the guide's inputs
    """

    affine: LLGAE
    guide: Network | None
    unit: float

    @classmethod
    def pack(cls, model: GAE) -> dict[str, np.ndarray]:
        """Return the arrays that `build` needs; parameters of the guide in float16."""
        affine = model.affine
        assert affine is not None
        options = [affine.beta, affine.n_step, affine.alpha, list(INFERENCES).index(affine.inference)]
        arrays = {
            "options": np.array([*options, float(model.decoder.unit)], "<f8"),
            "mu": affine.mu.detach().cpu().numpy().astype("<f4"),
            "W": affine.W.detach().cpu().numpy().astype("<f4"),
        }
        if model.guide is not None:
            for name, tensor in model.guide.state_dict().items():
                arrays[GUIDE + name] = np.ascontiguousarray(tensor.cpu().float().numpy()).astype("<f2")
        return arrays

    @classmethod
    def build(cls, arrays: Mapping[str, np.ndarray], sides: tuple[int, ...], K: int, D: int, E: int) -> "Start":
        """Return the start in the arrays of `pack`.

        Raises KeyError, TypeError, ValueError or RuntimeError where they do not fit each other, K, D and E.
        """
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("numbers that are not finite")
        beta, n_step, alpha, inference, unit = arrays["options"].tolist()
        mu, W = (torch.from_numpy(arrays[name].astype(np.float32)) for name in ("mu", "W"))
        method = list(INFERENCES)[int(inference) % len(INFERENCES)]
        affine = LLGAE(K, D, E, beta=beta, n_step=int(n_step), alpha=alpha, inference=method)
        affine.load_state_dict({"mu": mu, "W": W})
        own = {
            name.removeprefix(GUIDE): torch.from_numpy(array.astype(np.float32))
            for name, array in arrays.items()
            if name.startswith(GUIDE)
        }
        guide = None
        if own:
            _, width = own["k.weight"].shape
            guide = ConvEncoder(K, E, sides, width, len(own["stem.weight"])) if sides else MLP(K, D, E, width)
            guide.load_state_dict(own)
            guide.requires_grad_(False)
        return cls(affine.requires_grad_(False), guide, unit)

    @torch.no_grad()
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return components (n,) and latents (n, E) of rows x (n, D)."""
        if self.guide is None:
            k, b, _ = self.affine.encode(x)
            return k, b
        k = self.affine.choose(x)
        return k, self.guide(k, x / self.unit)
