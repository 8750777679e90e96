"""What signals do to a run, in this process."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tread_ssm.training import signals
from tread_ssm.training.signals import StopSignals


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_first_signal_is_remembered_and_handlers_come_back(accelerator: Accelerator) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals(accelerator) as stop:
        assert stop.stop(1) is None
        signal.raise_signal(signal.SIGTERM)
        # At once again, as from a launcher that hands on what came to all: no second request.
        signal.raise_signal(signal.SIGINT)
        assert stop.stop(2) == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is before


def test_a_later_signal_has_its_usual_effect(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_ECHO_SECONDS", -1.0)
    with StopSignals(accelerator):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
