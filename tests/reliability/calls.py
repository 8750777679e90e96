"""Bad calls of public functions: one row each, with what the message has to say.

A row passes where the call raises ValueError or TypeError (NotImplementedError for what torch
offers and we do not) and its message matches. Any other
exception is a bare error from deep inside; no exception is a silently wrong result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tests.reliability.kills import Failure
from tread_ssm import (
    Cells,
    DiMConfig,
    DiTConfig,
    Layout,
    RandomTokens,
    Route,
    RoutePlan,
    RouteSchedule,
    Rows,
    Segments,
    TokenSubset,
    ZigMambaConfig,
    causal_conv,
    from_pretrained,
    run_blocks,
    selective_scan,
    ssd,
)
from tread_ssm.diffusion import EDM, Flow, NoisePrediction, classifier_free, heun, route_loss
from tread_ssm.diffusion.sampler import dpm_solver_pp, euler

NAN, INF = math.nan, math.inf
GRID = (4, 6)


@dataclass(frozen=True)
class Bad:
    """A call that must be refused, and a pattern of the message (case does not matter)."""

    name: str
    call: Callable[[], Any]
    says: str


def _plan(*routes: Route, depth: int = 8) -> RoutePlan:
    return RoutePlan(routes, depth=depth)


def _ids(*rows: list[float], dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(rows, dtype=dtype)


def _stack(
    x_tokens: int = 24, batch: int = 2, plan: RoutePlan | None = None, drawn: int = 2
) -> Any:
    plan = plan or _plan(Route(1, 3))
    blocks = [lambda x, cond, layout: x] * 8
    draw = plan.draw(drawn, GRID)
    return run_blocks(blocks, torch.zeros(batch, x_tokens, 3), None, Layout(GRID), draw)


def routes() -> Iterator[Bad]:
    """Routes, plans, selections, layouts, subsets."""
    for start, stop in ((1.5, 4), (1, 4.5), ("1", 4), (None, 4), (1, None), (NAN, 4), (True, 4)):
        yield Bad(f"Route({start}, {stop})", lambda a=start, b=stop: Route(a, b), "start|stop")
    for drop in (-0.1, 1.0, 1.5, NAN, INF, "half", None):
        yield Bad(f"Route(drop={drop})", lambda d=drop: Route(1, 3, drop=d), "drop")
    for start, stop in ((4, 4), (5, 4), (0, 9), (8, 9), (-9, 4), (3, -6), (-1, -2)):
        yield Bad(
            f"RoutePlan: {start}..{stop} of 8",
            lambda a=start, b=stop: _plan(Route(a, b)),
            "start|stop|depth",
        )
    yield Bad("overlapping routes", lambda: _plan(Route(1, 4), Route(3, 6)), "overlap|follow")
    for depth in (0, -3, 2.5, "8", None):
        yield Bad(f"depth={depth}", lambda d=depth: _plan(Route(0, 1), depth=d), "depth")
    for rejoin in ("stop", "", None, 1):
        yield Bad(f"rejoin={rejoin!r}", lambda r=rejoin: Route(1, 3, rejoin=r), "rejoin")
    for keep in ((1.5,), (1, 1), ("a",)):
        yield Bad(f"keep={keep}", lambda k=keep: Route(1, 3, keep=k), "keep")
    yield Bad(
        "keep beyond the grid", lambda: _plan(Route(1, 3, keep=(99,))).draw(1, GRID), "keep|99"
    )
    for grid in ((-4, 6), (0, 6), (4, 0), (4.0, 6), (), (4, "6")):
        yield Bad(f"draw on {grid}", lambda g=grid: _plan(Route(1, 3)).draw(1, g), "grid")
    for batch in (0, -1, 1.5):
        yield Bad(f"draw for {batch}", lambda b=batch: _plan(Route(1, 3)).draw(b, GRID), "batch")
    for size in (0, -1):
        yield Bad(f"Cells({size})", lambda s=size: Cells(size=s), "cell|size")
        yield Bad(f"Segments({size})", lambda s=size: Segments(length=s), "segment|length")
    yield Bad("cells that do not fit", lambda: Cells(size=5).draw(1, GRID, 0.5, None, None), "cell")
    yield Bad("cells, choose", lambda: Cells(choose="both"), "choose")
    yield Bad("segments, along", lambda: Segments(along="diagonals"), "along")
    everything = torch.ones(1, 24, dtype=torch.bool)
    for select in (RandomTokens(), Rows(), Cells(), Segments(length=4)):
        yield Bad(
            f"{select.kind}: all must stay",
            lambda s=select: s.draw(1, GRID, 0.5, everything, None),
            "stay|kept",
        )
    bad_ids: dict[str, Callable[[], Any]] = {
        "float ids": lambda: TokenSubset.of(_ids([0.0, 1.0], dtype=torch.float32), 4),
        "doubled ids": lambda: TokenSubset.of(_ids([0, 0]), 4),
        "ids too large": lambda: TokenSubset.of(_ids([0, 4]), 4),
        "negative ids": lambda: TokenSubset.of(_ids([-1, 0]), 4),
        "ids of one dimension": lambda: TokenSubset.of(torch.tensor([0, 1]), 4),
        "no ids": lambda: TokenSubset.of(torch.zeros(1, 0, dtype=torch.int64), 4),
        "another grid": lambda: TokenSubset.of(_ids([0, 1]), 4, (3, 1)),
    }
    for name, call in bad_ids.items():
        yield Bad(f"TokenSubset.of: {name}", call, "TokenSubset|ids|index|grid")
    subset = TokenSubset.of(_ids([0, 2]), 4)
    for shape in ((1, 5, 2), (2, 4, 2), (4,), (1,)):
        yield Bad(f"take {shape}", lambda s=shape: subset.take(torch.zeros(s)), "TokenSubset")
    yield Bad("put", lambda: subset.put(torch.zeros(1, 3, 2), torch.zeros(1, 4, 2)), "TokenSubset")
    yield Bad(
        "put into", lambda: subset.put(torch.zeros(1, 2, 2), torch.zeros(1, 5, 2)), "into|put"
    )
    for kwargs in ({"ramp": -1}, {"dense_tail": 1.5}, {"dense_tail": NAN}, {"levels": 0}):
        yield Bad(f"RouteSchedule({kwargs})", lambda k=kwargs: RouteSchedule(**k), "RouteSchedule|")
    yield Bad("stream too short", lambda: _stack(x_tokens=20), "tokens")
    yield Bad("draw of another batch", lambda: _stack(drawn=3), "drawn|samples")
    yield Bad("draw for another depth", lambda: _stack(plan=_plan(Route(9, 11), depth=12)), "fit")
    for skips in (((3, 1),), ((0, 9),), ((0, 2), (0, 3)), ((-1, 2),)):
        yield Bad(
            f"skips {skips}",
            lambda s=skips: run_blocks(
                [lambda x, c, layout, *k: x] * 4, torch.zeros(1, 24, 2), None, Layout(GRID), skips=s
            ),
            "skip|block",
        )


def _scan(**changes: Any) -> Any:
    given = {
        "u": torch.randn(2, 5, 4),
        "delta": torch.randn(2, 5, 4),
        "A": -torch.rand(4, 3),
        "B": torch.randn(2, 5, 3),
        "C": torch.randn(2, 5, 3),
    }
    return selective_scan(**(given | changes))


def _conv(**changes: Any) -> Any:
    return causal_conv(**({"x": torch.randn(2, 5, 4), "weight": torch.randn(4, 3)} | changes))


def _ssd(**changes: Any) -> Any:
    given = {
        "q": torch.randn(2, 5, 1, 3),
        "k": torch.randn(2, 5, 1, 3),
        "v": torch.randn(2, 5, 2, 4),
        "log_decay": -torch.rand(2, 5, 2),
    }
    return ssd(**(given | changes))


def scans() -> Iterator[Bad]:
    """selective_scan, causal_conv, ssd."""
    for name, shapes in {
        "u": ((2, 5), (2, 5, 0), (0, 5, 4)),
        "delta": ((2, 5, 3), (2, 4, 4), (5, 4)),
        "A": ((3, 4), (4,), (4, 65), (4, 0)),
        "B": ((2, 5, 4), (2, 4, 3), (1, 5, 3)),
        "C": ((2, 5, 4), (2, 5), (2, 6, 3)),
        "D": ((3,), (4, 1), ()),
        "z": ((2, 5, 3), (2, 4, 4)),
        "delta_bias": ((3,), (1, 4)),
    }.items():
        for shape in shapes:
            yield Bad(
                f"selective_scan {name} {shape}",
                lambda n=name, s=shape: _scan(**{n: torch.randn(s)}),
                r"selective_scan: \w+",
            )
        yield Bad(
            f"selective_scan {name} of integers",
            lambda n=name: _scan(**{n: torch.ones((2, 5, 4), dtype=torch.int64)}),
            "dtype|shape",
        )
    for what, function in (("selective_scan", _scan), ("causal_conv", _conv), ("ssd", _ssd)):
        for name, value in {
            "float order": torch.zeros(5),
            "order too long": torch.arange(6),
            "empty order": torch.zeros(0, dtype=torch.int64),
            "order of no dimension": torch.tensor(1),
            "order of another batch": torch.zeros(3, 5, dtype=torch.int64),
            "bool order": torch.ones(5, dtype=torch.bool),
            "doubled positions": torch.tensor([0, 1, 1, 2, 3]),
            "a position beyond the end": torch.tensor([0, 1, 5]),
            "a negative position": torch.tensor([0, -1]),
        }.items():
            yield Bad(
                f"{what}: {name}", lambda f=function, v=value: f(order=v), f"{what}|order|position"
            )
        for name, value in {
            "float gap": torch.zeros(5),
            "short gap": torch.zeros(4, dtype=torch.int64),
            "negative gap": -torch.ones(5, dtype=torch.int64),
        }.items():
            yield Bad(f"{what}: {name}", lambda f=function, v=value: f(gap=v), f"{what}|gap")
        yield Bad(f"{what}: backend", lambda f=function: f(backend="fast"), "backend")
        yield Bad(f"{what}: a list", lambda f=function: f(**_first(f, [1.0])), "tensor")
    for shape in ((4, 1), (4, 5), (3, 3), (4,), (4, 0)):
        yield Bad(
            f"causal_conv weight {shape}", lambda s=shape: _conv(weight=torch.randn(s)), "weight"
        )
    yield Bad("causal_conv bias", lambda: _conv(bias=torch.randn(3)), "bias")
    for name, shapes in {
        "q": ((2, 5, 3), (2, 4, 1, 3), (2, 5, 3, 3), (2, 5, 1, 0)),
        "k": ((2, 5, 1, 4), (2, 5, 2, 3)),
        "v": ((2, 5, 4), (2, 6, 2, 4), (1, 5, 2, 4)),
        "log_decay": ((2, 5), (2, 5, 3), (2, 4, 2)),
    }.items():
        for shape in shapes:
            yield Bad(
                f"ssd {name} {shape}", lambda n=name, s=shape: _ssd(**{n: torch.randn(s)}), "ssd"
            )
    for what, function in (("selective_scan", _scan), ("causal_conv", _conv), ("ssd", _ssd)):
        yield Bad(f"{what}: jvp", lambda f=function: _jvp(f), "forward|jvp|reverse|backward")
        yield Bad(f"{what}: vmap", lambda f=function: _vmap(f), "vmap")


def _first(function: Callable[..., Any], value: Any) -> dict[str, Any]:
    return {{_scan: "u", _conv: "x", _ssd: "q"}[function]: value}


def _jvp(function: Callable[..., Any]) -> Any:
    name = next(iter(_first(function, None)))
    x = torch.randn(2, 5, 1, 3) if function is _ssd else torch.randn(2, 5, 4)
    return torch.func.jvp(lambda v: function(**{name: v}), (x,), (torch.ones_like(x),))


def _vmap(function: Callable[..., Any]) -> Any:
    name = next(iter(_first(function, None)))
    x = torch.randn(3, 2, 5, 1, 3) if function is _ssd else torch.randn(3, 2, 5, 4)
    return torch.func.vmap(lambda v: function(**{name: v}), randomness="same")(x)


def _zero(x: torch.Tensor, t: Any, labels: torch.Tensor, routing: Any = ()) -> torch.Tensor:
    return torch.zeros_like(x)


def diffusion() -> Iterator[Bad]:
    """Objectives, samplers, guidance, losses."""
    noise, labels = torch.randn(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)
    for kwargs in (
        *({"sigma_min": -1}, {"sigma_max": NAN}, {"sigma_data": 0}, {"p_std": -1}, {"p_mean": INF}),
        *({"rho": 0}, {"sigma_min": 90.0}),
    ):
        yield Bad(f"EDM({kwargs})", lambda k=kwargs: EDM(**k), "EDM|unexpected keyword")
    for kwargs in ({"time": "cosine"}, {"predict": "noise"}, {"std": 0}, {"mean": NAN}):
        yield Bad(f"Flow({kwargs})", lambda k=kwargs: Flow(**k), "Flow")
    for kwargs in ({"betas": "cubic"}, {"steps": 0}):
        yield Bad(
            f"NoisePrediction({kwargs})",
            lambda k=kwargs: NoisePrediction(**k),
            "NoisePrediction|unexpected keyword",
        )
    for objective in (EDM(), Flow(), NoisePrediction()):
        for steps in (0, -1):
            yield Bad(
                f"{objective.kind}.timesteps({steps})",
                lambda o=objective, s=steps: o.timesteps(s),
                "steps",
            )
        x = torch.zeros(2, 3, 4, 4)
        for name, arguments in {
            "short noise": (x, labels, torch.ones(2), x[:1]),
            "short t": (x, labels, torch.ones(1), x),
            "flat x": (x[0], labels, torch.ones(2), x[0]),
        }.items():
            yield Bad(
                f"{objective.kind}: {name}",
                lambda o=objective, a=arguments: o.loss_terms(_zero, *a),
                "loss_terms",
            )
    flow = Flow()
    for name, timesteps in {
        "rising": torch.tensor([0.0, 1.0]),
        "one": torch.tensor([1.0]),
        "none": torch.zeros(0),
        "equal": torch.tensor([1.0, 1.0]),
        "negative": torch.tensor([1.0, -1.0]),
        "NaN": torch.tensor([1.0, NAN, 0.0]),
        "two rows": torch.zeros(2, 2),
        "above the schedule": torch.tensor([7.0, 0.0]),
    }.items():
        for sampler in (euler, heun, dpm_solver_pp):
            yield Bad(
                f"{sampler.__name__}: {name} timesteps",
                lambda s=sampler, t=timesteps: s(_zero, flow, noise, t, labels),
                "timesteps|sampler",
            )
    walk = flow.timesteps(2)
    for sampler in (euler, heun, dpm_solver_pp):
        for name, start in {
            "half": noise.half(),
            "integers": noise.long(),
            "empty": noise[:0],
        }.items():
            yield Bad(
                f"{sampler.__name__}: {name} noise",
                lambda s=sampler, n=start: s(_zero, flow, n, walk, labels[: len(n)]),
                "noise",
            )
    yield Bad(
        "heun under noise prediction",
        lambda: heun(_zero, NoisePrediction(), noise, NoisePrediction().timesteps(2), labels),
        "heun",
    )
    yield Bad(
        "dpm_solver_pp, order 4",
        lambda: dpm_solver_pp(_zero, flow, noise, walk, labels, order=4),
        "order",
    )
    for scale in (NAN, INF):
        yield Bad(f"guidance {scale}", lambda s=scale: classifier_free(_zero, s, 9), "scale|finite")
    for interval in ((0.5, 0.2), (-1, 1), (NAN, 1)):
        yield Bad(
            f"interval {interval}",
            lambda i=interval: classifier_free(_zero, 2.0, 9, i),
            "interval",
        )
    terms = flow.loss_terms(lambda x, t, y, *, routing=(): x, noise, labels, torch.ones(2), noise)
    for loss in ("per_route", None, 1):
        yield Bad(f"route_loss, loss={loss!r}", lambda k=loss: route_loss(terms, (), 2, k), "loss")


SHAPE = {"image_size": 8, "channels": 3, "n_classes": 9, "dim": 16}


def models() -> Iterator[Bad]:
    """Configurations of backbones, their networks' inputs, weights."""
    kinds: dict[str, Callable[..., Any]] = {
        "DiMConfig": lambda **k: DiMConfig(**(SHAPE | {"depth": 3} | k)),
        "ZigMambaConfig": lambda **k: ZigMambaConfig(**(SHAPE | {"depth": 3} | k)),
        "DiTConfig": lambda **k: DiTConfig(**(SHAPE | {"depth": 3, "heads": 2} | k)),
    }
    for kind, make in kinds.items():
        for name, values in {
            "image_size": (0, -8, 9, 8.5),
            "channels": (0, -1),
            "n_classes": (-1,),
            "dim": (0, -16, 15),
            "depth": (0, -1, 2.5),
            "patch": (0, 3, -2),
        }.items():
            for value in values:
                yield Bad(
                    f"{kind}({name}={value})",
                    lambda m=make, n=name, v=value: m(**{n: v}).build(),
                    name.split("_")[0],
                )
    for depth in (2, 4, 1):
        yield Bad(f"DiM of {depth} blocks", lambda d=depth: kinds["DiMConfig"](depth=d), "depth")
    for pads in (2, -1, 4):
        yield Bad(f"DiM, pads={pads}", lambda p=pads: kinds["DiMConfig"](pads=p), "pads")
    for name, values in {"heads": (0, 3, -2), "mlp_ratio": (NAN, 0, -1, INF)}.items():
        for value in values:
            yield Bad(
                f"DiT({name}={value})",
                lambda n=name, v=value: kinds["DiTConfig"](**{n: v}).build(),
                name,
            )
    x, t, labels = torch.zeros(2, 3, 8, 8), torch.ones(2), torch.zeros(2, dtype=torch.int64)
    for kind, make in kinds.items():
        network = make().build()
        for name, arguments in {
            "x of another size": (x[..., :6], t, labels),
            "x without channels": (x[:, 0], t, labels),
            "short t": (x, t[:1], labels),
            "t of integers": (x, labels, labels),
            "float labels": (x, t, t),
            "labels of another batch": (x, t, labels[:1]),
            "integers for x": (x.long(), t, labels),
            "draw of another grid": (x, t, labels, _plan(Route(0, 1), depth=3).draw(2, GRID)),
        }.items():
            yield Bad(
                f"{kind}: {name}",
                lambda n=network, a=arguments: n(*a[:3], routing=a[3] if len(a) > 3 else ()),
                r"\w+.* (shape|torch\.|classes|drawn|expected|labels)",
            )
    for name in ("no/such/folder", "nothing here", "", "a/b/c"):
        yield Bad(f"from_pretrained({name!r})", lambda n=name: from_pretrained(n), "folder|holds")


def bad_calls() -> Iterator[Bad]:
    """All rows."""
    for rows in (routes, scans, diffusion, models):
        yield from rows()


def call(row: Bad) -> Failure | None:
    """What is wrong with how a row is answered; None where it is refused as it should be."""
    try:
        row.call()
    except (ValueError, TypeError, NotImplementedError) as error:
        text = str(error)
        if not re.search(row.says, text, re.IGNORECASE):
            return Failure("call", row.name, f"says {text!r}, not {row.says!r}")
        if len(text.split()) < 4:
            return Failure("call", row.name, f"no sentence: {text!r}")
        return None
    except Exception as error:
        return Failure("call", row.name, f"bare {type(error).__name__}: {error}"[:160])
    return Failure("call", row.name, "silent: nothing was refused")
