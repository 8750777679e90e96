"""Compile the Triton kernels of the decayed product for one GPU without having it, as JSON lines.

    python tests/scan/decayed/compile_decayed.py 90

See tests/scan/selective/compile_triton.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tread_ssm.scan.decayed import triton as backend
from tread_ssm.scan.decayed import triton_kernels

sys.path.insert(0, str(Path(__file__).parents[1] / "selective"))
from compile_triton import compiled, resources

STRIDES = ("grad_y_stride", "q_stride", "k_stride", "v_stride")
ALIGNED = ("state", "channels", *STRIDES)  # multiples of 16 in every real network
SIZES = (
    *("visits", "length", "groups", "heads", "ranges", "index", "order_stride", "gap_stride"),
    *ALIGNED,
)
NARROW = ("q", "k", "v", "y", "grad_y", "grad_v")
SHAPES = ((64, 64), (128, 64), (16, 64), (64, 32))  # states and channels of a head


def variants() -> list[tuple[str, Any, dict[str, Any]]]:
    """(name, kernel, constants) of each kernel, as the host code launches it."""
    found = []
    for state, channels in SHAPES:
        for name, left_out in (("bare", dict.fromkeys(("order", "gap"))), ("all", {})):
            blocks = {"N": backend.block(state), "P": backend.block(channels)}
            constants = {"T": backend.CHUNK, **blocks, **left_out}
            for which in ("forward", "after", "across", "inside"):
                kernel = getattr(triton_kernels, f"{which}_kernel")
                found.append((f"{which} {state} {channels} {name}", kernel, constants))
    return found


def main() -> None:
    capability = int(sys.argv[1])
    for name, kernel, constants in variants():
        machine_code = compiled(
            kernel, constants, backend.WARPS, capability, SIZES, NARROW, ALIGNED
        )
        needs = resources(machine_code, None)
        print(
            json.dumps({"name": name, **needs, "shared": machine_code.metadata.shared}), flush=True
        )


if __name__ == "__main__":
    main()
