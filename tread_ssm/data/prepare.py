"""Make a folder of latents, shard by shard, so that an interruption costs one shard at most.

Which samples a shard holds, and in which batches they are encoded, follows from their numbers
alone. The folder is the same however many processes made it, and however often they stopped (to
the last bit on devices of one kind, or CPUs with one number of threads).

Shape legend: B batch, C latent channels, h, w latent places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tread_ssm.data.dataset import digest
from tread_ssm.data.shards import (
    LABELS,
    Manifest,
    Shard,
    write_array,
    write_manifest,
)
from tread_ssm.data.values import LatentValues
from tread_ssm.files import read_json, remove_left_over, replacing, write_json
from tread_ssm.processes import gathered, world

UNREADABLE = "unreadable.txt"
_JOB, _PARTS = "job.json", "parts"


@dataclass(frozen=True)
class Encoded:
    """What a source read at once.

    Attributes:
        moments: (B, 2C, h, w) float32, means, then log-variances.
        mirrored: The same of the mirrored images. None: not asked for.
        failed: Number and reason of each sample that could not be read and is not in `moments`.
    """

    moments: Tensor
    mirrored: Tensor | None
    failed: tuple[tuple[int, str], ...] = ()


class Source(Protocol):
    """Where moments come from: images and an autoencoder, or another project's files.

    Attributes:
        labels: (n,) int64. None: no classes.
        class_names, resolution: As in the manifest.
        values: What the numbers that a model sees mean.
    """

    @property
    def labels(self) -> np.ndarray | None: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def values(self) -> LatentValues: ...
    @property
    def resolution(self) -> int | None: ...

    def __len__(self) -> int:
        """n."""
        ...

    def read(self, part: range) -> Iterator[Encoded]:
        """The samples of these numbers, in order, a batch at a time.

        Raises:
            ValueError: A sample cannot be used.
        """
        ...


def begin(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or take it up again. For one process, before the others write.

    Args:
        out: The folder.
        settings: What decides the result, as JSON takes it.

    Raises:
        ValueError: The folder holds something else, or was begun with other settings.
    """
    job = out / _JOB
    if out.is_dir():
        remove_left_over(out)
    if job.is_file():
        held = _read_json(job)
        if held is None:
            raise ValueError(f"{job} cannot be read; remove {out} and start again.")
        changed = [k for k in {**held, **settings} if held.get(k) != settings.get(k)]
        if changed:
            told = ", ".join(f"{k} {held.get(k)!r} -> {settings.get(k)!r}" for k in changed)
            raise ValueError(f"{out} was begun with other settings ({told}); use another folder.")
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no {_JOB}; use another folder.")
    else:
        write_json(job, settings)
    (out / _PARTS).mkdir(exist_ok=True)
    remove_left_over(out / _PARTS)


