"""One optimisation step. Shape legend: B batch of this process, 4 logged numbers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tread_ssm.diffusion import AllTokens, Network, Objective, PerRoute, route_loss
from tread_ssm.training.batch import Batch
from tread_ssm.training.sharding import is_shared, whole

LOGGED = ("loss", "kept_loss", "routed_loss", "grad_norm")


@dataclass(frozen=True)
class Stepper:
    """What every step of a run shares.

    module:  the prepared model, whose parameters are trained.
    network: how it is called (the module, or the module with activation checkpointing).
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

    def step(self, batch: Batch, lr: float) -> Tensor:
        """Update the weights once; returns the LOGGED numbers, (4,) float32, not waited for.

        Micro-batches are weighted by their rows, so their split changes nothing but rounding.
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
