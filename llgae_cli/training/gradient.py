"""The source's trainer: mini-batches, gradient through the T steps of the winning component."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llgae_cli.errors import RunError
from llgae_cli.formatting import five_digits
from llgae_cli.models import LLGAE, Autoencoder, Model
from llgae_cli.tasks import Samples
from llgae_cli.training import distributed
from llgae_cli.training.closed_form import ClosedForm
from llgae_cli.training.state import load_optimizer, tensor_like, whole
from llgae_cli.training.trainer import EpochRecord

logger = logging.getLogger(__name__)

OPTIMIZERS = {
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.9, 0.99), "fused": True}
}  # a shorter memory: runs are short
BEGIN_ROWS = 10_000  # rows of which a model learns the scale, and takes its first components
RISE, RISE_FROM = 0.15, 0.1  # one-cycle: share of the steps in which the rate rises, and from which share of itself


class Gradient:
    """Stochastic gradient descent on the mean L2, all parameters together.

    Each epoch visits all samples once in an order drawn from the seed. Raises RunError when the loss stops being
    finite, with the epoch and the step.
    """

    finished = False  # goes on for as many epochs as asked
    exact = True

    def __init__(
        self,
        model: Model,
        samples: Samples,
        *,
        seed: int,
        optimizer: str,
        lr: float,
        batch_size: int,
        affine: ClosedForm | None = None,
        one_cycle: int = 0,
        weight_decay: float = 0.0,
        average: float = 0.0,
        mirrored: tuple[int, ...] | None = None,
        noise: float = 0.0,
    ):
        """What the config's keys mean here.

        `affine`: trainer of the LLGAE that mu and W are begun from. `one_cycle`: epochs of the schedule, 0 for a
        constant rate. `average`: decay a step of the running mean of the parameters, which the model is given after
        each epoch. `mirrored`: shape of a sample, to train on mirror images as well. `noise`: standard deviation of
        what is added to each value that a denoising autoencoder sees.
        """
        self.model, self.samples, self.batch_size = model, samples, batch_size
        self.affine, self.one_cycle, self.average = affine, one_cycle, average
        self.mirrored, self.noise = mirrored, noise
        self.generator = torch.Generator().manual_seed(seed)
        groups = model.parameter_groups()
        self.rates = [lr * group.pop("rate", 1.0) for group in groups]
        decays = [weight_decay if group.pop("decays", False) else 0.0 for group in groups]
        for group, rate, decay in zip(groups, self.rates, decays, strict=True):
            group |= {"lr": rate} | ({"weight_decay": decay} if optimizer == "adamw" else {})
        self.optimizer = OPTIMIZERS[optimizer](groups, **OPTIONS.get(optimizer, {}))
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.moving: list[Tensor] = []  # the parameters that are stepped, while the model holds their running mean
        self.epochs_done = 0

    def start(self) -> None:
        """The model's own random start, the same on every process; then mu and W in closed form, where asked."""
        rows = torch.randperm(self.samples.N, generator=self.generator)[: max(self.model.K, BEGIN_ROWS)]
        x = self.samples.rows(rows)
        self.model.initialise(x, self.generator)
        if self.affine is not None:
            self.affine.start()
            while not self.affine.finished:
                record = self.affine.epoch()
            logger.info("closed-form start: mean L2 %s", five_digits(record["train_mean_l2"]))
            assert isinstance(self.affine.model, LLGAE)
            self.model.begin_from(self.affine.model, x, self.generator)
            self.affine = None  # its statistics are not needed any more
        distributed.from_first_(parameter.data for parameter in self.parameters)
        logger.info("%d parameters, %d steps an epoch", sum(p.numel() for p in self.parameters), self.steps)

    @property
    def steps(self) -> int:
        """Mini-batches in an epoch."""
        return math.ceil(self.samples.N / self.batch_size)

    def keep_start(self) -> bool:
        """Nothing is kept."""
        return False

    def epoch(self) -> EpochRecord:
        """One pass in mini-batches; `train_mean_l2` is the running mean over the pass, as the model moved."""
        order = torch.randperm(self.samples.N, generator=self.generator)
        total = torch.zeros((), dtype=torch.float64)
        mean = self._resume_moving()
        for step, batch in enumerate(order.split(self.batch_size)):
            mine = batch[distributed.rank() :: distributed.world()]
            self._set_rate(self.epochs_done * self.steps + step)
            self.optimizer.zero_grad()
            loss = self._backward(mine, len(batch))
            if not math.isfinite(float(loss)):
                limit = self.model.step_limit()
                raise RunError(
                    f"the loss became {float(loss)} in epoch {self.epochs_done + 1}, step {step + 1} of {self.steps}: "
                    "lower lr or beta" + (f" (beta < {limit:.3g} is stable now)" if 0 < limit < math.inf else "")
                )
            self.optimizer.step()
            self._move_mean(mean, self.epochs_done * self.steps + step)
            total += loss.double() * len(batch)
        self._show_mean(mean)
        self.epochs_done += 1
        return EpochRecord(train_mean_l2=float(total) / self.samples.N)

    def _set_rate(self, step: int) -> None:
        """One-cycle: up in a line, down along a cosine to 0, over all steps of the run."""
        if not self.one_cycle:
            return
        done = step / (self.one_cycle * self.steps)
        if done < RISE:
            share = RISE_FROM + (1 - RISE_FROM) * done / RISE
        else:
            share = (1 + math.cos(math.pi * min(1.0, (done - RISE) / (1 - RISE)))) / 2
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share

    @torch.no_grad()
    def _resume_moving(self) -> list[Tensor]:
        """Put the stepped parameters back into the model; returns their running mean."""
        if not self.average:
            return []
        mean = [parameter.detach().clone() for parameter in self.parameters]
        for parameter, moving in zip(self.parameters, self.moving, strict=False):  # none before the first epoch
            parameter.copy_(moving)
        return mean

    @torch.no_grad()
    def _move_mean(self, mean: list[Tensor], step: int) -> None:
        """Mean <- d mean + (1 - d) parameters, with d short of `average` in the first steps."""
        if mean:
            decay = min(self.average, (1 + step) / (10 + step))
            torch._foreach_lerp_(mean, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @torch.no_grad()
    def _show_mean(self, mean: list[Tensor]) -> None:
        """Give the model the running mean, and keep what is stepped."""
        if mean:
            self.moving = [parameter.detach().clone() for parameter in self.parameters]
            for parameter, value in zip(self.parameters, mean, strict=True):
                parameter.copy_(value)

    def _backward(self, mine: Tensor, n: int) -> Tensor:
        """Gradients of the mean over the whole batch of n, from this process's rows of it. Returns the batch's loss."""
        parameters = self.parameters
        if len(mine):
            x = self._turned(self.samples.rows(mine, dtype=parameters[0].dtype))
            loss = self._loss(x) * (len(mine) / n)
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

    def _loss(self, x: Tensor) -> Tensor:
        if not self.noise:
            return self.model.loss(x)
        assert isinstance(self.model, Autoencoder)
        return self.model.loss(x, x + self.noise * torch.randn(x.shape, generator=self.generator).to(x))

    def _turned(self, x: Tensor) -> Tensor:
        """Each sample or, as often, its mirror image."""
        if self.mirrored is None:
            return x
        images = x.view(-1, *self.mirrored)
        turn = (torch.rand(len(x), generator=self.generator) < 0.5).to(x.device)
        return torch.where(turn.view(-1, *(1 for _ in self.mirrored)), images.flip(2), images).flatten(1)

    def state_dict(self) -> dict[str, Any]:
        """All that an exact continuation needs besides the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epochs_done": self.epochs_done,
            "moving": self.moving,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        load_optimizer(self.optimizer, state["optimizer"])
        self.generator.set_state(state["generator"])
        self.epochs_done = whole(state["epochs_done"])
        self.moving = _like(state.get("moving", []), self.parameters)


def _like(saved: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The saved tensors where the parameters are. Raises ValueError where the shapes differ."""
    return [tensor_like(tensor, parameter) for tensor, parameter in zip(saved, parameters, strict=bool(saved))]
