"""The trainer of the source document: mini-batches, with gradients through the T steps of the winning component."""

import logging
import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from llgae_cli import distributed
from llgae_cli.errors import RunError
from llgae_cli.formatting import five_digits
from llgae_cli.models import Model
from llgae_cli.progress import Work
from llgae_cli.tasks import Samples, locate
from llgae_cli.threads import run_parallel
from llgae_cli.training.closed_form import ClosedForm
from llgae_cli.training.muon import Muon, divide_groups, list_matrices
from llgae_cli.training.state import load_optimizer, read_count, read_number, read_tensor
from llgae_cli.training.trainer import EpochRecord, Trainer

logger = logging.getLogger(__name__)

OPTIMIZERS = {
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": Muon,
    "sgd": torch.optim.SGD,
}
# Runs are short, so AdamW's second moment has a shorter memory than by default.
ADAMW: dict[str, Any] = {"betas": (0.9, 0.99), "fused": True}
OPTIONS: dict[str, dict[str, Any]] = {"adamw": ADAMW, "muon": ADAMW}
CLOSED_FORM_PASSES = 100  # of the initialisation, at most, as far as the time left is concerned
FIRST_PRICE = 0.2  # the price of a bit after the first step, in units of that step's mean L2 over the target rate
PRICE_GAIN = 0.02  # relative change of the price in a step, over the relative excess of the rate
INITIAL_ROWS = 10_000  # rows from which a model is initialised
PARTS, PART_OPERATIONS = 2, 4e9  # a mini-batch of more operations is divided into parts, which run in parallel


def one_cycle(done: float) -> float:
    """Return the learning rate over its peak where the share `done` of the steps is done: up, then a cosine to 0.

    Source: Smith and Topin, Super-convergence, arXiv 1708.07120 (2017).
    """
    rise = 0.15
    if done < rise:
        return warm_up(done / rise)
    return (1 + math.cos(math.pi * ((done - rise) / (1 - rise)))) / 2


def trapezoid(done: float) -> float:
    """Return the learning rate over its peak as `one_cycle` does: up, constant, then linearly down to 0.

    It is also called warmup-stable-decay. Source: Haegele and others, Scaling laws and compute-optimal training beyond
    fixed training durations, arXiv 2405.18392 (2024).
    """
    rise, fall = 0.05, 0.4
    return warm_up(done / rise) if done < rise else min(1.0, (1 - done) / fall)


def warm_up(done: float) -> float:
    """Return the learning rate over its peak where the share `done` of the rise is done."""
    return 0.1 + 0.9 * done


SCHEDULES = {"one-cycle": one_cycle, "trapezoidal": trapezoid}


