"""The moving average of the weights that samples are drawn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """An exponential moving average of a model's trained parameters.

    It is a plain list of tensors beside the model rather than a second model
    (torch's AveragedModel), so that it also holds where parameters are sharded, keys keep
    their names, and nothing waits for the device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """decay: 0 <= decay < 1, of the long run; the first steps forget faster."""
        self.decay = decay
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._live: list[Tensor] = list(named.values())
        self.average: dict[str, Tensor] = {n: p.detach().clone() for n, p in named.items()}

    def decay_at(self, step: int) -> float:
        """min(decay, (1 + step) / (10 + step)): the start is forgotten soon."""
        return min(self.decay, (1 + step) / (10 + step))

    def update(self, step: int) -> None:
        """Take the model's weights after `step` (0-based) into the average."""
        get_ema_multi_avg_fn(self.decay_at(step))(list(self.average.values()), self._live, 0)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state dict with the averages in place of its trained parameters."""
        state = {n: t.detach() for n, t in model.state_dict().items()}
        return state | self.average

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state that `state` gave."""
        for name, average in self.average.items():
            average.copy_(state[name])

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """The model carries the averaged weights inside; its own come back bit for bit."""
        own = [p.detach().clone() for p in self._live]
        torch._foreach_copy_(self._live, list(self.average.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(self._live, own)
