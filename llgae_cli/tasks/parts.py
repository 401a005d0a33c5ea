"""The part of a data set that a process works on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llgae_cli import distributed
from llgae_cli.tasks.samples import Samples


@dataclass(frozen=True)
class Part:
    """The samples that this process works on, at the positions `ranges` of all; there may be none."""

    samples: Samples
    ranges: tuple[range, ...]


def take_part(samples: Samples) -> Part:
    """Return the samples that this process holds; where it can read all, a share of them by its rank."""
    ranges = samples.held
    if ranges is None:
        ranges = (range(*distributed.share(samples.N)),)
    if len(ranges) > 1:
        return Part(samples.subset(list_positions(ranges)), ranges)
    only = ranges[0] if ranges else range(0)
    return Part(samples.part(only.start, only.stop), ranges)


def list_positions(ranges: tuple[range, ...]) -> Tensor:
    """Return the positions in the ranges, one after the other, (n,)."""
    return torch.cat([torch.arange(here.start, here.stop) for here in (*ranges, range(0))])


def locate(positions: Tensor, ranges: tuple[range, ...]) -> Tensor:
    """Return where each of the positions (m,) is in the list of those in the ranges; -1: nowhere."""
    found, before = torch.full_like(positions, -1), 0
    for here in ranges:
        inside = (positions >= here.start) & (positions < here.stop)
        found[inside] = positions[inside] - here.start + before
        before += len(here)
    return found
