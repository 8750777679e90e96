"""tread_ssm: state-space (Mamba) diffusion models with token routing.

Everything is imported when it is first named: people who want the routing alone pay for nothing
else, and `tread-ssm --help` does not even wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tread_ssm.models import DiM, DiMConfig, DiT, DiTConfig, ZigMamba, ZigMambaConfig
    from tread_ssm.pretrained import from_pretrained
    from tread_ssm.routing import (
        Blocks,
        Cells,
        Draw,
        Frames,
        Fuse,
        Layout,
        PerToken,
        RandomTokens,
        Route,
        RoutePlan,
        RouteSchedule,
        Rows,
        Segments,
        SelfDrawing,
        TokenSubset,
        Tubes,
        attach,
        guided_by_routes,
        run_blocks,
    )
    from tread_ssm.sampling.pictures import sample_images
    from tread_ssm.scan import causal_conv, selective_scan, ssd

_WHERE = {
    "Blocks": "tread_ssm.routing",
    "Cells": "tread_ssm.routing",
    "DiM": "tread_ssm.models",
    "DiMConfig": "tread_ssm.models",
    "DiT": "tread_ssm.models",
    "DiTConfig": "tread_ssm.models",
    "Draw": "tread_ssm.routing",
    "Frames": "tread_ssm.routing",
    "Fuse": "tread_ssm.routing",
    "Layout": "tread_ssm.routing",
    "PerToken": "tread_ssm.routing",
    "RandomTokens": "tread_ssm.routing",
    "Route": "tread_ssm.routing",
    "RoutePlan": "tread_ssm.routing",
    "RouteSchedule": "tread_ssm.routing",
    "Rows": "tread_ssm.routing",
    "Segments": "tread_ssm.routing",
    "SelfDrawing": "tread_ssm.routing",
    "TokenSubset": "tread_ssm.routing",
    "Tubes": "tread_ssm.routing",
    "ZigMamba": "tread_ssm.models",
    "ZigMambaConfig": "tread_ssm.models",
    "attach": "tread_ssm.routing",
    "causal_conv": "tread_ssm.scan",
    "from_pretrained": "tread_ssm.pretrained",
    "guided_by_routes": "tread_ssm.routing",
    "run_blocks": "tread_ssm.routing",
    "sample_images": "tread_ssm.sampling.pictures",
    "selective_scan": "tread_ssm.scan",
    "ssd": "tread_ssm.scan",
}

__all__ = [
    "Blocks",
    "Cells",
    "DiM",
    "DiMConfig",
    "DiT",
    "DiTConfig",
    "Draw",
    "Frames",
    "Fuse",
    "Layout",
    "PerToken",
    "RandomTokens",
    "Route",
    "RoutePlan",
    "RouteSchedule",
    "Rows",
    "Segments",
    "SelfDrawing",
    "TokenSubset",
    "Tubes",
    "ZigMamba",
    "ZigMambaConfig",
    "attach",
    "causal_conv",
    "from_pretrained",
    "guided_by_routes",
    "run_blocks",
    "sample_images",
    "selective_scan",
    "ssd",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'tread_ssm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
