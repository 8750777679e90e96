"""What is trained beside the network: the heads of losses that look into it.

Shape legend: B batch, C channels, H rows, W columns, K kept tokens, D channels of a token.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tread_ssm.diffusion.auxiliary import AuxiliaryLoss
from tread_ssm.models import Backbone
from tread_ssm.routing import Draw


class WithHeads(nn.Module):
    """A backbone, called as it is, and the heads of its auxiliary losses.

    The heads belong to what is trained, sharded and saved in checkpoints, but not to the network
    that is averaged and exported.

    Attributes:
        backbone: The network.
        heads: By the number of the tap whose tokens they get.
    """

    def __init__(self, backbone: Backbone, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, nn.ModuleDict(heads)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor,
        *,
        routing: Draw = (),
        checkpoint: bool = False,
        taps: Sequence[int] = (),
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """As `Backbone.forward`; the tokens of each tap have gone through its head."""
        out = self.backbone(x, t, labels, routing=routing, checkpoint=checkpoint, taps=taps)
        if not taps:
            return out
        prediction, features = out
        named = ((str(i), f) for i, f in enumerate(features))
        return prediction, tuple(self.heads[i](f) if i in self.heads else f for i, f in named)


def with_heads(model: nn.Module, losses: Sequence[AuxiliaryLoss]) -> nn.Module:
    """What is trained: the model itself, unless a loss has a head.

    Heads come in the order of the losses that have a block; so do the taps of `Stepper`. They lie
    on the model's device.
    """
    assert isinstance(model, Backbone)
    config = model.config
    values = config.patch**2 * config.channels
    inside = [loss for loss in losses if loss.block is not None]
    made = {str(i): loss.head(config.dim, values, model.grid) for i, loss in enumerate(inside)}
    heads = {i: head for i, head in made.items() if head is not None}
    device = next(model.parameters()).device
    return WithHeads(model, heads).to(device) if heads else model


def backbone_of(trained: nn.Module) -> Backbone:
    """The network in what `with_heads` gave."""
    backbone = trained.backbone if isinstance(trained, WithHeads) else trained
    assert isinstance(backbone, Backbone)
    return backbone
