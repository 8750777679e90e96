"""torch.library operators around the backends: shapes, autograd and FLOPs, the same for each.

Every backend becomes four operators, `tread_ssm::scan_forward_<backend>`, `scan_backward_...`,
`conv_forward_...` and `conv_backward_...`. torch.compile, activation checkpointing, meta tensors
and FlopCounterMode meet these and never look inside.

A backend is a module of plain functions (see reference.py, the specification):

    scan_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order, gap) -> (y, states)
    scan_backward(grad_y, <the same eleven>, states) -> (gu, gdelta, gA, gB, gC, gD, gz, gbias)
    conv_forward(x, weight, bias, order, gap, activation) -> y
    conv_backward(grad_y, x, weight, bias, order, gap, activation) -> (gx, gweight, gbias)
    unavailable(device, dtype) -> reason why it cannot run, or None
    states_shape(batch, visits, dim, state) -> shape of `states`, which is float32 (float64 for
                                               float64 inputs) and kept from forward to backward

What the functions may rely on (dispatch.py sees to it): u, delta, B, C, z share one dtype; A, D
and delta_bias, weight and bias are float32 (float64 with float64); order is int64, (K,) or (B, K);
gap is an integer tensor of that shape; nothing need be contiguous. Outputs are contiguous and never
alias inputs; a gradient is None just where its argument is. The modules are imported on first use.

FLOPs, the one convention of this package: every multiplication, addition and exponential of a
state-step (one visit of one channel by one state) counts as one. Forward, 7: the exponent dt A,
its exponential, the carried state a h, the input (dt u) B, their sum, and the product with C and
its sum. Backward, 21: the first five again, and 16 for the eight gradients. A convolution costs
2 W per visited element forward and 4 W backward. What happens once per element and not per state
(softplus, gate, D u) is left out, as FlopCounterMode leaves out all pointwise work.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

BACKENDS = ("triton", "mamba_ssm", "cuda", "cpu", "chunked", "reference")
"""From the one to be preferred to the one of last resort."""

FLOPS_PER_STATE_STEP = {"forward": 7, "backward": 21}
FLOPS_PER_TAP = {"forward": 2, "backward": 4}

_SCAN = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, bool delta_softplus, Tensor? order, Tensor? gap"
)
_CONV = "Tensor x, Tensor weight, Tensor? bias, Tensor? order, Tensor? gap, bool activation"


def backend_module(name: str) -> Any:
    """The module of a backend, imported when first asked for."""
    return import_module(f"tread_ssm.scan.selective.{name}")


def scan_op(backend: str) -> Any:
    """The forward operator of a backend: the eleven arguments -> (y, states)."""
    return getattr(torch.ops.tread_ssm, f"scan_forward_{backend}").default


def conv_op(backend: str) -> Any:
    """The forward operator of a backend: the six arguments -> y."""
    return getattr(torch.ops.tread_ssm, f"conv_forward_{backend}").default


def _n_visits(x_shape: Sequence[int], order_shape: Sequence[int] | None) -> int:
    return x_shape[1] if order_shape is None else order_shape[-1]


def _given(x: Tensor | None) -> Tensor:
    """A stand-in for None: operators cannot return optional tensors."""
    return torch.empty(0) if x is None else x


def _define_scan(backend: str) -> None:
    forward_name = f"tread_ssm::scan_forward_{backend}"
    backward_name = f"tread_ssm::scan_backward_{backend}"

    @torch.library.custom_op(forward_name, mutates_args=(), schema=f"({_SCAN}) -> (Tensor, Tensor)")
    def forward(*args: Any) -> Any:
        return backend_module(backend).scan_forward(*args)

    @torch.library.custom_op(
        backward_name,
        mutates_args=(),
        schema=f"(Tensor grad_y, {_SCAN}, Tensor states) -> ({', '.join(['Tensor'] * 8)})",
    )
    def backward(*args: Any) -> Any:
        return tuple(_given(g) for g in backend_module(backend).scan_backward(*args))

    @forward.register_fake
    def _(*args: Any) -> Any:
        u, A, order = args[0], args[2], args[9]
        visits = _n_visits(u.shape, None if order is None else order.shape)
        shape = backend_module(backend).states_shape(u.shape[0], visits, *A.shape)
        wide = torch.float64 if u.dtype == torch.float64 else torch.float32
        return torch.empty_like(u, memory_format=torch.contiguous_format), u.new_empty(
            shape, dtype=wide
        )

    @backward.register_fake
    def _(grad_y: Tensor, *args: Any) -> Any:
        u, delta, A, B, C, D, z, delta_bias = args[:8]
        return tuple(_fake_gradient(x) for x in (u, delta, A, B, C, D, z, delta_bias))

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.delta_softplus = inputs[8]
        ctx.save_for_backward(*inputs[:8], *inputs[9:], output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, grad_y: Tensor | None, _: Any) -> Any:
        if grad_y is None:
            return (None,) * 11
        *tensors, order, gap, states = ctx.saved_tensors
        grads = backward(grad_y, *tensors, ctx.delta_softplus, order, gap, states)
        kept = (None if x is None else g for g, x in zip(grads, tensors, strict=True))
        return (*kept, None, None, None)

    forward.register_autograd(differentiate, setup_context=setup_context)

    def flops(which: str, u: Sequence[int], A: Sequence[int], order: Sequence[int] | None) -> int:
        return FLOPS_PER_STATE_STEP[which] * u[0] * _n_visits(u, order) * A[0] * A[1]

    @register_flop_formula(getattr(torch.ops.tread_ssm, f"scan_forward_{backend}"))
    def _(*args: Any, **kwargs: Any) -> int:
        return flops("forward", args[0], args[2], args[9])

    @register_flop_formula(getattr(torch.ops.tread_ssm, f"scan_backward_{backend}"))
    def _(*args: Any, **kwargs: Any) -> int:
        return flops("backward", args[1], args[3], args[10])


def _define_conv(backend: str) -> None:
    forward_name = f"tread_ssm::conv_forward_{backend}"
    backward_name = f"tread_ssm::conv_backward_{backend}"

    @torch.library.custom_op(forward_name, mutates_args=(), schema=f"({_CONV}) -> Tensor")
    def forward(*args: Any) -> Any:
        return backend_module(backend).conv_forward(*args)

    @torch.library.custom_op(
        backward_name,
        mutates_args=(),
        schema=f"(Tensor grad_y, {_CONV}) -> (Tensor, Tensor, Tensor)",
    )
    def backward(*args: Any) -> Any:
        return tuple(_given(g) for g in backend_module(backend).conv_backward(*args))

    @forward.register_fake
    def _(x: Tensor, *args: Any) -> Any:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @backward.register_fake
    def _(grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Any:
        return tuple(_fake_gradient(t) for t in (x, weight, bias))

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.activation = inputs[5]
        ctx.save_for_backward(*inputs[:5])

    def differentiate(ctx: Any, grad_y: Tensor) -> Any:
        x, weight, bias, order, gap = ctx.saved_tensors
        gx, gw, gb = backward(grad_y, x, weight, bias, order, gap, ctx.activation)
        return gx, gw, None if bias is None else gb, None, None, None

    forward.register_autograd(differentiate, setup_context=setup_context)

    def flops(
        which: str, x: Sequence[int], weight: Sequence[int], order: Sequence[int] | None
    ) -> int:
        return FLOPS_PER_TAP[which] * x[0] * _n_visits(x, order) * weight[0] * weight[1]

    @register_flop_formula(getattr(torch.ops.tread_ssm, f"conv_forward_{backend}"))
    def _(*args: Any, **kwargs: Any) -> int:
        return flops("forward", args[0], args[1], args[3])

    @register_flop_formula(getattr(torch.ops.tread_ssm, f"conv_backward_{backend}"))
    def _(*args: Any, **kwargs: Any) -> int:
        return flops("backward", args[1], args[2], args[4])


def _fake_gradient(x: Tensor | None) -> Tensor:
    if x is None:
        return torch.empty(0)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


for _backend in BACKENDS:
    _define_scan(_backend)
    _define_conv(_backend)
