"""Which samples a step sees."""

from __future__ import annotations

import numpy as np
import pytest

from tread_ssm.data.order import batch_index


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (7, 20), (12, 4), (1, 2)])
def test_every_epoch_holds_every_sample_once(n: int, batch: int) -> None:
    steps = [batch_index(n, batch, seed=1, step=s) for s in range(3 * n)]
    assert {len(s) for s in steps} == {batch}
    stream = np.concatenate(steps)
    epochs = stream[: len(stream) // n * n].reshape(-1, n)
    assert (np.sort(epochs, axis=1) == np.arange(n)).all()
    if n > 5:
        assert len({tuple(e) for e in epochs}) > 1  # shuffled anew


def test_a_step_is_addressed_without_those_before_it() -> None:
    far = batch_index(1000, 64, seed=5, step=123_456_789)
    assert len(set(far.tolist())) == 64
    assert np.array_equal(far, batch_index(1000, 64, seed=5, step=123_456_789))
    assert not np.array_equal(far, batch_index(1000, 64, seed=6, step=123_456_789))
