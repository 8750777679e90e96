"""AdamW, and which parameters its weight decay leaves alone."""

from __future__ import annotations

import torch
from torch import nn

# Modules whose `weight` mixes channels; weight decay is meant for these and nothing else.
_MIXING = (nn.Linear, nn.Conv1d, nn.Conv2d)


def decayed(model: nn.Module) -> dict[str, bool]:
    """For every trained parameter, whether weight decay applies to it.

    Only weights of linear layers and convolutions decay. A_log, D, norms, embeddings, biases,
    padding tokens and modulation tables are scales, positions or rates: zero is no natural
    place for them.
    """
    rule: dict[str, bool] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                mixes = isinstance(module, _MIXING) and name == "weight"
                rule[f"{prefix}.{name}" if prefix else name] = mixes
    return rule


def make_optimizer(
    model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with a decayed and an undecayed group (empty groups are left out)."""
    rule = decayed(model)
    groups = []
    for wanted, decay in ((True, weight_decay), (False, 0.0)):
        chosen = [p for n, p in model.named_parameters() if rule.get(n) is wanted]
        if chosen:
            groups.append({"params": chosen, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
