"""torch.library operators around the backends: shapes, autograd and FLOPs, written once for all.

An operation becomes two operators. torch.compile, activation checkpointing, meta tensors and
FlopCounterMode meet these and never look inside:

    forward(<the inputs>, str backend) -> (y, states)
    backward(grad_y, <the inputs>, states, str backend) -> one gradient for each floating input

Both check shapes, dtypes and devices themselves. `states` is what a backend keeps from forward to
backward, in the wide dtype; it may be empty.

A backend is a module of plain functions. selective/reference.py is the specification of the first
two operations, decayed/reference.py of the third, gated/reference.py of the last:

    scan_forward(x: ScanInputs) -> (y, states)
    scan_backward(grad_y, x: ScanInputs, states) -> Gradients
    scan_states_shape(x: ScanInputs) -> shape of states
    conv_forward(x: ConvInputs) -> y
    conv_backward(grad_y, x: ConvInputs) -> Gradients
    ssd_forward, ssd_backward, ssd_states_shape: like those of the scan, of SSDInputs
    both_forward, both_backward: like those of the convolution, of BothInputs; decayed/masked.py
    alone has them, and other backends run `ssd` twice
    gate_forward, gate_backward: like those of the convolution, of GateInputs
    unavailable(device, dtype) -> reason why it cannot run, or None
    FAST_ON: the types of device on which it is fast; elsewhere its use is warned of
    FUSES_TERMS: (ssd) whether it takes scale and diagonal; otherwise `ssd` adds them around it

What the functions may rely on: the inputs passed their check (inputs.py), but nothing need be
contiguous. Outputs are contiguous and never alias inputs. Modules are imported on first use.

FLOPs, the one convention of this package: every multiplication, addition and exponential of a
state-step (one visit of one channel by one state) counts as one. Forward, 7: the exponent dt A,
its exponential, the carried state a h, the input (dt u) B, their sum, and the product with C and
its sum. Backward, 21: the first five again, and 16 for the eight gradients. A convolution costs
2 W per visited element forward and 4 W backward. `ssd` is counted by its recurrence, whatever a
backend computes instead. Forward, 5: k v, a h and their sum, the product with q and its sum.
Backward, 14: the first three again, 3 for the gradient of the state and 2 for each of those of q,
k, v and the decay. What happens once per element and not per state (softplus, gate, D u) is left
out, as FlopCounterMode leaves out all pointwise work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from tread_ssm.scan.inputs import (
    ARGUMENTS,
    BothInputs,
    ConvInputs,
    GateInputs,
    Gradients,
    ScanInputs,
    SSDInputs,
    wide_dtype,
)

SELECTIVE_BACKENDS = {
    "triton": "tread_ssm.scan.selective.triton",
    "mamba_ssm": "tread_ssm.scan.selective.mamba_ssm",
    "cuda": "tread_ssm.scan.selective.cuda",
    "cpu": "tread_ssm.scan.selective.cpu",
    "chunked": "tread_ssm.scan.selective.chunked",
    "reference": "tread_ssm.scan.selective.reference",
}
SSD_BACKENDS = {
    "triton": "tread_ssm.scan.decayed.triton",
    "mamba_ssm": "tread_ssm.scan.decayed.mamba_ssm",
    "cpu": "tread_ssm.scan.decayed.cpu",
    "matmul": "tread_ssm.scan.decayed.matmul",
    "reference": "tread_ssm.scan.decayed.reference",
}
BOTH_BACKENDS = {"matmul": "tread_ssm.scan.decayed.masked"}
GATE_BACKENDS = {
    "cpu": "tread_ssm.scan.gated.cpu",
    "reference": "tread_ssm.scan.gated.reference",
}
"""The module of each backend, from the one to be preferred to the one of last resort."""

FLOPS_PER_STATE_STEP = {"forward": 7, "backward": 21}
FLOPS_PER_SSD_STEP = {"forward": 5, "backward": 14}
FLOPS_PER_TAP = {"forward": 2, "backward": 4}


@dataclass(frozen=True)
class Operation:
    """What the operators of one operation need to know of it.

    Attributes:
        name: The public function, for messages.
        prefix: Of the operators' names, and of the names of a backend's functions.
        inputs: The named tuple of its arguments.
        backends: The module of each backend, the preferred one first.
        flops: ("forward" or "backward", inputs as shapes) -> number.
        like: The argument whose shape and dtype y has.
        keeps_states: Whether backends keep anything from forward to backward.
    """

    name: str
    prefix: str
    inputs: type
    backends: Mapping[str, str]
    flops: Callable[[str, Any], int]
    like: int = 0
    keeps_states: bool = True

    def forward(self, backend: Any, x: Any) -> tuple[Tensor, Tensor]:
        """y and the states, by a backend's module."""
        run = getattr(backend, f"{self.prefix}_forward")
        return run(x) if self.keeps_states else (run(x), _states(x[self.like], (0,)))

    def backward(self, backend: Any, grad_y: Tensor, x: Any, states: Tensor) -> Gradients:
        """The gradients, by a backend's module."""
        kept = (states,) if self.keeps_states else ()
        gradients: Gradients = getattr(backend, f"{self.prefix}_backward")(grad_y, x, *kept)
        return gradients

    def states_shape(self, backend: Any, x: Any) -> tuple[int, ...]:
        """The shape of the states of a backend's module."""
        if not self.keeps_states:
            return (0,)
        shape: tuple[int, ...] = getattr(backend, f"{self.prefix}_states_shape")(x)
        return shape

    def backend(self, name: str) -> Any:
        """The module of a backend, imported when first asked for.

        Raises:
            ValueError: There is no such backend.
        """
        if name not in self.backends:
            raise ValueError(f"{self.name}: no backend {name!r}; there are {list(self.backends)}.")
        return _module(self.backends[name])


