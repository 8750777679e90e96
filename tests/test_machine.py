"""What cannot fit is refused with the numbers, and what fits is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest

from tread_ssm.errors import ConfigError
from tread_ssm.machine import check_disk, check_memory


def test_memory_that_the_machine_does_not_have() -> None:
    check_memory(1000, "A", "B.")
    memory = psutil.virtual_memory().total + psutil.swap_memory().total
    with pytest.raises(ConfigError, match=r"^train.batch_size would take at least .* GB of memory"):
        check_memory(1.01 * memory, "train.batch_size", "Make it smaller.")


def test_memory_of_another_device() -> None:
    check_memory(80, "A", "B.", have=80)
    with pytest.raises(ConfigError, match=r"^A would take at least 81 B of memory.* 80 B\. B\.$"):
        check_memory(81, "A", "B.", have=80)


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    check_disk(folder, 1000, "A", "B.")
    with pytest.raises(ConfigError, match=rf"^A would take .* of disk, but {tmp_path} has .* B\.$"):
        check_disk(folder, 1.01 * shutil.disk_usage(tmp_path).total, "A", "B.")
    assert not folder.exists()
