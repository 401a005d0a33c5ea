"""Muon: AdamW for most parameters, and steps along orthogonalised momentum for the matrices of networks."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = 3.4445, -4.775, 2.0315  # of the polynomial: singular values from 0.01 to 1 end between 0.7 and 1.2
SIZE_OF_STEP = 0.2  # root mean square of a step over the learning rate, about that of AdamW
LEAST_SIDE, MOST_PRODUCTS = 32, 1 << 24  # of a matrix r x c, r <= c: r, and r^2 c, which its products take


def list_matrices(model: nn.Module) -> list[Tensor]:
    """Return the weights of a model's networks that Muon orthogonalises: of linear layers and of convolutions.

    Layers at the ends of a network are thin. The largest dense layers would take as long as the rest of a step.
    """
    weights = [module.weight for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    sides = [sorted(weight.flatten(1).shape) for weight in weights]
    return [w for w, (r, c) in zip(weights, sides, strict=True) if r >= LEAST_SIDE and r * r * c <= MOST_PRODUCTS]


def divide_groups(groups: list[dict[str, Any]], matrices: list[Tensor]) -> list[dict[str, Any]]:
    """Return the groups of an optimiser with the matrices of each in a group of their own, marked `orthogonal`."""
    chosen, divided = set(map(id, matrices)), []
    for group in groups:
        for orthogonal in (False, True):
            own = [parameter for parameter in group["params"] if (id(parameter) in chosen) == orthogonal]
            if own:
                divided.append(group | {"params": own, "orthogonal": orthogonal})
    return divided


class Muon(AdamW):
    """AdamW, except for groups with `orthogonal`.

    Their parameters G (outputs, inputs, ...) are matrices, a convolution's with one input for each place, and

        M <- 0.95 M + 0.05 grad,    G <- (1 - lr decay) G - 0.2 lr sqrt(max(outputs, inputs)) U V^T

    where U S V^T is the singular value decomposition of grad + 0.95 (M - grad); a polynomial iteration finds about
    U V^T. Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; the size of the step:
    Liu et al., Muon is scalable for LLM training, 2025.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any):
        super().__init__([{"orthogonal": False} | group for group in groups], **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; gradients of orthogonalised parameters are gone after it."""
        by_shape: dict[torch.Size, list[tuple[Tensor, dict[str, Any]]]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"] if group["orthogonal"] else ():
                if parameter.grad is not None:
                    by_shape[parameter.shape].append((parameter, group))
        for alike in by_shape.values():
            self._step_alike(alike)
        return super().step(closure)

    def _step_alike(self, alike: list[tuple[Tensor, dict[str, Any]]]) -> None:
        directions = []
        for parameter, _ in alike:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}
            state["step"] += 1  # AdamW expects it where a state is loaded
            directions.append(gradient.lerp(state["momentum"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM).flatten(1))
            parameter.grad = None  # AdamW leaves it alone
        orthogonal = orthogonalise(torch.stack(directions))
        for (parameter, group), direction in zip(alike, orthogonal, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            size = SIZE_OF_STEP * group["lr"] * max(direction.shape) ** 0.5
            parameter.sub_(direction.view_as(parameter), alpha=size)


def orthogonalise(G: Tensor) -> Tensor:
    """Return matrices (m, r, c) with the singular vectors of G and with all singular values about 1."""
    X = G.mT if G.shape[1] > G.shape[2] else G
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.mT if G.shape[1] > G.shape[2] else X
