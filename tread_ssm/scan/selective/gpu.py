"""What the Triton and the CUDA backend of the scan share.

Their backward kernels write one partial sum per block of channels (B, C) or per sample (A, D,
delta_bias), and torch adds these in a fixed order: no atomics, so equal inputs give equal bits.

Shape legend: B batch, L positions, K visits (K <= L), D channels, N states, P channel blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tread_ssm.scan.inputs import Gradients, ScanInputs
from tread_ssm.scan.visits import n_visits, output_like

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def dtype_unavailable(dtype: torch.dtype) -> str | None:
    """Why the kernels do not take a dtype, or None."""
    if dtype not in DTYPES:
        return f"{dtype} is not supported; the kernels take float32, bfloat16 and float16"
    return None


def capability_unavailable(device: torch.device) -> str | None:
    """Why the kernels do not run on an NVIDIA GPU, or None."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"compute capability {major}.{minor}; the kernels need 8.0 or higher"
    return None


def kept_states_shape(x: ScanInputs, chunk: int) -> tuple[int, ...]:
    """(B, chunks, N, D): the state before every chunk-th visit."""
    dim, state = x.A.shape
    return (x.u.shape[0], -(-n_visits(x.u, x.order) // chunk), state, dim)


@dataclass(frozen=True)
class ScanGradients:
    """What a backward kernel writes; the fields stand in the order of its arguments.

    Attributes:
        u, delta, z: Gradients of the arguments.
        A: (B, N, D) partial sums.
        B, C: (B, P, K, N) partial sums, in visiting order.
        D, delta_bias: (B, D) partial sums.
    """

    u: Tensor
    delta: Tensor
    z: Tensor | None
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None

    @classmethod
    def empty(cls, x: ScanInputs, blocks: int) -> ScanGradients:
        """Uninitialised memory for the inputs and a number of blocks of channels."""
        (batch, _, dim), state = x.u.shape, x.A.shape[1]
        visits = n_visits(x.u, x.order)

        def wide(*shape: int) -> Tensor:
            return torch.empty(shape, device=x.u.device, dtype=torch.float32)

        return cls(
            output_like(x.u, visits),
            output_like(x.delta, visits),
            None if x.z is None else output_like(x.z, visits),
            wide(batch, state, dim),
            wide(batch, blocks, visits, state),
            wide(batch, blocks, visits, state),
            None if x.D is None else wide(batch, dim),
            None if x.delta_bias is None else wide(batch, dim),
        )

    def buffers(self) -> tuple[Tensor | None, ...]:
        """All fields, in order."""
        return (self.u, self.delta, self.z, self.A, self.B, self.C, self.D, self.delta_bias)

    def summed(self, x: ScanInputs) -> Gradients:
        """Gradients of u, delta, A, B, C, D, z and delta_bias."""
        return (
            self.u,
            self.delta,
            self.A.sum(0).t().contiguous(),
            _put(self.B.sum(1), x.order, x.B),
            _put(self.C.sum(1), x.order, x.C),
            None if self.D is None else self.D.sum(0),
            self.z,
            None if self.delta_bias is None else self.delta_bias.sum(0),
        )


def _put(x_BKN: Tensor, order: Tensor | None, like: Tensor) -> Tensor:
    """The visited rows at their positions, in the shape and dtype of `like`, 0 elsewhere."""
    if order is None:
        return x_BKN.to(like.dtype)
    index = order.expand(x_BKN.shape[:2]).unsqueeze(-1).expand_as(x_BKN)
    return torch.zeros_like(like).scatter_(1, index, x_BKN.to(like.dtype))
