"""One optimisation step. Shape legend: B batch of this process, 4 logged numbers."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tread_ssm.config.run import RunConfig
from tread_ssm.diffusion import AllTokens, Network, Objective, PerRoute, route_loss
from tread_ssm.training.batch import Batch
from tread_ssm.training.sharding import is_shared, whole

LOGGED = ("loss", "kept_loss", "routed_loss", "grad_norm")


@dataclass(frozen=True)
class Stepper:
    """What every step of a run shares.

    Attributes:
        accelerator: Of this process.
        module: The prepared model, whose parameters are trained.
        network: How it is called (the module, or the module with activation checkpointing).
        optimizer: Of the module's parameters.
        objective: Gives the loss of each element.
        loss: How kept and routed tokens weigh.
        patch: Side of the pixels' square that a token stands for.
        micro_batch: Largest batch that is run at once; None: all of it.
        clip: Largest norm of the gradient; None: no limit.
    """

    accelerator: Accelerator
    module: nn.Module
    network: Network
    optimizer: torch.optim.Optimizer
    objective: Objective
    loss: AllTokens | PerRoute
    patch: int
    micro_batch: int | None
    clip: float | None

    @classmethod
    def of(
        cls,
        config: RunConfig,
        accelerator: Accelerator,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> Stepper:
        """The stepper of a run, for its prepared model and optimiser."""
        network: Network = module
        if config.train.checkpoint_gradients:
            network = functools.partial(module, checkpoint=True)
        return cls(
            accelerator=accelerator,
            module=module,
            network=network,
            optimizer=optimizer,
            objective=config.objective,
            loss=config.routing.loss,
            patch=config.model.patch,
            micro_batch=config.train.micro_batch,
            clip=config.train.clip,
        )

    def step(self, batch: Batch, lr: float) -> Tensor:
        """Update the weights once.

        Micro-batches are weighted by their rows, so their split changes nothing but rounding.

        Args:
            batch: This process's part of the global batch.
            lr: Learning rate of this step.

        Returns:
            (4,) float32, the LOGGED numbers; the device may still be computing them.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        logged = torch.zeros(3, device=self.accelerator.device)
        parts = batch.split(self.micro_batch)
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            weight = len(part) / len(batch)
            alone = last or not is_shared(self.module)
            with nullcontext() if alone else self.accelerator.no_sync(self.module):
                terms = self.objective.loss_terms(
                    self.network, part.x, part.labels, part.t, part.noise, part.draw
                )
                losses = route_loss(terms, part.draw, self.patch, self.loss)
                self.accelerator.backward(losses.total * weight)
            logged += weight * torch.stack([losses.total, losses.kept, losses.routed]).detach()
        # fp16 gradients are unscaled here; without a limit the norm is measured all the same.
        limit = float("inf") if self.clip is None else self.clip
        norm = whole(self.accelerator.clip_grad_norm_(self.module.parameters(), limit))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.cat([logged, norm.detach().to(logged).reshape(1)])
