"""Errors become exit codes, and only the first process talks."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import pytest
import torch

from tread_ssm.command import check_at_least, device, run, say
from tread_ssm.errors import ConfigError


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("no such thing."), 2, "error: no such thing.\n"),
        (ValueError("7 is odd."), 2, "error: 7 is odd.\n"),
        (FileNotFoundError(2, "No such file", "a"), 2, "error: [Errno 2] No such file: 'a'\n"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            2,
            "error: the memory does not suffice; compute less at once. (CUDA out of memory.)\n",
        ),
        (KeyboardInterrupt(), 130, "Interrupted; rerun the command to resume.\n"),
    ],
)
def test_errors_are_sentences(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == code
    assert capsys.readouterr().err == said


def test_mistakes_of_our_own_keep_their_traceback() -> None:
    with pytest.raises(AttributeError):
        run(raising(AttributeError("a bug")))


def test_results_are_exit_codes() -> None:
    assert [run(lambda: None), run(lambda: 0), run(lambda: 1)] == [0, 0, 1]


def test_other_processes_say_only_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    say("hello")
    assert run(raising(ValueError("lost"))) == 2
    assert run(raising(KeyboardInterrupt())) == 130
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == "error (process 3): lost\n"


def test_devices_that_are_not_there_are_refused() -> None:
    assert device("cpu") == torch.device("cpu")
    assert device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("toaster", "cuda:99", "xla"):
        with pytest.raises(ConfigError, match=f"--device {name} cannot be used here"):
            device(name)


def test_numbers_below_the_least_are_refused() -> None:
    args = Namespace(batch_size=0, num=None, seed=3)
    check_at_least(args, 1, "num", "seed")
    with pytest.raises(ConfigError, match="--batch-size is 0; it must be at least 1"):
        check_at_least(args, 1, "seed", "batch_size")
