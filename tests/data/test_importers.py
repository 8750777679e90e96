"""Other projects' latents, written here in their layout, read back as moments."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.data.foreign_latents import (
    DEVIATION,
    LABELS,
    MEAN,
    MOMENTS,
    WRITERS,
    N,
    edm2,
    fast_dit,
    maskdit,
    npy,
    repa,
    tread,
    va_vae,
)
from tread_ssm.data.importers import open_source
from tread_ssm.data.importers.imported import SCALE


@pytest.mark.parametrize("project", WRITERS)
def test_moments_and_labels_are_those_of_the_project(project: str, tmp_path: Path) -> None:
    path = WRITERS[project](tmp_path / "data")
    source = open_source(project, path)
    assert len(source) == N
    assert source.labels is not None
    assert source.labels.tolist() == LABELS.tolist()
    assert len(source.class_names) == LABELS.max() + 1
    (encoded,) = source.read(range(N))
    mean, log_variance = encoded.moments.numpy().astype(np.float64), None
    mean, log_variance = np.split(mean, 2, axis=1)
    assert np.abs(mean - MEAN).max() < 1e-5
    if project in (
        "fast-dit",
        "va-vae",
    ):  # only a sample was kept: it comes back whatever the noise
        assert np.exp(log_variance / 2).max() < 1e-6
    else:
        assert np.abs(np.exp(log_variance / 2) / DEVIATION - 1).max() < 1e-5
    assert all(map(np.array_equal, encoded.moments[3:7], next(source.read(range(3, 7))).moments))


@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_treads_samples_are_told_from_scaled_ones_by_their_spread(
    scale: float, tmp_path: Path
) -> None:
    source = open_source("tread", tread(tmp_path / "tars", MEAN * np.float32(scale)))
    (encoded,) = source.read(range(N))
    assert torch.allclose(encoded.moments[:, :4], torch.from_numpy(MEAN), rtol=1e-5)
    assert (encoded.moments[:, 4:] == -30).all()


def test_validation_shards_are_no_training_data(tmp_path: Path) -> None:
    folder = tread(tmp_path / "testset")  # the folder that was asked for may have any name
    (folder / "val").mkdir()
    (folder / "latents-000002.tar").rename(folder / "imagenet_val_000.tar")
    (folder / "latents-000001.tar").rename(folder / "val" / "000.tar")
    source = open_source("tread", folder, vae="mine")
    assert source.labels is not None
    assert source.labels.tolist() == LABELS[:4].tolist()
    assert "2 of 3 tars are left out" in source.notes[0]
    assert len(open_source("tread", folder / "val")) == 4
    assert len(open_source("tread", folder / "imagenet_val_000.tar")) == 4
    (folder / "latents-000000.tar").unlink()
    with pytest.raises(ValueError, match=r"holds no \.tar .* 2 of 2 tars are left"):
        open_source("tread", folder)


@pytest.mark.parametrize("key", ["z-0", "y-0", "length"])
def test_a_pickled_maskdit_set_is_refused_with_a_remedy(key: str, tmp_path: Path) -> None:
    path = maskdit(tmp_path / "masked")
    with lmdb.open(str(path), map_size=1 << 24) as store, store.begin(write=True) as transaction:
        transaction.put(key.encode(), pickle.dumps(MOMENTS[0] if key == "z-0" else 3))
    with pytest.raises(ValueError, match=rf"{key} is a Python pickle.* float32 bytes"):
        open_source("maskdit", path).one(0)


def test_an_autoencoder_can_be_named(tmp_path: Path) -> None:
    path = edm2(tmp_path / "data")
    assert open_source("edm2", path).values.vae == "stabilityai/sd-vae-ft-mse"
    assert open_source("edm2", path, vae="mine").values.vae == "mine"


def test_edm2_without_labels_has_no_classes(tmp_path: Path) -> None:
    path = repa(tmp_path / "data")
    (path / "dataset.json").write_text('{"labels": null}')
    source = open_source("edm2", path)
    assert source.labels is None
    assert source.class_names == ()


def test_edm2_labels_may_name_the_images(tmp_path: Path) -> None:
    path = repa(tmp_path / "data")
    entries = [[f"some/img{i:08d}.png", int(label)] for i, label in enumerate(LABELS)]
    (path / "dataset.json").write_text(json.dumps({"labels": entries}))
    labels = open_source("edm2", path).labels
    assert labels is not None
    assert labels.tolist() == LABELS.tolist()


def test_samples_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    source = open_source("fast-dit", fast_dit(tmp_path / "data") / "imagenet256_features")
    assert "10.npy" < "2.npy"
    means = [source.one(i)[:4] for i in (2, 10)]
    assert np.abs(np.stack(means) - MEAN[[2, 10]]).max() < 1e-5


def test_webdataset_keys_end_at_the_first_dot_of_the_name(tmp_path: Path) -> None:
    """Tars made by `tar cf x.tar .`, with names that tell what the array is, and metadata."""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for i in range(3):
            content = {
                "json": b'{"width": 256}',
                "moments.npy": npy(MOMENTS[i]),
                "cls": str(LABELS[i]).encode() + b"\n",
            }
            for ending, data in content.items():
                info = tarfile.TarInfo(f"./v1.0/{i}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    source = open_source("tread", tmp_path / "x.tar")
    assert source.labels is not None
    assert source.labels.tolist() == LABELS[:3].tolist()
    assert np.array_equal(next(source.read(range(3))).moments, MOMENTS[:3])


def test_tars_that_webdataset_wrote(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for i in range(N):
            writer.write({"__key__": f"{i:06d}", "npy": MOMENTS[i], "cls": int(LABELS[i])})
    source = open_source("tread", tmp_path)
    assert source.labels is not None
    assert source.labels.tolist() == LABELS.tolist()
    assert np.array_equal(next(source.read(range(N))).moments, MOMENTS)


def test_a_label_may_stand_in_json(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, data in (("0.npy", npy(MOMENTS[0])), ("0.json", b'{"label": 7}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    labels = open_source("tread", tmp_path / "x.tar").labels
    assert labels is not None
    assert labels.tolist() == [7]


def test_what_the_user_should_know_is_noted(tmp_path: Path) -> None:
    (fast,) = open_source("fast-dit", fast_dit(tmp_path / "fast")).notes
    assert "no variance" in fast
    (masked,) = open_source("maskdit", maskdit(tmp_path / "masked")).notes
    assert "name it where you know it" in masked
    assert open_source("tread", tread(tmp_path / "tars"), vae="mine").notes == ()
    (sampled,) = open_source("tread", tread(tmp_path / "sampled", MEAN), vae="mine").notes
    assert "vary by 5." in sampled
    assert "not scaled" in sampled
    assert open_source("edm2", edm2(tmp_path / "data")).notes == ()


def test_edm2_and_repa_give_a_model_what_they_give_theirs(tmp_path: Path) -> None:
    """EDM2: channels centred and of deviation 0.5 over ImageNet. REPA: times 0.18215."""
    z = torch.from_numpy(MEAN)
    edm2s = open_source("edm2", edm2(tmp_path / "zip")).values
    assert edm2s.pixels == (0, 1)
    means, deviations = (torch.tensor(v).view(4, 1, 1) for v in (edm2s.mean, edm2s.deviation))
    seen = edm2s.scaled_(z.clone())
    torch.testing.assert_close(seen, (z - means) * (0.5 / deviations))
    torch.testing.assert_close(edm2s.unscaled(seen), z)
    assert torch.allclose(edm2s.scaled_((means + deviations)[None]), torch.tensor(0.5))
    repas = open_source("repa", repa(tmp_path / "files")).values
    assert repas.pixels == (-1, 1)
    assert torch.equal(repas.scaled_(z.clone()), z * SCALE)
    assert torch.equal(repas.unscaled(z), z / SCALE)


def test_va_vae_latents_are_normalised_by_their_statistics_and_bring_mirrored_ones(
    tmp_path: Path,
) -> None:
    source = open_source("va-vae", va_vae(tmp_path / "data"))
    (encoded,) = source.read(range(N))
    seen = source.values.scaled_(encoded.moments[:, :4].clone())
    assert torch.allclose(seen.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(seen.std(dim=(0, 2, 3), correction=0), torch.ones(4), atol=1e-5)
    assert encoded.mirrored is not None
    assert torch.equal(encoded.mirrored[:, :4], encoded.moments[:, :4] + 3)


def test_va_vae_folders_that_are_not_whole_are_refused(tmp_path: Path, refuse: Refuse) -> None:
    folder = va_vae(tmp_path / "data")
    (folder / "latents_stats.pt").write_bytes(b"no tensors")
    refuse("va-vae", folder, r"latents_stats\.pt holds no tensors `mean` and `std`")
    (folder / "latents_stats.pt").unlink()
    refuse("va-vae", folder, r"latents_stats\.pt is missing; it holds the mean and std")
    (folder / "latents_rank01_shard000.safetensors").write_bytes(b"x" * 64)
    refuse("va-vae", folder, r"rank01_shard000\.safetensors cannot be used")
    save_file({"latents": torch.zeros(2, 4, 1, 1)}, folder / "latents_rank00_shard000.safetensors")
    refuse("va-vae", folder, "it holds latents, not latents and labels")
    refuse("va-vae", tmp_path, r"is no folder with \.safetensors")


def test_another_scale_divides_scaled_samples(tmp_path: Path) -> None:
    source = open_source("fast-dit", fast_dit(tmp_path / "fast"), scale=SCALE / 2)
    assert source.values.scale == SCALE / 2
    assert np.abs(source.one(4)[:4] - 2 * MEAN[4]).max() < 1e-4


Refuse = Callable[[str, Path, str], None]


@pytest.fixture
def refuse() -> Refuse:
    def refuse(name: str, path: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            next(open_source(name, path).read(range(N)))

    return refuse


def test_what_is_not_there_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    refuse("dit", tmp_path, "no format 'dit'; there are fast-dit")
    refuse("edm2", tmp_path / "gone", "does not exist")
    refuse("fast-dit", tmp_path, r"holds 0 folders named \*_features; expected one")
    refuse("maskdit", tmp_path, "no LMDB that can be opened")
    refuse("tread", tmp_path, r"holds no \.tar with \.npy")
    refuse("edm2", tmp_path, r"holds no \.npy")
    with pytest.raises(ValueError, match="scale is 0"):
        open_source("edm2", tmp_path, scale=0.0)


def test_bad_fast_dit_folders_are_refused(tmp_path: Path, refuse: Refuse) -> None:
    labels = fast_dit(tmp_path) / "imagenet256_labels"
    np.save(labels / "3.npy", np.array([1, 2]))
    refuse("fast-dit", tmp_path, r"3\.npy is int64 of shape \(2,\); expected one whole number")
    (labels / "3.npy").unlink()
    refuse("fast-dit", tmp_path, r"12 features and 11 labels.*\(3\.npy is not\)")
    np.save(labels / "three.npy", np.array([1]))
    refuse("fast-dit", tmp_path, "expected a number as its name")
    (labels / "three.npy").unlink()
    np.save(labels / "3.npy", np.array([-1]))
    refuse("fast-dit", tmp_path, "a label is -1")
    np.save(labels / "3.npy", np.array([1]))
    features = tmp_path / "imagenet256_features"
    np.save(features / "5.npy", np.zeros((2, 4, 8, 8), dtype=np.float32))
    refuse("fast-dit", tmp_path, r"5\.npy is float32 of shape \(2, 4, 8, 8\)")
    np.save(features / "5.npy", np.zeros((1, 4, 4, 4), dtype=np.float32))
    refuse("fast-dit", tmp_path, r"Sample 5 .* \(8, 4, 4\), sample 0 of \(8, 8, 8\)")
    (tmp_path / "other_features").mkdir()
    refuse("fast-dit", tmp_path, "holds 2 folders")
    refuse("fast-dit", tmp_path / "other_features", "has no partner other_labels")


@pytest.mark.parametrize("label", [10**7, 10**12, 2**63, 10**30])
def test_labels_beyond_all_classes_are_refused_at_once(
    label: int, tmp_path: Path, refuse: Refuse
) -> None:
    folder = repa(tmp_path / "edm2")
    described = json.loads((folder / "dataset.json").read_text())
    described["labels"][3][1] = label
    (folder / "dataset.json").write_text(json.dumps(described))
    refuse("edm2", folder, f"a label is {label}; they must be at least 0 and below 1,000,000")


def test_arrays_that_lie_about_their_size_are_refused(tmp_path: Path, refuse: Refuse) -> None:
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (8, 10**6, 10**6)}  # 32 TB
    np.lib.format.write_array_header_1_0(file, header)
    fast_dit(tmp_path)
    (tmp_path / "imagenet256_features" / "0.npy").write_bytes(file.getvalue())
    refuse("fast-dit", tmp_path, r"0\.npy is no readable \.npy")


def test_bad_lmdbs_are_refused(
    tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no LMDB")
    refuse("maskdit", tmp_path / "file", "no LMDB that can be opened")

    def change(key: str, value: bytes) -> Path:
        path = tmp_path / key
        maskdit(path)
        with lmdb.open(str(path)) as store, store.begin(write=True) as transaction:
            transaction.put(key.encode(), value)
        return path

    refuse("maskdit", change("length", b"13"), "holds no 'y-12'")
    refuse("maskdit", change("y-2", b"dog"), "y-2 is b'dog'; expected a whole number")
    refuse("maskdit", change("z-4", b"1234"), "z-4 has 4 bytes")
    deviations = np.concatenate([MEAN[5], DEVIATION[5]]).tobytes()
    refuse("maskdit", change("z-5", deviations), "z-5 .* nowhere below 0; expected log-variances")
    monkeypatch.setattr("tread_ssm.data.importers.maskdit.find_spec", lambda name: None)
    refuse("maskdit", tmp_path, r"pip install \"tread_ssm\[import\]\"")


def test_bad_tars_are_refused(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "bad.tar").write_text("no tar")
    refuse("tread", tmp_path / "bad.tar", "bad.tar cannot be used")
    refuse("tread", tread(tmp_path / "odd", MOMENTS[:, :6]), r"shape \(6, 8, 8\)")

    def tar(name: str, *members: tuple[str, bytes]) -> Path:
        with tarfile.open(tmp_path / name, "w") as archive:
            for key, data in members:
                info = tarfile.TarInfo(key)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return tmp_path / name

    array = ("0.npy", npy(MOMENTS[0]))
    refuse("tread", tar("a.tar", array), "0 lacks one")
    refuse("tread", tar("b.tar", array, ("0.cls", b"dog")), r"\.cls is b'dog'")
    refuse("tread", tar("c.tar", array, ("0.json", b"{}")), r"\.json is b'{}'")
    refuse("tread", tar("d.tar", array, ("0.x.npy", b"")), "0 has two .npy")


def test_bad_edm2_data_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    folder = repa(tmp_path / "edm2")
    array = folder / "00000/img-mean-std-00000002.npy"
    np.save(array, MOMENTS[2])
    refuse("edm2", folder, "00000002.* expected standard deviations, which are above 0")
    array.write_bytes(pickle.dumps([1]))
    refuse("edm2", folder, r"is no readable \.npy")
    array.unlink()
    refuse("edm2", folder, "12 labels for 11 files; 1 stand without a file, as 00000/img-mean-std")
    described = folder / "dataset.json"
    described.write_text('{"labels": [["00000/img00000000.png", 1]]}')
    refuse("edm2", folder, "1 labels for 11 files; 10 stand without a label")
    described.write_text('{"labels": [["a/1.png", 1], ["b/1.png", 2]]}')
    refuse("edm2", folder, "numbers repeat")
    described.write_text('{"labels": {"a": 1}}')
    refuse("edm2", folder, "no usable labels")
    described.unlink()
    refuse("edm2", folder, "holds no dataset.json")
    (tmp_path / "bad.zip").write_text("no zip")
    refuse("edm2", tmp_path / "bad.zip", "no readable zip")
    whole = edm2(tmp_path / "data")
    content = bytearray(whole.read_bytes())
    content[300:400] = bytes(100)
    whole.write_bytes(content)
    refuse("edm2", whole, "is damaged")
