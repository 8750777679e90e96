"""What every mixer offers to the block around it."""

from __future__ import annotations

from torch import Tensor, nn

from tread_ssm.tokens import Layout


class Mixer(nn.Module):
    """x_BLD -> x_BLD: moves information between the tokens of a stream.

    B batch, L tokens of the stream (prefix and whatever image tokens are present), D channels.
    The stream stands in raster order before and after; `layout` says which tokens are there and
    how a scan visits them.

    Attributes:
        out_proj: the last linear map, which backbones may scale by their depth.
    """

    out_proj: nn.Linear

    def init_weights(self) -> None:
        """Set the initial values for which PyTorch's defaults are not meant."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """x_BLD of the stream that `layout` describes -> x_BLD."""
        raise NotImplementedError


def check_range(name: str, value: int, least: int, most: int | None = None) -> None:
    """Refuse a number outside least..most. Raises ValueError."""
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name} is {value}; it must be {limits}.")