class Gradient(Trainer):
    """Stochastic gradient descent on the mean L2, over all parameters together.

    Each epoch visits all samples once, in an order drawn from the seed. Raises RunError with the epoch and the step
    where the loss is no longer finite.
    """

    finished = False  # runs for as many epochs as the config gives

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
        schedule: str = "constant",
        epochs: int = 0,
        weight_decay: float = 0.0,
        average: float = 0.0,
        mirrored: tuple[int, ...] | None = None,
        noise: float = 0.0,
        bits: float = 0.0,
    ):
        """Prepare a run.

        affine     trainer of the LLGAE that the model is initialised from, if any
        schedule   schedule of the learning rate, see SCHEDULES
        epochs     number of epochs over which the schedule runs; not used if it is constant
        average    EMA decay of the parameters; the model holds the average after each epoch. 0 turns it off
        mirrored   shape of a sample, to train on mirror images too
        noise      standard deviation of the noise on the inputs of a denoising autoencoder
        bits       bit rate to train for: the loss is the mean L2 plus the price of the bits, and after each step the
                   price rises if the batch took more bits, and falls if it took fewer. 0: no rate
        """
        self.model, self.samples, self.batch_size = model, samples, batch_size
        self.affine, self.schedule, self.epochs, self.average = affine, schedule, epochs, average
        self.mirrored, self.noise, self.bits = mirrored, noise, bits
        self.price = 0.0  # of a bit, in units of the mean L2; the first batch sets it
        self.generator = torch.Generator().manual_seed(seed)
        groups = model.parameter_groups()
        if optimizer == "muon":
            groups = divide_groups(groups, list_matrices(model))
        self.rates = [lr * group.pop("rate", 1.0) for group in groups]
        decaying = issubclass(OPTIMIZERS[optimizer], torch.optim.AdamW)
        decays = [weight_decay if group.pop("decays", False) else 0.0 for group in groups]
        for group, rate, decay in zip(groups, self.rates, decays, strict=True):
            group |= {"lr": rate} | ({"weight_decay": decay} if decaying else {})
        self.optimizer = OPTIMIZERS[optimizer](groups, **OPTIONS.get(optimizer, {}))
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.unaveraged: list[Tensor] = []  # the optimiser's parameters, while the model holds their average
        self.epochs_done = 0

    def plan(self, work: Work, epochs: int, begun: bool) -> None:
        """Report work from now on: each mini-batch, and the closed-form initialisation if there is one."""
        self.work = work
        if self.affine is not None and not begun:
            self.affine.plan(work.within("initialisation"), CLOSED_FORM_PASSES, begun=False)
        work.expect("epochs", epochs * self.samples.N * self.row_operations)

    @property
    def row_operations(self) -> float:
        """Operations of a row's loss and its gradients; six a parameter, as in a dense layer."""
        return 6.0 * sum(parameter.numel() for parameter in self.parameters)

    def initialise(self) -> None:
        """Draw the model's random parameters, the same on every process; then set mu and W in closed form, if asked."""
        rows = torch.randperm(self.samples.N, generator=self.generator)[: max(self.model.K, INITIAL_ROWS)]
        x = self.samples.gather(rows).rows(slice(None))
        self.model.initialise(x, self.generator)
        if self.affine is not None:
            self.affine.initialise()
            while not self.affine.finished:
                record = self.affine.epoch()
            logger.info("closed-form initialisation: mean L2 %s", five_digits(record["train_mean_l2"]))
            self.model.initialise_from(self.affine.model, x, self.generator)
            self.affine = None  # frees its statistics
        distributed.broadcast_(parameter.data for parameter in self.parameters)
        logger.info("%d parameters, %d steps an epoch", sum(p.numel() for p in self.parameters), self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Number of mini-batches in an epoch."""
        return math.ceil(self.samples.N / self.batch_size)

    def epoch(self) -> EpochRecord:
        """Run one pass in mini-batches; `train_mean_l2` is the mean over the pass, while the parameters change."""
        self._align_generators()
        self.model.begin_epoch(self.epochs_done)
        order = torch.randperm(self.samples.N, generator=self.generator)
        held = self.samples.held
        total = rate = 0.0
        averaged, schedule = self._resume_average(), self._resume_schedule()
        for step, batch in enumerate(order.split(self.batch_size)):
            if step > 0:
                schedule.step()
            if held is None:
                mine = batch[distributed.rank() :: distributed.world_size()]
            else:
                mine = batch[locate(batch, held) >= 0]
            self.optimizer.zero_grad()
            loss, bits = self._backward(mine, len(batch)).tolist()
            if not math.isfinite(loss):
                limit = self.model.step_limit()
                raise RunError(
                    f"the loss became {loss} in epoch {self.epochs_done + 1}, step {step + 1} of "
                    f"{self.steps_per_epoch}: lower lr or beta"
                    + (f" (beta < {limit:.3g} is stable now)" if 0 < limit < math.inf else "")
                )
            self.optimizer.step()
            if averaged is not None:
                averaged.update_parameters(self.model)
            if self.bits:
                self._set_price(loss, bits)
                rate += bits * len(batch)
            total += loss * len(batch)
            step_name = f"epoch {self.epochs_done + 1}, batch {step + 1} of {self.steps_per_epoch}"
            self.work.advance("epochs", len(batch) * self.row_operations, step_name)
        if averaged is not None:
            self._use_average(averaged)
        self.epochs_done += 1
        if self.bits:
            logger.info("epoch %d: %s bits a sample", self.epochs_done, five_digits(rate / self.samples.N))
        return EpochRecord(train_mean_l2=total / self.samples.N)

    def _align_generators(self) -> None:
        """Set the generators to the state of rank 0's: noise and mirroring draw as many numbers as a rank has rows."""
        state = self.generator.get_state()
        distributed.broadcast_([state])
        self.generator.set_state(state)

    def rate_factor(self, step: int) -> float:
        """Return the learning rate of a step of the run over its peak."""
        if self.schedule == "constant":
            return 1.0
        return SCHEDULES[self.schedule](min(1.0, step / (self.epochs * self.steps_per_epoch)))

    def _resume_schedule(self) -> LambdaLR:
        """Return the schedule of the learning rates, which are set for the first step of the next epoch."""
        groups = self.optimizer.param_groups
        for group, rate in zip(groups, self.rates, strict=True):
            group["initial_lr"] = rate
        schedule = LambdaLR(self.optimizer, self.rate_factor, self.epochs_done * self.steps_per_epoch - 1)
        for group in groups:
            del group["initial_lr"]  # the schedule has read it; in a checkpoint it would be one option more
        return schedule

    @torch.no_grad()
    def _resume_average(self) -> AveragedModel | None:
        """Return the average, which the model holds, and give the model the optimiser's own parameters instead."""
        if not self.average:
            return None
        averaged = AveragedModel(self.model, multi_avg_fn=self._blend)
        averaged.n_averaged.fill_(1 + self.epochs_done * self.steps_per_epoch)  # initial parameters, steps
        for parameter, own in zip(self.parameters, self.unaveraged, strict=False):  # none before the first epoch
            parameter.copy_(own)
        return averaged

    def _blend(self, mean: Any, parameters: Any, n: Tensor | int) -> None:
        """Update mean <- d mean + (1 - d) parameters; the decay d is `average`, and smaller in the first steps."""
        decay = min(self.average, int(n) / (9 + int(n)))
        get_ema_multi_avg_fn(decay)(mean, parameters, n)

    @torch.no_grad()
    def _use_average(self, averaged: AveragedModel) -> None:
        """Give the model the average, and keep the optimiser's own parameters."""
        self.unaveraged = [parameter.detach().clone() for parameter in self.parameters]
        for parameter, mean in zip(self.model.parameters(), averaged.module.parameters(), strict=True):
            parameter.copy_(mean)

    def _set_price(self, loss: float, bits: float) -> None:
        """Set the price of a bit after a step whose batch had this mean L2 and took so many bits a sample."""
        if self.price:
            self.price *= math.exp(PRICE_GAIN * min(1.0, bits / self.bits - 1))
        else:
            self.price = FIRST_PRICE * loss / self.bits

    def _backward(self, mine: Tensor, n: int) -> Tensor:
        """Compute the gradients of a batch of n from this process's rows of it; return its mean L2 and bits, (2,)."""
        parameters = self.parameters
        if len(mine):
            x = self.samples.rows(mine, dtype=parameters[0].dtype)
            if self.mirrored is not None:
                x = mirror_half(x, self.mirrored, self.generator)
            noise = None
            if self.noise:
                noise = self.noise * torch.randn(x.shape, generator=self.generator).to(x)
            elif self.bits:
                noise = (torch.rand(len(x), self.model.E, generator=self.generator) - 0.5).to(x)
            loss = self._add_gradients(x, noise, n)
        else:
            loss = torch.zeros(2)
        if distributed.is_active():
            share = loss.to(parameters[0].device)
            used = torch.tensor([float(p.grad is not None) for p in parameters], device=share.device)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            distributed.sum_([share, used, *gradients])
            loss = share.cpu()
            for parameter, gradient, processes in zip(parameters, gradients, used.tolist(), strict=True):
                parameter.grad = gradient if processes else None
        return loss

    def _losses(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mean L2 of rows x (m, D) and their mean bits, 0 where no rate is trained for."""
        if self.bits and noise is not None:
            return self.model.rate_loss(x, noise)
        loss = self.model.loss(x) if noise is None else self.model.denoising_loss(x, x + noise)
        return loss, torch.zeros_like(loss)

    def _add_gradients(self, x: Tensor, noise: Tensor | None, n: int) -> Tensor:
        """Add the gradients of the losses of rows x (m, D), times m / n; return these losses, (2,).

        On the CPU the rows are divided into parts, the same for any number of threads: a thread works on each. torch's
        own threads divide a single operation, and most operations of a small network are too short for that.
        """
        divided = x.device.type == "cpu" and self.row_operations * n > PART_OPERATIONS
        size = math.ceil(len(x) / PARTS) if divided else len(x)

        def differentiate(part: slice) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            mean_l2, bits = self._losses(x[part], None if noise is None else noise[part])
            share = len(x[part]) / n
            gradients = torch.autograd.grad(share * (mean_l2 + self.price * bits), self.parameters, allow_unused=True)
            return share * torch.stack([mean_l2.detach(), bits.detach()]), gradients

        total = torch.zeros(2, dtype=x.dtype, device=x.device)

        def add(result: tuple[Tensor, tuple[Tensor | None, ...]]) -> None:
            total.add_(result[0])
            for parameter, gradient in zip(self.parameters, result[1], strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient
                elif gradient is not None:
                    parameter.grad += gradient

        parts = [slice(low, low + size) for low in range(0, len(x), size)]
        run_parallel(differentiate, parts, add, parallel=len(parts) > 1)
        return total.cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs, together with the model's own state."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epochs_done": self.epochs_done,
            "moving": self.unaveraged,
            **({"price": self.price} if self.bits else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`. Raises ValueError where it does not fit."""
        load_optimizer(self.optimizer, state["optimizer"])
        self.generator.set_state(state["generator"])
        self.epochs_done = read_count(state["epochs_done"])
        if self.bits:
            self.price = read_number(state["price"])
        saved = state.get("moving", [])
        self.unaveraged = [
            read_tensor(tensor, parameter) for tensor, parameter in zip(saved, self.parameters, strict=bool(saved))
        ]


def mirror_half(x: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return the images x (n, D) of a shape (height, width, ...), each mirrored left to right with probability 1/2."""
    images = x.view(-1, *shape)
    mirror = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirror.view(-1, *(1 for _ in shape)), images.flip(2), images).flatten(1)
