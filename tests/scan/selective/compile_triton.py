"""Compile every Triton kernel for one GPU without having it, and print what each needs, as JSON.

    python tests/scan/selective/compile_triton.py 90

One line per kernel and variant: name, registers per thread, bytes of stack and local memory (0: no
spills), and for the scan the machine instructions per state-step (one visit of one channel by one
state): those inside the loops over visits, over the state-steps that a thread does there. A
program of its own, because a process in which the interpreter is on compiles nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tread_ssm.scan.selective import triton as host
from tread_ssm.scan.selective import triton_conv, triton_scan

SIZES = ("visits", "length", "dim", "state", "order_stride", "gap_stride")
NARROW = (
    "u",
    "delta",
    "B",
    "C",
    "z",
    "x",
    "y",
    "grad_y",
    "grad_u",
    "grad_delta",
    "grad_z",
    "grad_x",
)
INDICES = ("order", "gap")
ALIGNED = ("dim", "state")  # multiples of 16 in every real network


def compiled(
    kernel: Any,
    constants: dict[str, Any],
    warps: int,
    capability: int,
    sizes: Sequence[str] = SIZES,
    narrow: Sequence[str] = NARROW,
    aligned: Sequence[str] = ALIGNED,
) -> Any:
    """The kernel with bf16 activations; arguments in `constants` are fixed (None: left out)."""
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        kind = "bf16" if name in narrow else "i64" if name in INDICES else "fp32"
        signature[name] = "i32" if name in sizes else f"*{kind}"
        if name not in sizes or name in aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    positions = {(kernel.arg_names.index(k),): v for k, v in constants.items()}
    return triton.compile(
        ASTSource(kernel, signature, positions, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True},
    )


def resources(kernel: Any, state_steps: int | None) -> dict[str, float]:
    """What the machine code needs; `state_steps` are those of a thread in one turn of a loop."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
        code = _tool("nvdisasm", "-c", str(cubin))
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    needs = {"registers": int(found["REG"]), "spilled": int(found["STACK"]) + int(found["LOCAL"])}
    if state_steps is None:
        return needs
    return {**needs, "instructions": round(sum(innermost_loops(code)) / state_steps, 1)}


def _tool(name: str, *arguments: str) -> str:
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    command = [str(folder / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def innermost_loops(code: str) -> list[int]:
    """Instructions in each loop that holds no other, of a disassembly."""
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    count = 0
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = count
        elif re.search(r"/\*[0-9a-f]{4,5}\*/", line):
            jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if jump and jump[1] in labels and count > labels[jump[1]]:
                loops.append((labels[jump[1]], count))
            count += 1
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [stop - start + 1 for start, stop in inner]


def variants(state: int) -> list[tuple[str, Any, dict[str, Any], int]]:
    """(name, kernel, constants, warps) of each scan kernel, as the host code launches it."""
    found = []
    bare = dict.fromkeys(("D", "z", "bias", "order", "gap"))
    for name, left_out in (("bare", bare), ("order", {"gap": None}), ("all", {})):
        block_n, block_d, warps = host.forward_blocks(state)
        shared = {"CHUNK": host.CHUNK, "SOFTPLUS": True, **left_out}
        constants = {**shared, "BLOCK_N": block_n, "BLOCK_D": block_d}
        found.append((f"forward {state} {name}", triton_scan.forward_kernel, constants, warps))
        block_n, block_d, warps = host.backward_blocks(state)
        constants = {**shared, "PART": host.PART, "BLOCK_N": block_n, "BLOCK_D": block_d}
        if name == "bare":
            constants |= dict.fromkeys(("grad_z", "part_D", "part_bias"))
        found.append((f"backward {state} {name}", triton_scan.backward_kernel, constants, warps))
    return found


def conv_variants() -> list[tuple[str, Any, dict[str, Any], int]]:
    """The same of the convolution, width 4."""
    found = []
    for name, left_out in (("order", {"gap": None}), ("all", {})):
        constants = {
            "ACTIVATION": True,
            "W": 4,
            "BLOCK_K": host.CONV_BLOCK_K,
            "BLOCK_D": host.CONV_BLOCK_D,
            **left_out,
        }
        for which, kernel in (
            ("forward", triton_conv.forward_kernel),
            ("backward", triton_conv.backward_kernel),
        ):
            found.append((f"conv {which} {name}", kernel, constants, host.CONV_WARPS))
    return found


def ones() -> list[tuple[str, Any, dict[str, Any], int]]:
    """Sizes of 1, which Triton's launcher turns into constants."""
    sizes = dict.fromkeys(("visits", "length", "dim", "state"), 1)
    return [(f"{name} ones", k, {**c, **sizes}, w) for name, k, c, w in variants(1)[-2:]] + [
        (f"{name} ones", k, {**c, **{s: 1 for s in sizes if s != "state"}}, w)
        for name, k, c, w in conv_variants()[-2:]
    ]


def main() -> None:
    capability = int(sys.argv[1])
    chosen = variants(16) + conv_variants()
    if capability == 90:
        chosen += variants(64)[-2:] + variants(1)[-2:] + ones()
    for name, kernel, constants, warps in chosen:
        steps = None
        if "BLOCK_N" in constants and "visits" not in constants:
            tile = constants["BLOCK_N"] * constants["BLOCK_D"]
            steps = tile * constants.get("PART", 1) // (32 * warps)
        needs = resources(compiled(kernel, constants, warps, capability), steps)
        print(json.dumps({"name": name, **needs}), flush=True)


if __name__ == "__main__":
    main()
