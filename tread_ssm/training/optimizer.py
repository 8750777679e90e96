"""Optimisers: each a configuration that builds it, and which parameters weight decay leaves alone.

A further optimiser is one dataclass here and its name in `OptimizerConfig`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

# Modules whose `weight` mixes channels; weight decay is meant for these and nothing else.
_MIXING = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101).

    Attributes:
        kind: Tells optimisers apart.
        lr: Peak of the learning rate.
        betas: Decay of the moving averages of the gradient and of its square.
        weight_decay: Share of a decayed weight that a step removes, times the learning rate.
        eps: Added to the denominator.
    """

    kind: Literal["adamw"] = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be greater than 0.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be at least 0.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; each must satisfy 0 <= beta < 1.")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a model's trained parameters."""
        groups = parameter_groups(model, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


OptimizerConfig: TypeAlias = AdamWConfig


def decayed(model: nn.Module) -> dict[str, bool]:
    """For every trained parameter, whether weight decay applies to it.

    Only weights of linear layers and convolutions decay. A_log, D, norms, embeddings, biases,
    padding tokens and modulation tables are scales, positions or rates: zero is no natural
    place for them. A parameter that bears the attribute `_no_weight_decay = True` never decays.
    """
    rule: dict[str, bool] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                mixes = isinstance(module, _MIXING) and name == "weight"
                spared = getattr(parameter, "_no_weight_decay", False)
                rule[f"{prefix}.{name}" if prefix else name] = mixes and not spared
    return rule


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters in a decayed and an undecayed group; empty groups are left out."""
    rule = decayed(model)
    groups = []
    for wanted, decay in ((True, weight_decay), (False, 0.0)):
        chosen = [p for n, p in model.named_parameters() if rule.get(n) is wanted]
        if chosen:
            groups.append({"params": chosen, "weight_decay": decay})
    return groups
