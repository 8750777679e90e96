"""`attach`: routes for a model that you may not edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from tread_ssm.routing.attach.arguments import Blocks, argument_names
from tread_ssm.routing.attach.drawing import Drawing, SelfDrawing, default_route
from tread_ssm.routing.attach.hooks import Attached, attached
from tread_ssm.routing.attach.per_token import How, Image, PerToken
from tread_ssm.routing.attach.presets import preset, stack


def attach(
    model: nn.Module | Sequence[nn.Module],
    *,
    drop: float | None = None,
    drawing: SelfDrawing | None = None,
    rows: Sequence[Blocks] | None = None,
    per_token: Sequence[str] | Mapping[str, How] = (),
    n_prefix: int | None = 0,
    streams: Sequence[str] = (),
    returns: Sequence[int] | None = None,
    whole: Sequence[str] = (),
    skips: Sequence[str] = (),
    image: Image = "last",
    grid_arguments: Sequence[str] = (),
    sequence_first: bool = False,
    closes_gaps: bool = False,
) -> Attached:
    """Routes for a model that you may not edit: hooks on its blocks.

        routing = attach(model, drop=0.5)              # draws by itself, in training alone

        routing = attach(model)                        # or is given each draw
        with routing.using(plan.draw(batch, grid)):
            loss = criterion(model(x))

    A block that a checkpoint recomputes (use_reentrant=False) takes the draw of the forward pass
    that it repeats, whatever is drawn meanwhile.

    Args:
        model: A model whose class the table of presets knows (or that `rows` describe), or its
            blocks, in the order in which it calls them.
        drop: Share of tokens that skip all but the first two and the last three blocks (of fewer
            than eight: all but the first and the last), drawn anew in each training pass. Whole
            rows where blocks are told the sizes of their grid.
        drawing: Other routes that draw by themselves, with grid, schedule and seed.
        rows: What the lists of blocks of a model take, for a class that has no preset.
        per_token: For blocks that are given themselves, as the following: see `Blocks`. A name
            alone is PerToken("n d").
        n_prefix: See `Blocks`.
        streams: See `Blocks`.
        returns: See `Blocks`.
        whole: See `Blocks`.
        skips: See `Blocks`.
        image: See `Blocks`.
        grid_arguments: See `Blocks`.
        sequence_first: See `Blocks`.
        closes_gaps: See `Blocks`.

    Raises:
        ValueError: A model without a preset, blocks that have routes already or stand twice, and
            names that no block knows.
    """
    named = per_token if isinstance(per_token, Mapping) else {n: PerToken() for n in per_token}
    row = Blocks(
        streams=tuple(streams),
        returns=None if returns is None else tuple(returns),
        per_token=dict(named),
        whole=tuple(whole),
        skips=tuple(skips),
        image=image,
        n_prefix=n_prefix,
        grid_arguments=tuple(grid_arguments),
        sequence_first=sequence_first,
        closes_gaps=closes_gaps,
    )
    found, root = _found(model, rows, row)
    _check(found, names=rows is not None or root is None)
    return Attached(found, _drawing(drop, drawing, [row for _, row in found]), root)


def _found(
    model: nn.Module | Sequence[nn.Module], rows: Sequence[Blocks] | None, row: Blocks
) -> tuple[list[tuple[nn.Module, Blocks]], nn.Module | None]:
    """The blocks with the row of each, and the model that holds them where it was given."""
    if not isinstance(model, nn.Module) or isinstance(model, (nn.ModuleList, nn.Sequential)):
        if rows is not None:
            raise ValueError("attach: rows belong to a model; for blocks use further arguments.")
        return [(block, row) for block in model], None
    if row != Blocks():
        raise ValueError(
            "attach: what blocks take is described by rows=(Blocks(...),) for a model, and by "
            "further arguments where the blocks themselves are given."
        )
    return preset(model) if rows is None else stack(model, rows), model


def _drawing(
    drop: float | None, drawing: SelfDrawing | None, rows: Sequence[Blocks]
) -> Drawing | None:
    if drop is not None and drawing is not None:
        raise ValueError("attach: give drop, or drawing with routes of your own, not both.")
    if drop is not None:
        on_grid = any(row.grid_arguments for row in rows)
        drawing = SelfDrawing((default_route(drop, len(rows), on_grid),))
    return None if drawing is None else Drawing(drawing, len(rows))


def _check(found: Sequence[tuple[nn.Module, Blocks]], names: bool) -> None:
    for row in {id(row): row for _, row in found}.values():
        n_streams = max(1, len(row.streams))
        if (row.returns is None and n_streams > 1) or len(row.returns or (0,)) != len(
            row.streams or (0,)
        ):
            raise ValueError(
                f"attach: {n_streams} streams, but returns={row.returns}; name one place of the "
                f"returned tuple for each stream."
            )
        known: set[str] | None = set()
        for block, own in found:
            here = argument_names(block)[1] if own is row else frozenset[str]()
            known = None if known is None or here is None else known | here
        for name in row.names:
            # A preset names what blocks take in any configuration of the model.
            if names and known is not None and name not in known:
                raise ValueError(
                    f"attach: no block has an argument `{name}`; they have "
                    f"{', '.join(sorted(known))}."
                )
    blocks: list[Any] = [block for block, _ in found]
    for i, block in enumerate(blocks):
        if block in attached or any(block is b for b in blocks[:i]):
            raise ValueError(
                f"attach: block {i} ({type(block).__name__}) has routes already or stands twice "
                f"in the stack; detach() first, and use run_blocks where blocks are shared."
            )
