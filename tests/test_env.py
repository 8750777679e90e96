from __future__ import annotations

import subprocess
import sys

import torch

from tread_ssm.env import report
from tread_ssm.scan import BACKENDS, choose_backend
from tread_ssm.scan.ops import GATE, SSD


def test_the_report_names_every_backend_and_the_choice():
    text = report()
    for name in BACKENDS:
        assert f"\n    {name} " in text
    assert f"scan on cpu, float32: {choose_backend(None, 'cpu', torch.float32)}" in text
    for operation in (SSD, GATE):
        chosen = choose_backend(None, "cpu", torch.float32, operation)
        assert f"\n{operation.name} on cpu, float32: {chosen}\n" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text


def test_the_environment_variable_shows(monkeypatch):
    monkeypatch.setenv("TREAD_SSM_BACKEND", "chunked")
    assert "TREAD_SSM_BACKEND: chunked" in report()
    assert "scan on cpu, float32: chunked" in report()


def test_a_mistaken_environment_variable_is_reported_not_raised(monkeypatch):
    monkeypatch.setenv("TREAD_SSM_BACKEND", "fastest")
    assert "there are triton" in report()


def test_it_runs_as_a_command():
    command = [sys.executable, "-m", "tread_ssm.env"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "scan on cpu" in done.stdout
