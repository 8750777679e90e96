"""The loader's benchmark compares readers of the same samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.loading import module_of

pytest.importorskip("webdataset")

PATH = Path(__file__).parents[2] / "benchmarks" / "loader.py"


def test_all_readers_read_the_same_samples(tmp_path: Path) -> None:
    loader = module_of(PATH)
    n = 2 * loader.BATCH
    loader.write_all(tmp_path, n)
    ours = loader._latents(tmp_path)
    order = np.concatenate([loader.batch_index(n, loader.BATCH, 0, step) for step in range(2)])
    shards = ours.moments.take(order)
    assert len(np.unique(order)) == n
    assert np.array_equal(np.concatenate([*loader._files(tmp_path, 2)]), shards)
    tars = np.concatenate([*loader._webdataset(tmp_path, 2)])
    assert np.array_equal(*(np.sort(x.sum(axis=(1, 2, 3), dtype=float)) for x in (tars, shards)))
    rates = loader.measure(tmp_path, batches=1, repeats=1)
    assert rates.keys() == loader.READERS.keys()
    assert all(rate > 0 for reader in rates.values() for rate in reader.values())
