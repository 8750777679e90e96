"""The learning rate over a run."""

from __future__ import annotations

import pytest

from tread_ssm.training.learning_rate import learning_rate


def rates(schedule: str, steps: int = 100, warmup: int = 10) -> list[float]:
    return [
        learning_rate(s, steps=steps, peak=2.0, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
        for s in range(steps)
    ]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warmup_climbs_evenly_to_the_peak(schedule: str) -> None:
    assert rates(schedule)[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert max(rates(schedule)) == 2.0
    assert rates(schedule, warmup=0)[0] == 2.0


def test_constant_stays_and_cosine_falls_to_nearly_nothing() -> None:
    assert set(rates("constant")[10:]) == {2.0}
    cosine = rates("cosine")[10:]
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[45] == pytest.approx(1.0)
    assert 0 < cosine[-1] < 0.001
