"""Moving averages of the weights; images are sampled with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tread_ssm.training.sharding import fill, is_sharded, local, reshard, whole

Decay = Callable[[int], float]
"""An average's decay after a step, counted from 0."""


def ramped(decay: float) -> Decay:
    """min(decay, (1 + step) / (10 + step)), 0 <= decay < 1: the start is forgotten soon."""
    return lambda step: min(decay, (1 + step) / (10 + step))


class Ema:
    """An exponential moving average of a model's trained parameters.

    It is a plain list of tensors beside the model rather than a second model (torch's
    AveragedModel), so that keys keep their names and nothing waits for the device. Sharded
    parameters have sharded averages: each process averages the parts that it holds.
    """

    def __init__(self, model: nn.Module, decay: Decay, whole: nn.Module | None = None) -> None:
        """Start from the model's weights. Sharding replaces its parameters: shard first.

        Args:
            model: What is averaged.
            decay: Of each step.
            whole: What was sharded, where the model is a part of it. None: the model.
        """
        self.decay = decay
        self._model, self._whole = model, whole or model
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._live: list[Tensor] = list(named.values())
        self.average: dict[str, Tensor] = {n: p.detach().clone() for n, p in named.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the model's weights after `step` (0-based) into the average."""
        average = [local(t) for t in self.average.values()]
        get_ema_multi_avg_fn(self.decay(step))(average, [local(p) for p in self._live], 0)

    @torch.no_grad()
    def state(self, *, gather: bool = True) -> dict[str, Tensor]:
        """The model's state dict with the averages in place of its trained parameters.

        Every process calls it: sharded tensors are gathered one by one, and come on the CPU.

        Args:
            gather: False: take part, and get nothing.
        """
        state: dict[str, Tensor] = {}
        for name, tensor in (self._model.state_dict() | self.average).items():
            full = whole(tensor.detach())
            if gather:
                state[name] = full.cpu() if is_sharded(tensor) else full
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state that `state` gave."""
        for name, average in self.average.items():
            fill(average, state[name])

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """The model carries the averaged weights inside; its own come back bit for bit."""
        reshard(self._whole)
        live = [local(p) for p in self._live]
        own = [p.clone() for p in live]
        torch._foreach_copy_(live, [local(t) for t in self.average.values()])
        try:
            yield
        finally:
            reshard(self._whole)
            torch._foreach_copy_(live, own)
