"""The benchmark of the scan compares what computes the same, and its table holds every row."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import scan as benchmark
from benchmarks.origin import write_results
from tread_ssm.scan import selective_scan
from tread_ssm.scan.selective import cpu

pytest.importorskip("mambapy")

TOY = (2, 6, 16, 5)


def test_the_sides_compute_the_same() -> None:
    inputs = benchmark.make_inputs(TOY)
    y = selective_scan(*inputs)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(y, inputs, g)
    for function in (benchmark.pscan_scan, benchmark.loop_scan):
        other = function(*inputs)
        torch.testing.assert_close(other, y)
        torch.testing.assert_close(torch.autograd.grad(other, inputs, g), expected)


def test_a_floor_counts_bytes_and_exponentials() -> None:
    # 2 samples of 6 tokens of 16 channels, 4 bytes each; 5 exponentials a channel
    floor = benchmark.floor_ms(TOY, bandwidth=4.0, exps=1.0)
    assert floor["forward_bytes"] == 1e3 * 4 * 2 * 6 * 16
    assert floor["both_bytes"] == 1e3 * 11 * 2 * 6 * 16
    assert floor["forward"] == floor["forward_exponentials"] == 1e3 * 5 * 2 * 6 * 16
    assert floor["both"] == 1e3 * max(11, 2 * 5) * 2 * 6 * 16


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.skipif(cpu.library() is None, reason="CPU kernels were not built")
def test_ratios_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "LOOP_SHAPE", TOY)
    found = benchmark.report((TOY, (1, 9, 32, 4)), repeats=1)
    for row in found["rows"]:
        ms = row["ms"]
        assert row["times_faster_than"]["pscan"] == ms["pscan"] / ms["both again"]
        assert row["order_costs"]["column"] == ms["column"] / ms["both"]
        assert 0 < row["share_of_floor"]["both"] < 1
        assert row["peak_mb"].keys() == {"ours", "pscan"}
    assert ["loop" in row["ms"] for row in found["rows"]] == [True, False]
    assert found["block"]["scan"] > 0 and found["block"]["conv"] > 0
    write_results(tmp_path, "scan_cpu", found, benchmark.markdown(found))
    assert json.loads((tmp_path / "scan_cpu.json").read_text())["date"] == found["date"]
    text = (tmp_path / "scan_cpu.md").read_text()
    assert found["machine"] in text.splitlines()[2]  # the page on kernels starts there
    assert "| (2, 6, 16, 5) | " in text and "| (1, 9, 32, 4) | " in text
