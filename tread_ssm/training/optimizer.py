"""Optimisers: each a configuration that builds it, and which parameters weight decay leaves alone.

A further optimiser is one dataclass here and its name in `OptimizerConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

# Modules whose `weight` mixes channels; weight decay is meant for these and nothing else.
_MIXING = (nn.Linear, nn.Conv1d, nn.Conv2d)

Rule = Literal["adamw", "muon"]
_Wanted: TypeAlias = tuple[str, Rule, float, list[str]]
"""Role, rule, weight decay and names of parameters."""


@dataclass(frozen=True)
class Group:
    """Parameters that an optimiser treats alike.

    Attributes:
        role: What they are, in words.
        rule: The optimiser that updates them.
        weight_decay: Theirs.
        parameters: The tensors.
    """

    role: str
    rule: Rule
    weight_decay: float
    parameters: tuple[nn.Parameter, ...]


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101).

    Attributes:
        kind: Tells optimisers apart.
        lr: Peak of the learning rate.
        betas: Decay of the moving averages of the gradient and of its square.
        weight_decay: Share of a decayed weight that a step removes, times the learning rate.
        eps: Added to the denominator.
        decay: What decays: "weights", those of linear layers and convolutions, or "all" parameters.
    """

    kind: Literal["adamw"] = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8
    decay: Literal["weights", "all"] = "weights"

    def __post_init__(self) -> None:
        _check(self.lr, self.eps, self.weight_decay, self.betas)

    def groups(self, model: nn.Module) -> list[Group]:
        """The trained parameters; groups that would be empty are left out."""
        rule = decayed(model)
        if self.decay == "all":
            return _groups(model, [("all", "adamw", self.weight_decay, list(rule))])
        weights: _Wanted = ("weights", "adamw", self.weight_decay, _where(rule, True))
        return _groups(model, [weights, _undecayed(rule)])

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a model's trained parameters."""
        groups = [_as_dict(g) for g in self.groups(model)]
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True)
class MuonConfig:
    """Muon for the matrices inside blocks, AdamW for everything else.

    Muon (Jordan et al., 2024) replaces a matrix's momentum by the nearest orthogonal matrix,
    found by Newton and Schulz's iteration in bfloat16. Updates are scaled by
    0.2 sqrt(max(rows, columns)) (Liu et al., arXiv 2502.16982), so that they are as large as
    AdamW's and one learning rate serves both.

    Attributes:
        kind: Tells optimisers apart.
        lr: Peak of the learning rate, of both.
        momentum: Decay of Muon's moving average of the gradient.
        nesterov: Whether Muon looks ahead along its momentum.
        iterations: Of Newton and Schulz, for a step.
        betas: AdamW's.
        weight_decay: Share of a decayed weight that a step removes, times the learning rate. The
            weights of linear layers and convolutions decay.
        eps: AdamW's.
    """

    kind: Literal["muon"] = "muon"
    lr: float = 1e-3
    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check(self.lr, self.eps, self.weight_decay, (*self.betas, self.momentum))
        if not 1 <= self.iterations < 100:
            raise ValueError(f"iterations is {self.iterations}; it must lie in 1..99.")

    def groups(self, model: nn.Module) -> list[Group]:
        """The trained parameters; groups that would be empty are left out."""
        rule = decayed(model)
        mixing = _where(rule, True)
        hidden = [n for n in mixing if _in_blocks(n, model)]
        others = [n for n in mixing if n not in set(hidden)]
        wanted: list[_Wanted] = [("matrices in blocks", "muon", self.weight_decay, hidden)]
        wanted += [("other weights", "adamw", self.weight_decay, others), _undecayed(rule)]
        return _groups(model, wanted)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a model's trained parameters."""
        by: dict[Rule, list[dict[str, Any]]] = {"muon": [], "adamw": []}
        for group in self.groups(model):
            by[group.rule].append({"rule": group.rule, **_as_dict(group)})
        if not by["muon"]:
            raise ValueError("muon: the model has no matrices in blocks; use adamw.")
        muon = torch.optim.Muon(
            by["muon"],
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.iterations,
            adjust_lr_fn="match_rms_adamw",
        )
        options: dict[str, Any] = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        return MuonWithAdamW(muon, torch.optim.AdamW(by["adamw"], fused=True, **options))


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimiser out of two, each with parameters of its own.

    Groups bear the name of their `rule`. State, groups and checkpoints are those of any optimiser.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._parts = {"muon": muon, "adamw": adamw}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters by their gradients."""
        # Loading a checkpoint and sharding replace groups and state: the two see them as they are.
        for rule, part in self._parts.items():
            part.param_groups = [g for g in self.param_groups if g["rule"] == rule]
            part.state = self.state
            part.step()


OptimizerConfig: TypeAlias = AdamWConfig | MuonConfig


def decayed(model: nn.Module) -> dict[str, bool]:
    """For every trained parameter, whether weight decay is meant for it.

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


def _in_blocks(name: str, model: nn.Module) -> bool:
    """Whether a parameter is a matrix inside a stack called `blocks`."""
    return "blocks" in name.split(".") and model.get_parameter(name).ndim == 2


def _where(rule: dict[str, bool], wanted: bool) -> list[str]:
    return [name for name, decays in rule.items() if decays is wanted]


def _undecayed(rule: dict[str, bool]) -> _Wanted:
    return "norms, biases, embeddings, rates", "adamw", 0.0, _where(rule, False)


def _groups(model: nn.Module, wanted: Sequence[_Wanted]) -> list[Group]:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    groups = []
    for role, rule, weight_decay, names in wanted:
        chosen = set(names)
        parameters = tuple(p for n, p in named.items() if n in chosen)
        if parameters:
            groups.append(Group(role, rule, weight_decay, parameters))
    return groups


def _as_dict(group: Group) -> dict[str, Any]:
    return {"params": list(group.parameters), "weight_decay": group.weight_decay}


def _check(lr: float, eps: float, weight_decay: float, betas: tuple[float, ...]) -> None:
    for name, value in (("lr", lr), ("eps", eps)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be greater than 0.")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0.")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas (or momentum) are {betas}; each must satisfy 0 <= beta < 1.")
