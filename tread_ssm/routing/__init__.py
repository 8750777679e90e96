"""Token routing for any stack of sequence blocks. Needs nothing but torch."""

from tread_ssm.routing.attach.arguments import Blocks
from tread_ssm.routing.attach.drawing import SelfDrawing
from tread_ssm.routing.attach.entry import attach
from tread_ssm.routing.attach.guidance import guided_by_routes
from tread_ssm.routing.attach.hooks import Attached
from tread_ssm.routing.attach.per_token import PerToken
from tread_ssm.routing.fuse import Fuse
from tread_ssm.routing.plan import Draw, Route, RoutePlan, RouteSchedule
from tread_ssm.routing.run import run_blocks
from tread_ssm.routing.select import Cells, Frames, RandomTokens, Rows, Segments, Select, Tubes
from tread_ssm.tokens import Layout, TokenSubset

__all__ = [
    "Attached",
    "Blocks",
    "Cells",
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
    "Select",
    "SelfDrawing",
    "TokenSubset",
    "Tubes",
    "attach",
    "guided_by_routes",
    "run_blocks",
]
