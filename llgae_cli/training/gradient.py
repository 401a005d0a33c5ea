"""The source's trainer: mini-batches, gradient through the T steps of the winning component."""

import math
from typing import Any

import torch
from torch import Tensor

from llgae_cli.errors import RunError
from llgae_cli.models import Model
from llgae_cli.tasks import Samples
from llgae_cli.training import distributed
from llgae_cli.training.progress import EpochRecord, Notify

OPTIMIZERS = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class Gradient:
    """Stochastic gradient descent on the mean L2, mu and W together.

    Each epoch visits all samples once in an order drawn from the seed. Raises RunError when the loss stops being
    finite, with the epoch and the step.
    """

    finished = False  # goes on for as many epochs as asked

    def __init__(self, model: Model, samples: Samples, *, seed: int, optimizer: str, lr: float, batch_size: int):
        self.model, self.samples, self.batch_size = model, samples, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = OPTIMIZERS[optimizer](model.parameters(), lr=lr)
        self.epochs_done = 0

    def start(self, notify: Notify) -> None:
        """The model's own random start, the same on every process."""
        rows = torch.randperm(self.samples.N, generator=self.generator)[: self.model.K]
        self.model.initialise(self.samples.rows(rows), self.generator)
        distributed.from_first_(parameter.data for parameter in self.model.parameters())
        notify(f"random start, {self.steps} steps an epoch")

    @property
    def steps(self) -> int:
        """Mini-batches in an epoch."""
        return math.ceil(self.samples.N / self.batch_size)

    def epoch(self) -> EpochRecord:
        """One pass in mini-batches; `train_mean_l2` is the running mean over the pass, as the model moved."""
        order = torch.randperm(self.samples.N, generator=self.generator)
        total = torch.zeros((), dtype=torch.float64)
        for step, batch in enumerate(order.split(self.batch_size)):
            mine = batch[distributed.rank() :: distributed.world()]
            self.optimizer.zero_grad()
            loss = self._backward(mine, len(batch))
            if not math.isfinite(float(loss)):
                limit = self.model.step_limit()
                raise RunError(
                    f"the loss became {float(loss)} in epoch {self.epochs_done + 1}, step {step + 1} of {self.steps}: "
                    "lower lr or beta" + (f" (beta < {limit:.3g} is stable now)" if 0 < limit < math.inf else "")
                )
            self.optimizer.step()
            total += loss.double() * len(batch)
        self.epochs_done += 1
        return EpochRecord(train_mean_l2=float(total) / self.samples.N)

    def _backward(self, mine: Tensor, n: int) -> Tensor:
        """Gradients of the mean over the whole batch of n, from this process's rows of it. Returns the batch's loss."""
        parameters = list(self.model.parameters())
        if len(mine):
            loss = self.model.loss(self.samples.rows(mine, dtype=parameters[0].dtype)) * (len(mine) / n)
            loss.backward()
            loss = loss.detach().cpu()
        else:
            loss = torch.zeros(())
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
        if distributed.active():
            share = loss.to(parameters[0].device)
            distributed.sum_([share, *(p.grad for p in parameters if p.grad is not None)])
            loss = share.cpu()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """All that an exact continuation needs besides the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epochs_done": self.epochs_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.epochs_done = state["epochs_done"]
