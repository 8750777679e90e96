"""How fast training reads latents, against a file a sample and against webdataset.

    python benchmarks/loader.py

All read the same float16 moments (8, 32, 32) on the same machine, in turns; the page cache is
warm. "gather" gives arrays of moments; "latents" is what a training step receives: float32
samples of the posterior. Medians; written to benchmarks/results/loader.json and loader.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.origin import processor
from tread_ssm.data import LatentData
from tread_ssm.data.importers import Imported
from tread_ssm.data.latents import Latents, sample_posterior
from tread_ssm.data.order import batch_index
from tread_ssm.data.prepare import begin, finish, missing, write_shard
from tread_ssm.data.values import LatentValues
from tread_ssm.randomness import generator

RESULTS = Path(__file__).parent / "results"
BATCH, SHARD = 256, 4096
SHAPE = (8, 32, 32)


def write_all(folder: Path, n: int) -> None:
    """The same samples as our shards, as a file each, and as webdataset's tars."""
    # Random bits are slow to make for 20,000 samples; a few hundred in turns read the same.
    some = np.random.default_rng(0).normal(size=(min(n, 500), *SHAPE)).astype(np.float32)
    labels = np.arange(n) % 1000
    source = Imported(n, labels, lambda i: some[i % len(some)], LatentValues())
    begin(folder / "shards", {})
    for part in missing(folder / "shards", n, SHARD):
        write_shard(source, folder / "shards", part, SHARD, int)
    finish(source, folder / "shards", SHARD, None)
    (folder / "files").mkdir()
    for start in tqdm(range(0, n, SHARD), desc="write", unit="shard"):
        with tarfile.open(folder / f"latents-{start // SHARD:05d}.tar", "w") as archive:
            for i in range(start, min(start + SHARD, n)):
                buffer = io.BytesIO()
                np.save(buffer, some[i % len(some)].astype(np.float16))
                (folder / "files" / f"{i}.npy").write_bytes(buffer.getvalue())
                _add(archive, f"{i:08d}.npy", buffer.getvalue())
                _add(archive, f"{i:08d}.cls", str(labels[i]).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def shards_gather(folder: Path, batches: int) -> None:
    """Our shards: moments of random samples."""
    data = _latents(folder)
    for step in range(batches):
        _used(data.moments.take(batch_index(len(data.labels), BATCH, 0, step)))


def shards_latents(folder: Path, batches: int) -> None:
    """Our shards, as training reads them: the posterior is sampled."""
    data = _latents(folder)
    for step in range(batches):
        drawn = data.sample_augmentation(BATCH, generator(0, step, "step"))
        _used(data.read(batch_index(len(data.labels), BATCH, 0, step), drawn))


def _latents(folder: Path) -> Latents:
    data = LatentData(path=str(folder / "shards")).open()
    assert isinstance(data, Latents)
    return data


def files_gather(folder: Path, batches: int) -> None:
    """A file a sample: moments of random samples."""
    for moments in _files(folder, batches):
        _used(moments)


def files_latents(folder: Path, batches: int) -> None:
    """A file a sample, and the posterior is sampled with the same arithmetic."""
    for moments in _files(folder, batches):
        _used(sample(moments))


def _files(folder: Path, batches: int) -> Iterator[np.ndarray]:
    n = len(list((folder / "files").iterdir()))
    for step in range(batches):
        index = batch_index(n, BATCH, 0, step)
        yield np.stack([np.load(folder / "files" / f"{i}.npy") for i in index])


def webdataset_gather(folder: Path, batches: int) -> None:
    """Webdataset: a shuffle buffer of 1000 over tars in random order."""
    for moments in _webdataset(folder, batches):
        _used(moments)


def webdataset_latents(folder: Path, batches: int) -> None:
    """Webdataset, and the posterior is sampled with the same arithmetic."""
    for moments in _webdataset(folder, batches):
        _used(sample(moments))


def _webdataset(folder: Path, batches: int) -> Iterator[np.ndarray]:
    tars = [str(p) for p in sorted(folder.glob("*.tar"))]
    stream = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode()
    read = 0
    while read < batches:
        for moments, _ in stream.to_tuple("npy", "cls").batched(BATCH, partial=False):
            yield np.stack(moments) if isinstance(moments, list) else moments
            read += 1
            if read == batches:
                return


def sample(moments: np.ndarray) -> Tensor:
    """What `Latents` does with moments."""
    noise = torch.randn(len(moments), SHAPE[0] // 2, *SHAPE[1:])
    return sample_posterior(torch.from_numpy(moments), noise, LatentValues())


def _used(batch: np.ndarray | Tensor) -> None:
    assert batch.shape[0] == BATCH


READERS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path, int], None]]] = {
    "memory-mapped shards (ours)": (shards_gather, shards_latents),
    "a .npy file a sample": (files_gather, files_latents),
    "webdataset tars": (webdataset_gather, webdataset_latents),
}


def measure(folder: Path, batches: int, repeats: int) -> dict[str, dict[str, float]]:
    """Samples a second, name -> {"gather": ..., "latents": ...}."""
    calls = [(n, k, f) for n, fs in READERS.items() for k, f in zip(KINDS, fs, strict=True)]
    rates: dict[tuple[str, str], list[float]] = {(n, k): [] for n, k, _ in calls}
    for turn in tqdm(range(repeats + 1), desc="measure", unit="turn"):
        for name, kind, call in calls:
            start = time.perf_counter()
            call(folder, batches)
            if turn:  # the first turn warms up
                rates[name, kind].append(batches * BATCH / (time.perf_counter() - start))
    return {n: {k: statistics.median(rates[n, k]) for k in KINDS} for n in READERS}


KINDS = ("gather", "latents")


def table(report: dict) -> str:
    """Markdown."""
    base = report["samples_per_s"]["webdataset tars"]
    lines = [
        "# Reading latents",
        "",
        f"`{report['command']}` on {report['machine']}, {report['samples']} samples, batches of "
        f"{BATCH}, one process, threads: {report['threads']}, medians of {report['repeats']}.",
        "",
        "| reader | gather, samples/s | x webdataset | posterior sampled, samples/s | x |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, rate in report["samples_per_s"].items():
        ratios = {k: rate[k] / base[k] for k in KINDS}
        lines.append(
            f"| {name} | {rate['gather']:,.0f} | {ratios['gather']:.1f} | "
            f"{rate['latents']:,.0f} | {ratios['latents']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=20, help="read in each turn (20)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of the posterior's sampling (1)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)  # one: core against core, since nothing else has more
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder), args.samples)
        rates = measure(Path(folder), args.batches, args.repeats)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": {"torch": torch.__version__, "webdataset": webdataset.__version__},
        "samples": args.samples,
        "repeats": args.repeats,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "samples_per_s": rates,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "loader.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (args.out / "loader.md").write_text(table(report), encoding="utf-8")
    print(table(report))


if __name__ == "__main__":
    main()