def files_digest(path: Path) -> str:
    """A checksum over the names and sizes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return digest(f"{f.relative_to(path)} {f.stat().st_size}" for f in files)


def missing(out: Path, n: int, shard_size: int) -> list[range]:
    """The stretches of samples whose shards are not there yet, or are cut short."""
    return [p for p in _stretches(n, shard_size) if _held(out, p, shard_size) is None]


def write_shard(
    source: Source, out: Path, part: range, shard_size: int, progress: Callable[[int], object]
) -> None:
    """Read one stretch and write its files. The record that says so comes last.

    Args:
        source: What is read.
        out: The folder.
        part: Numbers of the samples.
        shard_size: Samples of a shard.
        progress: Called with the number of samples done since the last call.

    Raises:
        ValueError: A sample cannot be used.
    """
    straight: list[np.ndarray] = []
    mirrored: list[np.ndarray] = []
    failed: list[tuple[int, str]] = []
    done = 0
    for encoded in source.read(part):
        failed += encoded.failed
        if len(encoded.moments):
            straight.append(_stored(encoded.moments, part))
            if encoded.mirrored is not None:
                mirrored.append(_stored(encoded.mirrored, part))
        now = sum(map(len, straight)) + len(failed)
        progress(now - done)
        done = now
    number = part.start // shard_size
    files = {
        name: asdict(write_array(out / f"{name}-{number:05d}.npy", np.concatenate(arrays)))
        for name, arrays in (("moments", straight), ("flip", mirrored))
        if arrays
    }
    write_json(out / _PARTS / f"{number:05d}.json", {"files": files, "failed": failed})


def write_all(
    source: Source,
    out: Path,
    shard_size: int,
    settings: dict[str, Any],
    names: Sequence[str] | None,
    holds: Literal["moments", "features"] = "moments",
) -> Manifest | None:
    """Make the whole folder, or what is missing of it, with all processes; each calls it.

    Args:
        source: What is read.
        out: The folder.
        shard_size: Samples of a shard.
        settings: What decides the result, as JSON takes it.
        names: Of the samples, for the list of those that could not be read.
        holds: What the numbers are.

    Returns:
        The manifest, on the first process.

    Raises:
        ValueError: The folder holds something else, or a sample cannot be used.
    """
    rank, processes = world()
    if rank == 0:
        begin(out, settings | {"shard_size": shard_size, "samples": len(source)})
    mine = gathered(missing(out, len(source), shard_size))[0][rank::processes]
    of = f"process 1 of {processes}" if processes > 1 else out.name
    total = sum(map(len, mine))
    with tqdm(total=total, unit="sample", desc=of, disable=rank != 0) as bar:
        for part in mine:
            write_shard(source, out, part, shard_size, bar.update)
    gathered(None)  # all have written
    return finish(source, out, shard_size, names, holds) if rank == 0 else None


def finish(
    source: Source,
    out: Path,
    shard_size: int,
    names: Sequence[str] | None,
    holds: Literal["moments", "features"] = "moments",
) -> Manifest:
    """Write labels, the list of what could not be read, and the manifest.

    Args:
        source: What was read.
        out: The folder.
        shard_size: Samples of a shard.
        names: Of the samples, for that list.
        holds: What the numbers are.

    Raises:
        ValueError: A shard is missing, or nothing at all could be read.
    """
    stretches = _stretches(len(source), shard_size)
    held = [_held(out, part, shard_size) for part in stretches]
    if None in held:
        raise ValueError(f"{out} lacks {held.count(None)} shards; rerun the command to make them.")
    records = [record for record in held if record is not None]
    failed = {int(i): str(why) for record in records for i, why in record["failed"]}
    shards, mirrored = (
        tuple(Shard(**r["files"][name]) for r in records if name in r["files"])
        for name in ("moments", "flip")
    )
    if not shards:
        raise ValueError(f"Not one of {len(source)} samples could be read: {failed[0]}")
    told = [f"{names[i] if names else i}\t{why}\n" for i, why in sorted(failed.items())]
    with replacing(out / UNREADABLE) as temporary:
        # Names of files need not be UTF-8.
        temporary.write_text("".join(told), encoding="utf-8", errors="backslashreplace")
    labels = None
    if source.labels is not None:
        kept = np.delete(source.labels, sorted(failed))
        labels = write_array(out / LABELS, kept.astype(np.int64))
    shape = np.load(out / shards[0].name, mmap_mode="r").shape[1:]
    manifest = Manifest(
        vae=source.values.vae,
        scale=source.values.scale,
        mean=source.values.mean,
        deviation=source.values.deviation,
        pixels=source.values.pixels,
        resolution=source.resolution,
        count=sum(s.count for s in shards),
        shape=shape,
        class_names=source.class_names,
        shards=shards,
        mirrored=mirrored,
        labels=labels,
        holds=holds,
    )
    write_manifest(out, manifest)
    return manifest


def _stretches(n: int, shard_size: int) -> list[range]:
    return [range(i, min(i + shard_size, n)) for i in range(0, n, shard_size)]


def _held(out: Path, part: range, shard_size: int) -> dict[str, Any] | None:
    """The record of a shard whose files are there and whole."""
    record = _read_json(out / _PARTS / f"{part.start // shard_size:05d}.json")
    if record is None or not all(_whole(out, Shard(**f)) for f in record["files"].values()):
        return None
    return record


def _whole(out: Path, shard: Shard) -> bool:
    """Whether a file is as long as it should be; its bytes are not read."""
    try:
        return len(np.load(out / shard.name, mmap_mode="r")) == shard.count
    except (OSError, ValueError, EOFError):
        return False


def _stored(moments: Tensor, part: range) -> np.ndarray:
    """float16; log-variances in the range that autoencoders themselves clip them to."""
    mean, log_variance = moments.float().cpu().chunk(2, dim=1)
    half = torch.cat([mean, log_variance.clamp(-30.0, 20.0)], dim=1).half()
    if not bool(half.isfinite().all()):
        raise ValueError(
            f"Samples {part.start} to {part.stop - 1}: the moments are not finite in half "
            f"precision; encode in full precision."
        )
    return half.numpy()


def _read_json(path: Path) -> dict[str, Any] | None:
    """None: there is no such file, or it was damaged."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
