"""A synthetic data set whose best model is known: samples near affine subspaces. Needs no download."""

from pathlib import Path

import torch
from torch import Tensor

from llgae_cli.tasks.samples import Samples
from llgae_cli.tasks.task import Task, fingerprint

SUBSPACES_K = 4
SUBSPACES_E = 3
SIDE = 8
D = SIDE * SIDE
TRAIN, TEST = 4_000, 1_000
OFFSET = 400.0  # |mu_k|; the mu_k are orthogonal, so components are 566 apart, and the noise has norm 62
SPREAD = (40.0, 30.0, 20.0)  # standard deviation of b along each basis vector
SIGMA = 8.0  # standard deviation of the noise along each direction of the complement

# Expected mean L2 of the model that generates the data: the noise has variance sigma^2 in D - 1 - E directions (of zero
# mean, outside the basis), and none of it can be encoded. A model fitted to the training set is slightly better on the
# training set and slightly worse on the test set.
SUBSPACES_OPTIMUM = SIGMA**2 * (D - 1 - SUBSPACES_E) / D  # = 60


def load_subspaces(data_dir: Path, seed: int) -> Task:
    """Draw x = mu_k + W_k b + noise, with k uniform in 0..K-1 (the label) and b ~ N(0, diag(SPREAD^2)), 8x8 values.

    W_k (D, E) has orthonormal columns, orthogonal to mu_k; noise ~ N(0, sigma^2) in the complement of W_k. Everything
    is orthogonal to the all-ones vector, so every sample has zero mean and centring changes nothing. The data depends
    only on the seed. At K = 4, E = 3 the best mean L2 is SUBSPACES_OPTIMUM.
    """
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(D, 1, dtype=torch.float64)
    mu = OFFSET * _orthonormalise(torch.cat([ones, _normal(generator, D, SUBSPACES_K)], 1))[:, 1:].T  # (K, D)
    W = torch.stack([_basis(generator, ones, mu_k) for mu_k in mu])  # (K, D, E)
    sets = []
    for n in (TRAIN, TEST):
        k = torch.randint(SUBSPACES_K, (n,), generator=generator)
        b = _normal(generator, n, SUBSPACES_E) * torch.tensor(SPREAD, dtype=torch.float64)
        noise = SIGMA * _normal(generator, n, D)
        noise -= noise.mean(1, keepdim=True)
        noise -= torch.einsum("nde,ne->nd", W[k], torch.einsum("nde,nd->ne", W[k], noise))
        x = mu[k] + torch.einsum("nde,ne->nd", W[k], b) + noise
        sets.append(Samples(x.to(torch.float32), k, origin="subspaces"))
    train, test = sets
    low, high = train.extent()
    classes = tuple(f"component {k}" for k in range(SUBSPACES_K))
    source = f"made from seed {seed}: {SUBSPACES_K} components of dimension {SUBSPACES_E}, sigma {SIGMA:g}"
    shape = (SIDE, SIDE)
    return Task("subspaces", train, test, shape, classes, high - low, source, fingerprint(train, test, shape))


def _basis(generator: torch.Generator, ones: Tensor, mu_k: Tensor) -> Tensor:
    return _orthonormalise(torch.cat([ones, mu_k[:, None], _normal(generator, D, SUBSPACES_E)], 1))[:, 2:]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _orthonormalise(columns: Tensor) -> Tensor:
    Q, R = torch.linalg.qr(columns)
    return torch.mul(Q, R.diagonal().sign())  # LAPACK libraries differ in the sign of a column
