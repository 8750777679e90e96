"""One run at a time in a folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.errors import ConfigError
from tread_ssm.training.checkpoints.lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.training.checkpoints.lock import locked
with locked(RunFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_holder_is_named_and_its_death_frees_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path)],
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        name = f"process {process.pid} on {socket.gethostname()}"
        with (
            pytest.raises(ConfigError, match=f"is being trained by {name}"),
            locked(folder, patience=0.2),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    with locked(folder, patience=5.0):
        pass
    with locked(folder, patience=0.0):
        pass