_module = cache(import_module)


def define(operation: Operation) -> None:
    """Make the two operators of an operation known to torch."""
    schema = _schema(operation)
    n, floating = len(ARGUMENTS[operation.inputs]), _floating(operation)

    @torch.library.custom_op(
        f"tread_ssm::{operation.prefix}_forward",
        mutates_args=(),
        schema=f"({schema}, str backend) -> (Tensor, Tensor)",
    )
    def forward(*args: Any) -> Any:
        x = operation.inputs(*args[:n])
        x.check()
        _refuse_forward_mode(operation.name, args)
        return operation.forward(operation.backend(args[n]), x)

    @torch.library.custom_op(
        f"tread_ssm::{operation.prefix}_backward",
        mutates_args=(),
        schema=f"(Tensor grad_y, {schema}, Tensor states, str backend) -> "
        f"({', '.join('Tensor' for _ in floating)})",
    )
    def backward(grad_y: Tensor, *args: Any) -> Any:
        x, states, backend = operation.inputs(*args[:n]), args[n], operation.backend(args[n + 1])
        _check_backward(operation, backend, grad_y, x, states)
        return tuple(map(_given, operation.backward(backend, grad_y, x, states)))

    @forward.register_fake
    def _(*args: Any) -> Any:
        x = operation.inputs(*args[:n])
        x.check()
        y = x[operation.like]
        shape = operation.states_shape(operation.backend(args[n]), x)
        return _fake_like(y), _states(y, shape)

    @backward.register_fake
    def _(grad_y: Tensor, *args: Any) -> Any:
        x, states, backend = operation.inputs(*args[:n]), args[n], operation.backend(args[n + 1])
        _check_backward(operation, backend, grad_y, x, states)
        return tuple(_fake_like(x[i]) for i in floating)

    @forward.register_vmap
    def _(*args: Any) -> Any:
        raise NotImplementedError(
            f"{operation.name}: vmap is not supported; make one batch of the samples instead."
        )

    _differentiate(operation, forward, backward)
    _count_flops(operation)


def _schema(operation: Operation) -> str:
    """The arguments of the operator, in torch's notation."""
    return ", ".join(
        f"{'bool' if a.kind == 'flag' else 'Tensor?' if a.optional else 'Tensor'} {a.name}"
        for a in ARGUMENTS[operation.inputs]
    )


def _floating(operation: Operation) -> list[int]:
    """The places of the arguments that have gradients."""
    arguments = ARGUMENTS[operation.inputs]
    return [i for i, a in enumerate(arguments) if a.kind in ("data", "wide")]


def _differentiate(operation: Operation, forward: Any, backward: Any) -> None:
    """Make the operator `backward` the derivative of `forward`."""
    arguments = ARGUMENTS[operation.inputs]
    tensors = sum(a.kind != "flag" for a in arguments)  # flags stand last

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.others = inputs[tensors:]  # the flags and the backend's name
        ctx.save_for_backward(*inputs[:tensors], output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, grad_y: Tensor | None, _: Any) -> Any:
        grads: list[Tensor | None] = [None] * (len(arguments) + 1)
        if grad_y is None:
            return tuple(grads)
        *saved, states = ctx.saved_tensors
        *flags, name = ctx.others
        given = backward(grad_y, *saved, *flags, states, name)
        for i, g in zip(_floating(operation), given, strict=True):
            grads[i] = None if saved[i] is None else g
        return tuple(grads)

    forward.register_autograd(differentiate, setup_context=setup_context)


