"""One optimisation step.

Shape legend: B batch of this process, K kept tokens, D channels, A auxiliary losses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tread_ssm.config.run import RunConfig
from tread_ssm.diffusion import (
    AllTokens,
    Auxiliary,
    LossTerms,
    Objective,
    PerRoute,
    route_loss,
)
from tread_ssm.diffusion.auxiliary import Seen
from tread_ssm.routing import Draw
from tread_ssm.routing.plan import kept_in
from tread_ssm.training.batch import Batch
from tread_ssm.training.sharding import is_shared, whole

_LOGGED = ("loss", "kept_loss", "routed_loss", "grad_norm")


def logged(losses: Sequence[Auxiliary]) -> tuple[str, ...]:
    """Names of the numbers of a step; each auxiliary loss has its own, without its weight."""
    return (*_LOGGED, *(f"{loss.kind}_loss" for loss in losses))


@dataclass(frozen=True)
class Stepper:
    """What every step of a run shares.

    Attributes:
        accelerator: Of this process.
        module: The prepared model, whose parameters are trained.
        network: How it is called (the module, or the module with activation checkpointing).
        optimizer: Of the module's parameters.
        objective: Gives the loss of each element.
        auxiliary: Further losses.
        blocks: The block that each of them looks at, from 0; None: it looks at none.
        loss: How kept and routed tokens weigh.
        patch: Side of the pixels' square that a token stands for.
        micro_batch: Largest batch that is run at once; None: all of it.
        clip: Largest norm of the gradient; None: no limit.
    """

    accelerator: Accelerator
    module: nn.Module
    network: Callable[..., Any]
    optimizer: torch.optim.Optimizer
    objective: Objective
    auxiliary: tuple[Auxiliary, ...]
    blocks: tuple[int | None, ...]
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
        network: Callable[..., Any] = module
        if config.train.checkpoint_gradients:
            network = functools.partial(module, checkpoint=True)
        return cls(
            accelerator=accelerator,
            module=module,
            network=network,
            optimizer=optimizer,
            objective=config.objective,
            auxiliary=config.auxiliary,
            blocks=tuple(
                None if loss.block is None else loss.block % config.model.depth
                for loss in config.auxiliary
            ),
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
            (4 + A,) float32, the `logged` numbers; the device may still be computing them.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        sums = torch.zeros(3 + len(self.auxiliary), device=self.accelerator.device)
        parts = batch.split(self.micro_batch)
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            weight = len(part) / len(batch)
            alone = last or not is_shared(self.module)
            with nullcontext() if alone else self.accelerator.no_sync(self.module):
                terms, features = self._forward(part)
                losses = route_loss(terms, part.draw, self.patch, self.loss)
                apart = self._auxiliary(part, terms, features)
                total = losses.total
                for loss, block, value in zip(self.auxiliary, self.blocks, apart, strict=True):
                    if block is None or not _is_skipped(part.draw, block):
                        total = total + loss.weight * value
                self.accelerator.backward(total * weight)
            numbers = torch.stack([losses.total, losses.kept, losses.routed, *apart])
            sums += weight * numbers.detach()
        # fp16 gradients are unscaled here; without a limit the norm is measured all the same.
        limit = float("inf") if self.clip is None else self.clip
        norm = whole(self.accelerator.clip_grad_norm_(self.module.parameters(), limit))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.cat([sums[:3], norm.detach().to(sums).reshape(1), sums[3:]])

    def _forward(self, part: Batch) -> tuple[LossTerms, tuple[Tensor, ...]]:
        """The objective's terms, and the tokens (B, K, D) behind the blocks that are looked at."""
        taps = tuple(block for block in self.blocks if block is not None)
        seen: list[Tensor] = []

        def network(x: Tensor, t: Tensor, labels: Tensor, *, routing: Draw = ()) -> Tensor:
            if not taps:
                return self.network(x, t, labels, routing=routing)
            prediction, features = self.network(x, t, labels, routing=routing, taps=taps)
            seen.extend(features)
            return prediction

        batch = part.x, part.labels, part.t, part.noise, part.draw
        return self.objective.loss_terms(network, *batch), tuple(seen)

    def _auxiliary(
        self, part: Batch, terms: LossTerms, features: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """The value of each auxiliary loss, (); nan where its block was skipped."""
        behind = iter(features)
        values = []
        for loss, block in zip(self.auxiliary, self.blocks, strict=True):
            if block is not None and _is_skipped(part.draw, block):
                next(behind)
                values.append(terms.loss_map.new_full((), torch.nan))
                continue
            seen = Seen(
                x=part.x,
                noise=part.noise,
                velocity=terms.velocity,
                features=None if block is None else next(behind),
                kept=None if block is None else kept_in(part.draw, block),
                patch=self.patch,
                cached=part.cached,
            )
            values.append(loss.loss(seen))
        return values


def _is_skipped(draw: Draw, block: int) -> bool:
    """Whether the draw skips the route around a block altogether."""
    kept = kept_in(draw, block)
    return kept is not None and kept.is_none
