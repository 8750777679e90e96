"""Blocks in which dropping tokens would go wrong without a word: what they hold says so."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from tread_ssm.routing.attach.arguments import Blocks
from tread_ssm.routing.attach.source import Counted
from tread_ssm.routing.plan import Route
from tread_ssm.tokens import TokenSubset

_CONVOLUTIONS: tuple[tuple[type[nn.Module], ...], ...] = (
    (nn.Conv1d, nn.ConvTranspose1d, nn.AvgPool1d, nn.MaxPool1d),
    (nn.Conv2d, nn.ConvTranspose2d, nn.AvgPool2d, nn.MaxPool2d, nn.Unfold),
    (nn.Conv3d, nn.ConvTranspose3d, nn.AvgPool3d, nn.MaxPool3d),
)
_POSITIONS = re.compile(
    r"(rotary|rope)\w*(emb|enc)|alibi|rel(ative)?_?pos|pos(ition)?(al)?_?(emb|enc|bias)",
    re.IGNORECASE,
)
_TABLES = ("relative_position_bias_table", "relative_position_index", "rel_pos_h", "rel_indices")
_WINDOWS = re.compile(r"window|maskunit|outlook|gpsa|spatialreduction", re.IGNORECASE)


def refuse_routes(routes: Iterable[Route]) -> None:
    """Raise ValueError for routes that hooks cannot run."""
    for route in routes:
        if route.rejoin == "fuse":
            raise ValueError(
                f"attach: Route(start={route.start}, stop={route.stop}, rejoin='fuse') merges by a "
                f"map that belongs to the network, and attach adds nothing to a model; run its "
                f"blocks by run_blocks(..., rejoins=...), or use rejoin='start'."
            )
        if route.path_drop:
            raise ValueError(
                f"attach: Route(start={route.start}, stop={route.stop}, path_drop="
                f"{route.path_drop}) skips blocks, and hooks cannot keep a model from calling "
                f"them; run its blocks by run_blocks, or leave path_drop out."
            )


def refuse_unfit(
    number: int, block: nn.Module, blocks: Blocks, subset: TokenSubset, made: Counted
) -> None:
    """Raise ValueError where a block relies on which tokens stand beside each other.

    Args:
        number: Of the block.
        block: As the model calls it.
        blocks: What is declared of it.
        subset: The tokens that it would see, of the image alone.
        made: What `by_number` found in it.
    """
    name = f"attach: block {number} ({type(block).__name__})"
    if made.line and not blocks.closes_gaps:
        part = f" in `{made.path}`" if made.path else ""
        wrong = (
            "be those of other tokens. Give them to the block as an argument that is declared in "
            "per_token, or end"
            if made.makes == "positions"
            else "hold tokens that are no neighbours. End"
        )
        raise ValueError(
            f"{name} makes {made.makes} from the number of its tokens{part}: `{made.line}`. Inside "
            f"a route they would {wrong} the route before block {number}; if routing.verify() "
            f"finds no difference, say closes_gaps=True."
        )
    for path, module in block.named_modules():
        held = f"holds `{path}` ({type(module).__name__})" if path else "is one itself"
        rank = _rank(module)
        if rank == 1 and not blocks.closes_gaps:
            raise ValueError(
                f"{name} {held}, a convolution along the tokens; say closes_gaps=True if it may "
                f"treat the kept tokens as neighbours, as Mamba does, or end the route before."
            )
        if rank is not None and rank > 1:
            _refuse_without_grid(name, number, held, rank, blocks, subset)
        kind = type(module).__name__
        windowed = any(getattr(module, name, None) for name in ("window_size", "input_resolution"))
        if windowed or _WINDOWS.search(kind):
            raise ValueError(
                f"{name} {held}, which works on windows or a square grid of all tokens; end the "
                f"route before block {number}."
            )
        tables = [t for t in _TABLES if getattr(module, t, None) is not None]
        if (tables or _POSITIONS.search(kind)) and not blocks.closes_gaps:
            raise ValueError(
                f"{name} {held}, which seems to make positions inside the block, where dropped "
                f"tokens are not counted; if routing.verify() finds no difference, or the kept "
                f"tokens may count as a sequence without gaps, say closes_gaps=True."
            )


def is_sequence_first(block: nn.Module) -> bool:
    """Whether a part of the block takes (tokens, batch, channels), as torch's attention may."""
    return any(getattr(module, "batch_first", None) is False for module in block.modules())


def _rank(module: nn.Module) -> int | None:
    """Dimensions of the grid over which a module looks at neighbours, None where it does not."""
    for rank, kinds in enumerate(_CONVOLUTIONS, start=1):
        if isinstance(module, kinds):
            size = module.kernel_size
            single = all(k == 1 for k in (size if isinstance(size, tuple) else (size,)))
            return None if rank == 1 and single else rank
    return None


def _refuse_without_grid(
    name: str, number: int, held: str, rank: int, blocks: Blocks, subset: TokenSubset
) -> None:
    if subset.grid is not None and blocks.grid_arguments:
        return
    remedy = (
        "choose a selection whose kept tokens form a rectangle (Rows)"
        if subset.grid is None
        else "name the arguments that hold it, as grid_arguments=('height', 'width')"
    )
    raise ValueError(
        f"{name} {held}, a {rank}-D convolution, and needs the grid of its tokens, "
        f"grid_arguments={blocks.grid_arguments}, kept grid {subset.grid} of {subset.n_kept} "
        f"tokens; {remedy}, or end the route before block {number}."
    )