def _count_flops(operation: Operation) -> None:
    """Give both operators to FlopCounterMode."""
    n = len(ARGUMENTS[operation.inputs])

    @register_flop_formula(getattr(torch.ops.tread_ssm, f"{operation.prefix}_forward"))
    def _(*args: Any, **kwargs: Any) -> int:
        return operation.flops("forward", operation.inputs(*args[:n]))

    @register_flop_formula(getattr(torch.ops.tread_ssm, f"{operation.prefix}_backward"))
    def _(grad_y: Any, *args: Any, **kwargs: Any) -> int:
        return operation.flops("backward", operation.inputs(*args[:n]))


def _states(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory for states, in the wide dtype of y."""
    return y.new_empty(shape, dtype=wide_dtype(y.dtype))


def _given(x: Tensor | None) -> Tensor:
    """A stand-in for None: operators cannot return optional tensors."""
    return torch.empty(0) if x is None else x


def _fake_like(x: Tensor | None) -> Tensor:
    return _given(None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format))


def _check_backward(
    operation: Operation, backend: Any, grad_y: Tensor, x: Any, states: Tensor
) -> None:
    x.check()
    y, shape = x[operation.like], operation.states_shape(backend, x)
    _check_like(f"{operation.name}: grad_y", grad_y, y, y.shape, y.dtype)
    _check_like(f"{operation.name}: states", states, y, shape, wide_dtype(y.dtype))


def _check_like(
    what: str, x: Tensor, y: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if x.shape != shape or x.dtype != dtype or x.device != y.device:
        raise ValueError(
            f"{what} is {tuple(x.shape)}, {x.dtype} on {x.device}; "
            f"expected {tuple(shape)}, {dtype} on {y.device}."
        )


def _refuse_forward_mode(name: str, args: tuple[Any, ...]) -> None:
    """Raises NotImplementedError where an input has a tangent, which would be lost."""
    if forward_ad._current_level < 0:
        return
    for x in args:
        if isinstance(x, Tensor) and forward_ad.unpack_dual(x, level=0).tangent is not None:
            raise NotImplementedError(
                f"{name}: forward-mode differentiation (jvp) is not supported; use backward()."
            )


# The operations ---------------------------------------------------------------------------------


def _scan_flops(which: str, x: ScanInputs) -> int:
    (batch, length, _), (dim, state) = x.u, x.A
    visits = length if x.order is None else x.order[-1]
    return FLOPS_PER_STATE_STEP[which] * batch * visits * dim * state


def _conv_flops(which: str, x: ConvInputs) -> int:
    (batch, length, _), (dim, width) = x.x, x.weight
    visits = length if x.order is None else x.order[-1]
    return FLOPS_PER_TAP[which] * batch * visits * dim * width


def _ssd_flops(which: str, x: SSDInputs | BothInputs) -> int:
    (batch, length, heads, channels), state = x.v, x.q[3]
    visits = length if x.order is None else x.order[-1]
    return FLOPS_PER_SSD_STEP[which] * batch * visits * heads * channels * state


SCAN = Operation("selective_scan", "scan", ScanInputs, SELECTIVE_BACKENDS, _scan_flops)
CONV = Operation(
    "causal_conv", "conv", ConvInputs, SELECTIVE_BACKENDS, _conv_flops, keeps_states=False
)
SSD = Operation(
    "ssd", "ssd", SSDInputs, SSD_BACKENDS, _ssd_flops, like=SSDInputs._fields.index("v")
)
BOTH = Operation(
    "ssd_both_ways",
    "both",
    BothInputs,
    BOTH_BACKENDS,
    lambda which, x: 2 * _ssd_flops(which, x),
    like=BothInputs._fields.index("v"),
    keeps_states=False,
)
GATE = Operation(
    "gated_norm", "gate", GateInputs, GATE_BACKENDS, lambda which, x: 0, keeps_states=False
)

OPERATIONS = (SCAN, CONV, SSD, GATE)
"""Those that choose a backend; BOTH runs where SSD chooses `matmul`."""
for _operation in (*OPERATIONS, BOTH):
    define(_operation)
