"""The chunked fallback: exact in float64, and bounded memory."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from tests.scan.selective.cases import ScanCase, run_with_gradients, scan_inputs
from tread_ssm.scan import selective_scan
from tread_ssm.scan.selective import chunked


def test_the_chunk_length_does_not_matter(monkeypatch):
    x = scan_inputs(ScanCase("c", length=50, visits=37, gap=True), torch.float64)
    want = run_with_gradients(selective_scan, x, backend="chunked")
    for length in (1, 7, 37, 64):
        monkeypatch.setattr(chunked, "CHUNK", length)
        got = run_with_gradients(selective_scan, x, backend="chunked")
        for name in want:
            assert_close(got[name], want[name], rtol=1e-10, atol=1e-12)


def test_it_keeps_one_state_per_chunk_and_no_more():
    case = ScanCase("c", batch=1, length=512, dim=8, state=16)
    x = scan_inputs(case, torch.float32)
    saved = []
    x["u"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()), lambda t: t):
        selective_scan(**x, backend="chunked")
    every_state = case.length * case.dim * case.state
    assert (
        sum(saved) - sum(v.numel() for v in x.values() if isinstance(v, torch.Tensor))
        == every_state // chunked.CHUNK
    )
