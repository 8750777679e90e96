"""Images in an .npz."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tread_ssm.data import ArrayData, LatentData
from tread_ssm.errors import ConfigError


def test_arrays_with_and_without_labels(tmp_path: Path) -> None:
    images = np.zeros((5, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1, 2, 1, 0]))
    data = ArrayData(path=str(tmp_path / "a.npz")).open()
    assert data.class_names == ("0", "1", "2")
    assert data.shape == (1, 4, 4)
    np.savez(tmp_path / "b.npz", images=images)
    assert ArrayData(path=str(tmp_path / "b.npz")).open().class_names == ()


def test_broken_data_is_refused_with_a_sentence(tmp_path: Path) -> None:
    def refuse(match: str, **arrays: np.ndarray) -> None:
        np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=match):
            ArrayData(path=str(tmp_path / "x.npz")).open()

    images = np.zeros((5, 4, 4, 1), dtype=np.uint8)
    refuse("no array `images` or `arr_0`", pictures=images)
    refuse("float32", images=images.astype(np.float32))
    refuse("expected 5 whole numbers", images=images, labels=np.zeros(4, dtype=int))
    refuse(
        "names 1 classes, but a label is 1",
        images=images,
        labels=np.array([0, 1, 0, 1, 0]),
        class_names=np.array(["a"]),
    )
    refuse("no samples", images=images[:0])
    with pytest.raises(ConfigError, match="does not exist"):
        LatentData(path=str(tmp_path / "gone")).open()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no manifest\.json"):
        LatentData(path=str(tmp_path / "empty")).open()


def write_npz(path: Path, members: dict[str, bytes], *, compressed: bool = False) -> None:
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def npy(shape: tuple[int, ...], dtype: str, content: bytes) -> bytes:
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


def test_files_that_lie_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path, shape = tmp_path / "x.npz", (10**6, 1000, 1000, 3)

    def refuse(match: str) -> None:
        with pytest.raises(ConfigError, match=match) as caught:
            ArrayData(path=str(path)).open()
        assert str(path) in str(caught.value)

    write_npz(path, {"images": npy(shape, "|u1", bytes(100))})  # 3 TB
    refuse("uint8 of shape .* cannot be")
    write_npz(path, {"images": npy((2, 4, 4, 3), "|u1", bytes(95))})
    refuse("cannot be")
    write_npz(path, {"images": npy((4,), "|O", bytes(32))})
    refuse("Python objects")
    write_npz(path, {"images": b"no array"})
    refuse("no readable .npz")
    np.savez(path, images=np.array([{}, {}], dtype=object))
    refuse("Python objects")
    np.savez_compressed(path, images=np.zeros((50, 8, 8, 3), dtype=np.uint8))
    assert ArrayData(path=str(path)).open().shape == (3, 8, 8)
    for length in range(0, path.stat().st_size, 7):
        whole = path.read_bytes()
        path.write_bytes(whole[:length])
        refuse("no readable .npz")
        path.write_bytes(whole)
    path.unlink()
    os.mkfifo(path)
    refuse("is not an .npz file")


@pytest.mark.parametrize("label", [2**63, 2**64 - 1, 10**9])
def test_labels_beyond_all_classes_are_refused_at_once(tmp_path: Path, label: int) -> None:
    labels = np.array([0, label], dtype=np.uint64)
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4, 3), dtype=np.uint8), labels=labels)
    with pytest.raises(ConfigError, match=f"a label of .* is {label}"):
        ArrayData(path=str(tmp_path / "x.npz")).open()


def test_class_names_are_text(tmp_path: Path) -> None:
    images, labels = np.zeros((2, 4, 4, 3), dtype=np.uint8), np.array([0, 1])
    for names, shown in (([1, 2], "1"), (["a", ""], "''"), (["a\nb", "c"], r"'a\\nb'")):
        np.savez(tmp_path / "x.npz", images=images, labels=labels, class_names=np.array(names))
        with pytest.raises(ConfigError, match=f"names a class {shown}; names are text"):
            ArrayData(path=str(tmp_path / "x.npz")).open()


def test_the_fingerprint_notices_one_changed_pixel(tmp_path: Path) -> None:
    images, labels = np.zeros((5, 4, 4, 3), dtype=np.uint8), np.arange(5)
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    first = ArrayData(path=str(tmp_path / "x.npz")).open().fingerprint()
    np.savez(tmp_path / "y.npz", images=images, labels=labels)
    assert ArrayData(path=str(tmp_path / "y.npz")).open().fingerprint() == first
    images[3, 2, 1, 0] = 1
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    changed = ArrayData(path=str(tmp_path / "x.npz")).open().fingerprint()
    assert {k for k in first if first[k] != changed[k]} == {"digest"}


def test_adms_names_are_taken(tmp_path: Path) -> None:
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    np.savez(tmp_path / "a.npz", arr_0=images, arr_1=np.array([0, 1, 2, 1, 0]))
    data = ArrayData(path=str(tmp_path / "a.npz")).open()
    assert np.array_equal(data.images, images) and data.labels.tolist() == [0, 1, 2, 1, 0]
