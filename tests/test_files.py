"""Files are replaced whole or not at all, whatever lies around them."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tread_ssm.files import checksum, read_json, remove_left_over, replacing


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.json"
    for content in ("first", "second"):
        with replacing(target) as temporary:
            assert temporary.suffix == ".json"
            assert temporary.name.startswith(".")
            temporary.write_text(content)
            assert not target.exists() or target.read_text() == "first"
        assert target.read_text() == content
    assert [p.name for p in target.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def write() -> None:
        with replacing(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "g.png"
    victim.write_text("precious")
    for name in ("g.png", "g.png.tmp", "g.tmp", ".g.png.tmp"):
        (tmp_path / name).symlink_to(victim)
    with replacing(target) as temporary:
        temporary.write_text("picture")
    assert victim.read_text() == "precious"
    assert target.read_text() == "picture"
    assert not target.is_symlink()


def test_names_of_temporary_files_never_repeat(tmp_path: Path) -> None:
    names = set()
    for _ in range(20):
        with replacing(tmp_path / "a") as temporary:
            names.add(temporary.name)
    assert len(names) == 20


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "text") as temporary:
            temporary.write_text("x")
        with replacing(tmp_path / "a.safetensors") as temporary:
            save_file({"x": torch.arange(3)}, temporary)
            temporary.chmod(0o600)  # as some versions of safetensors leave it
    finally:
        os.umask(before)
    for name in ("text", "a.safetensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [0, 1, 2]


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with (
            pytest.raises(OSError, match=f"{name} is no file; remove it"),
            replacing(tmp_path / name),
        ):
            pass
    assert len(list(tmp_path.iterdir())) == 2


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    code = (
        "import os, signal, sys, pathlib\n"
        "from tread_ssm.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert target.read_text() == "old"
    (tmp_path / ".hidden").write_text("the user's own")
    assert len(list(tmp_path.glob(".*.tmp*"))) == 1
    remove_left_over(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "a.txt"]


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib\n"
        "from tread_ssm.files import replacing\n"
        "held = [replacing(pathlib.Path(name)) for name in sys.argv[1:]]\n"
        "for each in held:\n"
        "    each.__enter__()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    names = [str(tmp_path / name) for name in ("a.txt", "a.txt", "b.txt")]
    subprocess.run([sys.executable, "-c", code, *names], check=False)
    (tmp_path / ".hidden.tmp.txt").write_text("the user's own")
    assert len(list(tmp_path.iterdir())) == 4
    with replacing(tmp_path / "a.txt") as first, replacing(tmp_path / "a.txt") as second:
        # This process lives: neither attempt removes the other's file, nor what belongs to b.txt.
        assert first.exists() and second.exists()
        assert len(list(tmp_path.iterdir())) == 4
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".txt"] * 3
    with replacing(tmp_path / "b.txt"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden.tmp.txt", "a.txt", "b.txt"]


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="/dev/null"), replacing(Path("/dev/null/a.txt")):
        pass
    target = tmp_path / "a.txt"
    with pytest.raises(FileNotFoundError) as caught, replacing(target) as temporary:
        temporary.unlink()
    assert caught.value.filename == str(target)


def test_the_checksum_is_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert checksum(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 3000 + b"]" * 3000])
def test_what_is_no_json_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError):
        read_json(path)
    path.write_bytes(b'{"a": 1}')
    assert read_json(path) == {"a": 1}
