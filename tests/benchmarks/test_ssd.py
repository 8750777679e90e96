"""The benchmark of `ssd` compares what computes the same, and its tables hold every row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import ssd as benchmark
from benchmarks.origin import write_results

pytest.importorskip("transformers")

TOY = ((2, 6, 128), (1, 9, 64))


def test_the_sides_compute_the_same() -> None:
    mixers, x = benchmark.mixers(TOY[0])
    ours, theirs = (mixer(x) for mixer in mixers.values())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    inputs = benchmark.product_inputs(TOY[0])
    torch.testing.assert_close(
        benchmark.product(*inputs), benchmark.product(*inputs, backend="matmul")
    )
    v, q, k, decay = inputs
    back = torch.arange(v.shape[1]).flip(0)
    torch.testing.assert_close(
        benchmark.both_masked(v, q, k, decay, back), benchmark.both_passes(v, q, k, decay, back)
    )


def test_ratios_floors_and_tables(tmp_path: Path) -> None:
    found = benchmark.report(TOY, (5, 9), repeats=1)
    for row in found["rows"]:
        seconds = row["s"]
        assert row["over_ssd"] == {n: seconds[n] / seconds["ssd"] for n in benchmark.OTHERS}
        assert row["transformers_over_ours"] == seconds["transformers"] / seconds["ours"]
        assert 0 < row["share_of_floor"] < 1
    # 2 samples of 6 tokens, 2 heads: 3 x 258 inputs and 2 x 128 outputs of 4 bytes; 19 FLOPs a step
    assert benchmark.floor_s(TOY[0], 4.0, 19.0) == {
        "bytes": 2 * 6 * (3 * 258 + 2 * 128),
        "flops": 2 * 6 * 128 * 64,
    }
    write_results(tmp_path, "ssd_cpu", found, benchmark.markdown(found))
    assert json.loads((tmp_path / "ssd_cpu.json").read_text())["date"] == found["date"]
    text = (tmp_path / "ssd_cpu.md").read_text()
    assert f"commit {found['commit']}" in text and found["machine"] in text
    assert "| 8, 5, 384 | " in text and "| 8, 9, 384 | " in text
    assert "| 2, 6, 128 | " in text and "| 1, 9, 64 | " in text
