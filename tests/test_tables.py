"""Numbers and tables for people."""

import pytest

from tread_ssm.tables import duration, markdown_table, short


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (386.1e6, "", "386.1M"),
        (27.5e6, "FLOPs", "27.5 MFLOPs"),
        (999_999_999, "B", "1.0 GB"),
        (999, "B", "999 B"),
        (0, "B", "0 B"),
        (1500, "", "1.5k"),
        (2e15, "FLOPs", "2000.0 TFLOPs"),
    ],
)
def test_counts(number: float, unit: str, text: str) -> None:
    assert short(number, unit) == text


def test_durations() -> None:
    assert [duration(s) for s in (5, 90, 5400, 2 * 86400)] == [
        *("5.0 seconds", "1.5 minutes", "1.5 hours", "2.0 days")
    ]


def test_tables() -> None:
    assert markdown_table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
