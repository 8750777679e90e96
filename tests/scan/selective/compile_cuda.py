"""Compile the CUDA kernels for one GPU without having it, and print what each needs, as JSON.

    python tests/scan/selective/compile_cuda.py 90

One line per kernel and variant: registers per thread, bytes of stack and local memory (0: no
spills), bytes of static shared memory and, for 16 states, machine instructions per state-step (one
visit of one channel by one state). NVRTC compiles; Triton's wheel brings the disassembler.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import compile_triton  # beside this file, which is the first place that a script imports from
import torch

from tread_ssm.scan.selective import cuda, nvrtc

UNROLLED = 4
"""Visits of one turn of forward's loop; of backward's, PART."""


def loops(code: str) -> list[tuple[int, int]]:
    """(machine instructions, exponentials) of each innermost loop of a disassembly, in order."""
    labels: dict[str, int] = {}
    lines: list[str] = []
    found: list[tuple[int, int]] = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif re.search(r"/\*[0-9a-f]{4,5}\*/", line):
            jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            lines.append(line)
            if jump and labels.get(jump[1], len(lines)) < len(lines) - 1:
                found.append((labels[jump[1]], len(lines)))
    inner = [a for a in found if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in found)]
    return [
        (stop - start, sum("MUFU.EX2" in x for x in lines[start:stop])) for start, stop in inner
    ]


def per_state_step(kernel: str, code: str) -> float:
    """Instructions inside the loops over visits, over the state-steps that a thread does there.

    Backward's first loop keeps states and leaves out each chunk's last part; its second loop does
    the rest. Neither the loading of tiles nor the last sums over warps are in it.
    """
    text = next(
        t for t in re.split(r"(?=\.section\s+\.text\.)", code) if f".text.{kernel}" in t[:60]
    )
    busy = [n for n, exponentials in loops(text) if exponentials >= cuda.STATES * UNROLLED]
    if kernel == "scan_forward":
        (forward,) = busy
        return forward / (UNROLLED * cuda.STATES)
    keep, differentiate = busy
    parts = cuda.CHUNK // cuda.PART
    return (keep * (parts - 1) / parts + differentiate) / (cuda.PART * cuda.STATES)


def main() -> None:
    capability = int(sys.argv[1])
    for dtype, state, softplus, gate in (
        (torch.bfloat16, 16, True, True),
        (torch.bfloat16, 16, True, False),
        (torch.float32, 16, True, True),
        (torch.float16, 16, False, True),
        (torch.bfloat16, 32, True, True),
        (torch.bfloat16, 64, True, True),
    ):
        options = cuda.options(dtype, state, softplus, gate)
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "scan.cubin"
            cubin.write_bytes(nvrtc.machine_code(cuda.source(), capability, options))
            usage = compile_triton._tool("cuobjdump", "--dump-resource-usage", str(cubin))
            code = compile_triton._tool("nvdisasm", "-c", str(cubin))
        for kernel, resources in re.findall(r"Function (\w+):\s*(.*)", usage):
            found = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", resources)}
            needs: dict[str, object] = {
                "kernel": kernel,
                "variant": f"{str(dtype)[6:]} {state} softplus={softplus} gate={gate}",
                "registers": found["REG"],
                "spilled": found["STACK"] + found["LOCAL"],
                "shared": found["SHARED"],
            }
            if cuda.lanes(state) == 1:
                needs["instructions"] = round(per_state_step(kernel, code), 1)
            print(json.dumps(needs), flush=True)


if __name__ == "__main__":
    main()
