"""The arguments of each operation, once: their names, shapes and dtypes, and the checks of these.

A backend takes one of these tuples. ops.py makes the operators' schemas from them.

An annotation says what a tensor holds, and its axes, one letter each:

    data    floating; all of one dtype
    wide    float32, or float64 where the data is float64: the dtype of states and sums
    visits  int64, (K,) for all samples or (B, K)

Flags (bools) stand last.

Shape legend: B batch, L positions, K visits (K <= L), D channels, N states, W taps, G groups,
H heads, P channels of a head, C channels of a group.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]
"""One gradient for each data and wide argument, in their order; None where the argument is None."""

MAX_STATES = 64


class ScanInputs(NamedTuple):
    """What `selective_scan` computes from; its docstring says what each argument means."""

    u: Annotated[Tensor, "data", "BLD"]
    delta: Annotated[Tensor, "data", "BLD"]
    A: Annotated[Tensor, "wide", "DN"]
    B: Annotated[Tensor, "data", "BLN"]
    C: Annotated[Tensor, "data", "BLN"]
    D: Annotated[Tensor | None, "wide", "D"]
    z: Annotated[Tensor | None, "data", "BLD"]
    delta_bias: Annotated[Tensor | None, "wide", "D"]
    order: Annotated[Tensor | None, "visits", "BK"]
    gap: Annotated[Tensor | None, "visits", "BK"]
    delta_softplus: bool

    def check(self) -> None:
        """Check shapes, dtypes and devices, and that N is 1 to MAX_STATES.

        Raises:
            ValueError, TypeError: As in check_tensors.
        """
        if self.A.ndim == 2 and not 1 <= self.A.shape[1] <= MAX_STATES:
            raise ValueError(
                f"selective_scan: A has N = {self.A.shape[1]} states; 1 to {MAX_STATES} are "
                "supported."
            )
        check_tensors("selective_scan", self)


class ConvInputs(NamedTuple):
    """What `causal_conv` computes from; its docstring says what each argument means."""

    x: Annotated[Tensor, "data", "BLD"]
    weight: Annotated[Tensor, "wide", "DW"]
    bias: Annotated[Tensor | None, "wide", "D"]
    order: Annotated[Tensor | None, "visits", "BK"]
    gap: Annotated[Tensor | None, "visits", "BK"]
    activation: bool

    def check(self) -> None:
        """Check shapes, dtypes and devices, and that W is 2, 3 or 4.

        Raises:
            ValueError, TypeError: As in check_tensors.
        """
        if self.weight.ndim == 2 and not 2 <= self.weight.shape[1] <= 4:
            raise ValueError(
                f"causal_conv: weight has {self.weight.shape[1]} taps; W must be 2, 3 or 4."
            )
        check_tensors("causal_conv", self)


class SSDInputs(NamedTuple):
    """What `ssd` computes from; its docstring says what each argument means."""

    q: Annotated[Tensor, "data", "BLGN"]
    k: Annotated[Tensor, "data", "BLGN"]
    v: Annotated[Tensor, "data", "BLHP"]
    log_decay: Annotated[Tensor, "wide", "BLH"]
    order: Annotated[Tensor | None, "visits", "BK"]
    gap: Annotated[Tensor | None, "visits", "BK"]
    scale: Annotated[Tensor | None, "wide", "BLH"]
    diagonal: Annotated[Tensor | None, "wide", "BLH"]

    def check(self) -> None:
        """Check shapes, dtypes and devices, and that G divides H.

        Raises:
            ValueError, TypeError: As in check_tensors.
        """
        check_tensors("ssd", self)
        check_groups("ssd", self.q, self.v)

    def refuse_terms(self, backend: str) -> None:
        """For a backend without scale and diagonal, which `ssd` then adds around it.

        Raises:
            ValueError: They are given.
        """
        if not (self.scale is None and self.diagonal is None):
            raise ValueError(
                f"ssd: the backend {backend} takes no scale and no diagonal; call tread_ssm.ssd."
            )


class BothInputs(NamedTuple):
    """What `ssd_both_ways` computes from: `v`, and a direction twice. Of the way back, what is None
    is as on the way there, but for `back_order` and `back_gap`."""

    q: Annotated[Tensor, "data", "BLGN"]
    k: Annotated[Tensor, "data", "BLGN"]
    v: Annotated[Tensor, "data", "BLHP"]
    log_decay: Annotated[Tensor, "wide", "BLH"]
    order: Annotated[Tensor | None, "visits", "BK"]
    gap: Annotated[Tensor | None, "visits", "BK"]
    scale: Annotated[Tensor | None, "wide", "BLH"]
    back_q: Annotated[Tensor | None, "data", "BLGN"]
    back_k: Annotated[Tensor | None, "data", "BLGN"]
    back_log_decay: Annotated[Tensor | None, "wide", "BLH"]
    back_order: Annotated[Tensor | None, "visits", "BK"]
    back_gap: Annotated[Tensor | None, "visits", "BK"]
    back_scale: Annotated[Tensor | None, "wide", "BLH"]

    def check(self) -> None:
        """Check shapes, dtypes and devices, that G divides H, and what must be given together.

        Raises:
            ValueError, TypeError: As in check_tensors.
        """
        check_tensors("ssd_both_ways", self)
        check_groups("ssd_both_ways", self.q, self.v)
        if (self.back_q is None) != (self.back_k is None):
            raise ValueError("ssd_both_ways: give both q and k of the way back, or neither.")
        if self.scale is None and self.back_scale is not None:
            raise ValueError("ssd_both_ways: a scale of the way back needs one of the way there.")


class GateInputs(NamedTuple):
    """What `gated_norm` computes from; its docstring says what each argument means."""

    y: Annotated[Tensor, "data", "BLGC"]
    z: Annotated[Tensor, "data", "BLGC"]
    weight: Annotated[Tensor | None, "wide", "GC"]

    def check(self) -> None:
        """Raises ValueError or TypeError, see check_tensors."""
        check_tensors("gated_norm", self)


# What the annotations are for ------------------------------------------------------------------


class Argument(NamedTuple):
    """One field of a named tuple of inputs, read from its annotation.

    Attributes:
        name: The field's name.
        kind: "data", "wide", "visits" or "flag" (a bool).
        axes: One letter an axis; "" for flags.
        optional: Whether it may be None.
    """

    name: str
    kind: str
    axes: str
    optional: bool


def arguments_of(inputs: type) -> tuple[Argument, ...]:
    """The fields of a named tuple of inputs."""
    found = []
    for name, hint in get_type_hints(inputs, include_extras=True).items():
        kind, axes = ("flag", "") if hint is bool else hint.__metadata__
        optional = hint is not bool and hint.__origin__ is not Tensor
        found.append(Argument(name, kind, axes, optional))
    return tuple(found)


ARGUMENTS: dict[type, tuple[Argument, ...]] = {
    inputs: arguments_of(inputs)
    for inputs in (ScanInputs, ConvInputs, SSDInputs, BothInputs, GateInputs)
}


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the state and of all sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def converted(where: str, inputs: Any) -> Any:
    """The inputs in the dtypes that the operators take; data in the widest dtype among them.

    Raises:
        TypeError: Integers where floats belong, or the other way round.
        NotImplementedError: Inside a transform of torch.func, which would lose tangents or samples.
    """
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            f"{where}: torch.func (vmap, jvp, grad, ...) is not supported; make one batch of the "
            "samples, and use backward() or torch.autograd.grad for gradients."
        )
    arguments = ARGUMENTS[type(inputs)]
    for (name, kind, _, optional), x in zip(arguments, inputs, strict=True):
        if kind != "flag" and not isinstance(x, Tensor) and not (optional and x is None):
            raise TypeError(f"{where}: {name} is {type(x).__name__}; a tensor is needed.")
    data = inputs[0].dtype
    for (name, kind, _, _), x in zip(arguments, inputs, strict=True):
        if x is None or kind == "flag":
            continue
        dtype = x.dtype
        if kind == "visits":
            if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
                raise TypeError(f"{where}: {name} is {dtype}; an integer dtype is needed.")
        elif not dtype.is_floating_point:
            raise TypeError(f"{where}: {name} is {dtype}; a real floating dtype is needed.")
        elif kind == "data" and dtype != data:
            data = torch.promote_types(data, dtype)
    to = {"data": data, "wide": wide_dtype(data), "visits": torch.int64}
    return type(inputs)(
        *[
            x if x is None or kind == "flag" or x.dtype == to[kind] else x.to(to[kind])
            for (_, kind, _, _), x in zip(arguments, inputs, strict=True)
        ]
    )


def check_tensors(where: str, inputs: Any) -> None:
    """Raises unless shapes, dtypes and devices are as the annotations say; looks at no value.

    An axis has the size of the first argument that has it. No axis may be empty.

    Raises:
        ValueError: A shape or a device that does not fit.
        TypeError: A dtype that does not fit.
    """
    first, device = inputs[0], inputs[0].device
    if not first.dtype.is_floating_point:
        raise TypeError(f"{where}: {inputs._fields[0]} is {first.dtype}; it must be floating.")
    dtypes = {"data": first.dtype, "wide": wide_dtype(first.dtype), "visits": torch.int64}
    sizes: dict[str, int] = {}
    for argument, x in zip(ARGUMENTS[type(inputs)], inputs, strict=True):
        name, kind, axes, _ = argument
        if x is None or kind == "flag":
            continue
        shape = x.shape
        if kind == "visits":
            _check_visits(where, name, shape, inputs.order, sizes)
        elif shape != tuple([sizes.get(axis, -1) for axis in axes]) and (
            len(shape) != len(axes)
            or 0 in shape
            or any(sizes.setdefault(a, n) != n for a, n in zip(axes, shape, strict=True))
        ):
            raise ValueError(
                f"{where}: {name} has shape {tuple(shape)}; "
                f"expected {_expected(argument, inputs, sizes)}."
            )
        if x.dtype != dtypes[kind]:
            raise TypeError(
                f"{where}: {name} is {x.dtype}; with {inputs._fields[0]} in {first.dtype} it must "
                f"be {dtypes[kind]}."
            )
        if x.device != device:
            raise ValueError(
                f"{where}: {name} is on {x.device}, but the input on {device}; move one."
            )


def check_groups(where: str, q: Tensor, v: Tensor) -> None:
    """Raises ValueError unless the heads of v (B, L, H, P) share the groups of q (B, L, G, N)."""
    groups, heads = q.shape[2], v.shape[2]
    if heads % groups:
        raise ValueError(
            f"{where}: v has H = {heads} heads, q and k have G = {groups} groups; H must be a "
            "multiple of G."
        )


def _check_visits(
    where: str, name: str, shape: torch.Size, order: Tensor | None, sizes: dict[str, int]
) -> None:
    batch, length = sizes["B"], sizes["L"]
    visits = length if order is None else order.shape[-1] if order.ndim else 0
    if shape != (visits,) and shape != (batch, visits):
        raise ValueError(
            f"{where}: {name} has shape {tuple(shape)}; expected (K,) or (B, K) with B = {batch}, "
            f"K = {visits}."
        )
    if not 1 <= visits <= length:
        raise ValueError(f"{where}: order has K = {visits} visits; 1 to L = {length} are possible.")


def _expected(argument: Argument, inputs: Any, sizes: dict[str, int]) -> str:
    """The shape that an argument should have had, with the sizes that are known before it."""
    known: dict[str, int] = {}
    like = ""
    for other in ARGUMENTS[type(inputs)]:
        if other is argument:
            break
        known |= {axis: sizes[axis] for axis in other.axes if axis in sizes}
        if other.axes == argument.axes and not like:
            like = f" like {other.name}"
    names = ", ".join(argument.axes) + ("," if len(argument.axes) == 1 else "")
    have = [axis for axis in argument.axes if axis in known]
    if len(have) == len(argument.axes) > 1:
        return f"({names}) = {tuple(known[axis] for axis in have)}{like}"
    given = ", ".join(f"{axis} = {known[axis]}" for axis in have)
    return f"({names})" + (f" with {given}" if given else "")
