"""Bad command lines and bad files: one row each, with what stderr has to say and the exit code.

A row passes where the command ends within its limit, with its exit code, without a traceback, and
with a last line that matches.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tests.reliability.kills import Failure, Harness
from tests.reliability.server import Trial, python

REFUSED = 2


@dataclass(frozen=True)
class Line:
    """A command line that must be refused, or go on with a sentence.

    Attributes:
        name: for the report.
        argv: as of `python SCRIPT ...`; "given/tiny" is a finished run, "images" a folder.
        says: pattern of stderr (case does not matter).
        files: files to write before, by name; None makes a FIFO.
        code: exit code; 0 where the command says what it leaves out and goes on.
    """

    name: str
    argv: tuple[str, ...]
    says: str
    files: dict[str, bytes | None] = field(default_factory=dict)
    code: int = REFUSED


TRAIN = ("scripts/train.py", "--config", "tiny.yaml")
SAMPLE = ("scripts/sample.py", "--run", "given/tiny", "--device", "cpu")
SCORE = ("scripts/evaluate.py", "--extractor", "emoji", "--device", "cpu")

# Keys of a run, and values that none of them may have.
NUMBERS = ("[1, 2]", "{a: 1}", "many", "null", ".nan", ".inf", "-1", "true")
KEYS: dict[str, tuple[str, ...]] = {
    "train.steps": (*NUMBERS, "0", "2.5", "1e30"),
    "train.batch_size": (*NUMBERS, "0", "0.5", "1000000000"),
    "train.micro_batch": ("[1]", "x", ".nan", "0", "-1", "true"),
    "train.optimizer.lr": (*NUMBERS, "0"),
    "train.optimizer.betas": ("0.9", "[0.9]", "[0.9, 1.0]", "[0.9, -0.1]", "[.nan, 0.9]", "[a, b]"),
    "train.optimizer.weight_decay": ("-1", ".nan", "x", "[0]"),
    "train.optimizer.kind": ("adam_ww", "null", "1"),
    "train.warmup": ("-1", "x", ".nan", "0.5"),
    "train.schedule": ("linear", "null", "1"),
    "train.clip": ("0", "-1", ".nan", ".inf", "x"),
    "train.precision": ("fp8", "16", "null"),
    "train.compile": ("1", "maybe", "null"),
    "train.checkpoint_gradients": ("1", "maybe"),
    "train.ema_decay": ("1", "1.5", "-0.1", ".nan", "x"),
    "train.label_dropout": ("-0.1", "1.1", ".nan", "x"),
    "train.log_every": ("0", "-1", "x", "0.5", ".inf"),
    "train.save_every": ("0", "-1", "x"),
    "train.retain": ("0", "-1", "x"),
    "train.report": ("1", "x"),
    "train.threads": ("0", "-1", "x", "1000000"),
    "train.trackers": ("wandb", "[nobody]", "[1]"),
    "sample.every": ("-1", "x", ".nan"),
    "sample.classes": ("0", "-1", "x"),
    "sample.per_class": ("0", "-1", "x"),
    "sample.steps": ("0", "-1", "x", "0.5"),
    "sample.guidance": (".nan", ".inf", "x", "[1]"),
    "sample.sampler": ("ddim", "1", "Heun"),
    "eval.every": ("-1", "x"),
    "eval.num": ("0", "-1", "x"),
    "eval.batch": ("0", "x"),
    "eval.metrics": ("[]", "[fod]", "fid", "[1]", "[fid, fid]"),
    "eval.extractor": ("clip", "1"),
    "model.kind": ("dimm", "null", "1", "[dim]"),
    "model.image_size": ("0", "-8", "9", "16", "x", "8.5"),
    "model.channels": ("0", "1", "x"),
    "model.n_classes": ("-1", "3", "x"),
    "model.dim": ("0", "-1", "x", "2.5", "1000000"),
    "model.depth": ("0", "2", "4", "-1", "x", "1000000001"),
    "model.patch": ("0", "3", "-1", "x"),
    "model.pads": ("2", "-1", "x"),
    "model.pads_in_route": ("dropped", "1"),
    "model.mixer.kind": ("mamba9", "null"),
    "model.mixer.d_state": ("0", "65", "x"),
    "model.mixer.d_conv": ("1", "5", "x"),
    "model.mixer.expand": ("0", "x"),
    "model.mixer.gap_decay": ("1", "x"),
    "objective.kind": ("ddpm", "null"),
    "objective.predict": ("noise", "1"),
    "objective.time": ("cosine", "1"),
    "objective.std": ("0", "-1", ".nan", "x"),
    "objective.mean": (".nan", ".inf", "x"),
    "routing.routes": ("1", "x", "{start: 0}", "[{start: 0}]", "[1]", "[{stop: 1, drop: 0.5}]"),
    "routing.routes.0.start": ("-9", "2", "3", "x", "0.5"),
    "routing.routes.0.stop": ("0", "4", "99", "x", "1.5"),
    "routing.routes.0.drop": ("1", "-0.1", "1.5", ".nan", "x", "0.01"),
    "routing.routes.0.rejoin": ("stop", "1"),
    "routing.routes.0.select": ("random", "{kind: best}", "{kind: cells, size: 3}", "{size: 2}"),
    "routing.routes.0.keep": ("[99]", "[-30]", "[0, 0]", "[0.5]", "x"),
    "routing.routes.7.start": ("1",),
    "routing.loss": ("all", "{kind: some}", "{kind: per_route, weight: .nan}"),
    "routing.schedule.dense_tail": ("-0.1", "1.5", ".nan", "x"),
    "routing.schedule.levels": ("0", "-1", "x"),
    "data.kind": ("imagenet", "null", "1"),
    "data.size": ("9", "0", "x", "64"),
    "data.flip": ("1", "x"),
    "seed": ("x", "0.5", "[1]", "null"),
    "name": ("..", ".", "''", "a/b", r'"a\nb"', r'"a\\b"', "'\0'", "[a]", "n" * 300),
    "out": ("[a]", "null", "tiny.yaml"),
}
UNKNOWN = (
    *("train.setps", "trian.steps", "model.width", "routing.route", "objective.sigma", "sampel"),
    *("data.path", "eval.evry", "model.mixer.states", "train.optimizer.rate", "routing.loss.x"),
)


def configurations() -> Iterator[Line]:
    """Each key with each bad value; unknown keys; malformed overrides."""
    for key, values in KEYS.items():
        last = [part for part in key.split(".") if not part.isdigit()][-1]
        for value in values:
            says = rf"{last}|{key.split('.')[0]}"
            yield Line(f"{key}={value[:30]}", (*TRAIN, f"{key}={value}"), says)
    for key in UNKNOWN:
        yield Line(f"{key}=1", (*TRAIN, f"{key}=1"), "not a known key|known|missing|kind")
    for text in ("steps", "=3", "train.=1", "train..steps=1", "train.steps", "train.steps=[", "=="):
        yield Line(f"override {text}", (*TRAIN, text), "override|known|key")
    heun = (*TRAIN, "objective.kind=noise", "sample.sampler=heun")
    yield Line("heun under noise prediction", heun, "heun")
    folder = (*TRAIN, "data={kind: folder, path: nowhere, size: 8}")
    yield Line("a folder that is not there", folder, "nowhere")
    yield Line(
        "a folder of another size", (*TRAIN, "data={kind: folder, path: images, size: 0}"), "size"
    )


def files() -> Iterator[Line]:
    """Configuration files and arrays that cannot be read."""
    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
        for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
    )
    texts: dict[str, bytes] = {
        "empty": b"",
        "not UTF-8": b"name: \xff\xfe\n",
        "NUL": b"name: a\x00b\n",
        "a list": b"- name\n",
        "a word": b"name\n",
        "tabs": b"name:\n\t- a\n",
        "an alias of itself": b"a: &a [*a]\n",
        "the billion laughs": laughs.encode(),
        "deep nesting": b"a: " + b"[" * 5000 + b"]" * 5000 + b"\n",
        "a huge integer": b"seed: " + b"9" * 6000 + b"\n",
        "a Python tag": b"name: !!python/object/apply:os.system ['true']\n",
        "an unknown tag": b"name: !mine x\n",
        "a doubled key": b"name: a\nname: b\n",
        "two documents": b"name: a\n---\nname: b\n",
        "a key that is a list": b"[a, b]: 1\n",
        "a merge of nothing": b"<<: *nothing\n",
    }
    for name, text in texts.items():
        line = ("scripts/train.py", "--config", "bad.yaml")
        yield Line(f"yaml: {name}", line, r"bad\.yaml", {"bad.yaml": text})
        line = ("scripts/plan.py", "--config", "bad.yaml")
        yield Line(f"plan, yaml: {name}", line, r"bad\.yaml", {"bad.yaml": text})
    for script in ("scripts/train.py", "scripts/plan.py"):
        yield Line(f"{script}: no such file", (script, "--config", "none.yaml"), r"none\.yaml")
        yield Line(f"{script}: a folder", (script, "--config", "images"), "images")
        yield Line(f"{script}: nothing", (script,), "--config")
    arrays: dict[str, bytes] = {
        "empty": b"",
        "no zip": b"PK\x03\x04 nothing",
        "text": b"images",
        "objects": _npz(images=np.array([{"a": 1}], dtype=object)),
        "floats": _npz(images=np.zeros((4, 8, 8, 3), np.float32)),
        "no images": _npz(pictures=np.zeros((4, 8, 8, 3), np.uint8)),
        "one image, no batch": _npz(images=np.zeros((8, 8, 3), np.uint8)),
        "no image": _npz(images=np.zeros((0, 8, 8, 3), np.uint8)),
        "short labels": _npz(images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.zeros(3, int)),
        "float labels": _npz(images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.zeros(4)),
        "negative labels": _npz(images=np.zeros((4, 8, 8, 3), np.uint8), labels=-np.ones(4, int)),
        "huge labels": _npz(
            images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.full(4, 2**64 - 1, np.uint64)
        ),
        "truncated": _npz(images=np.zeros((400, 8, 8, 3), np.uint8))[:9000],
        "another size": _npz(images=np.zeros((4, 16, 16, 3), np.uint8), labels=np.zeros(4, int)),
    }
    for name, content in arrays.items():
        line = (*TRAIN, "data={kind: array, path: bad.npz}", "model.n_classes=1")
        yield Line(f"array: {name}", line, r"bad\.npz|model\.", {"bad.npz": content})
        line = (*SCORE, "--samples", "bad.npz", "--reference", "real.npz", "--metrics", "fid")
        if name not in ("short labels", "float labels", "negative labels", "huge labels"):
            yield Line(f"samples: {name}", line, r"bad\.npz|images|size", {"bad.npz": content})


def _npz(**arrays: np.ndarray) -> bytes:
    import io

    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def options() -> Iterator[Line]:
    """Options of sample, evaluate, prepare, plan, report and convert."""
    for option, values in {
        "--num": ("0", "-1", "x", "1.5", "1000000000000"),
        "--batch": ("0", "-1", "x"),
        "--per-class": ("0", "-1", "x", "1000000000000"),
        "--steps": ("0", "-1", "x"),
        "--guidance": ("nan", "inf", "x"),
        "--sampler": ("ddim", "HEUN"),
        "--weak-drop": ("1", "-0.1", "nan", "x"),
        "--checkpoint": ("5", "-1", "x"),
        "--class": ("Unicorns", "", "99"),
        "--precision": ("fp8",),
        "--device": ("tpu", "cuda:99", "nothing"),
        "--vae": ("somewhere",),
        "--seed": ("x", "1.5"),
        "--strong-drop": ("0.1", "nan"),
    }.items():
        for value in values:
            line = (*SAMPLE, option, value, *(("--npz", "a.npz") if option == "--num" else ()))
            says = f"{option.strip('-').replace('-', '.')}|{option}|class|expected one argument"
            yield Line(f"sample {option} {value}", line, says)
    yield Line("sample: no run", ("scripts/sample.py",), "--run")
    for name, where in {
        "nowhere": "nowhere",
        "a file": "tiny.yaml",
        "an empty run": "images",
    }.items():
        for script in ("scripts/sample.py", "scripts/report.py"):
            yield Line(f"{script}: {name}", (script, "--run", where), where)
    yield Line("interval", (*SAMPLE, "--interval", "0.5", "0.1"), "interval")
    yield Line("interval of NaN", (*SAMPLE, "--interval", "nan", "1"), "interval")
    yield Line("num without npz", (*SAMPLE, "--num", "4"), "npz")
    yield Line("npz without num", (*SAMPLE, "--npz", "a.npz"), "num")
    yield Line("png without num", (*SAMPLE, "--png", "a"), "png")
    yield Line("another suffix", (*SAMPLE, "--num", "4", "--npz", "a.txt"), "npz")
    yield Line("out is a folder", (*SAMPLE, "--steps", "1", "--out", "images"), "images")
    yield Line("out in no folder", (*SAMPLE, "--steps", "1", "--out", "tiny.yaml/a.png"), "tiny")
    real = ("--reference", "real.npz", "--metrics", "fid")
    for name, line, says in (
        ("nothing", SCORE, "samples|run"),
        ("no reference", (*SCORE, "--samples", "real.npz"), "reference"),
        ("no such samples", (*SCORE, "--samples", "none.npz", *real), r"none\.npz"),
        (
            "no such reference",
            (*SCORE, "--samples", "real.npz", "--reference", "no.npz"),
            r"no\.npz",
        ),
        ("unknown metric", (*SCORE, "--samples", "real.npz", *real, "--metrics", "fod"), "fod"),
        ("no metric", (*SCORE, "--samples", "real.npz", *real, "--metrics", ""), "metric"),
        ("both ways", (*SCORE, "--samples", "real.npz", "--run", "given/tiny", *real), "samples"),
        (
            "sweep without num",
            (*SCORE, "--run", "given/tiny", "--sweep", "guidance=1", *real),
            "num",
        ),
        ("weights of emoji", (*SCORE, "--samples", "real.npz", *real, "--weights", "a"), "weights"),
        ("batch 0", (*SCORE, "--samples", "real.npz", *real, "--batch", "0"), "batch"),
        ("unknown device", (*SCORE, "--samples", "real.npz", *real, "--device", "x"), "device"),
        ("run without num", (*SCORE, "--run", "given/tiny", *real), "num"),
    ):
        yield Line(f"evaluate: {name}", line, says)
    for sweep in (
        "guidance",
        "guidance=",
        "guidance=a",
        "colour=1",
        "steps=0",
        "guidance=nan",
        "=1",
    ):
        line = (*SCORE, "--run", "given/tiny", "--num", "66", "--sweep", sweep, *real)
        yield Line(f"evaluate: sweep {sweep}", line, "sweep|guidance|steps")
    line = (*SCORE, "--run", "given/tiny", "--num", "1000000000000", "--sweep", "guidance=1", *real)
    yield Line("evaluate: more images than memory", line, "num.* memory")
    prepare = ("scripts/prepare_latents.py", "--device", "cpu")
    small = ("--resolution", "16")
    made = (*prepare, "--out", "l", "--data", "images", "--vae", "vae")
    for name, line, says in (
        ("nothing", prepare, "--out"),
        ("no data", (*prepare, "--out", "l", "--vae", "vae"), "data"),
        ("no vae", (*prepare, "--out", "l", "--data", "images"), "vae"),
        ("no such data", (*prepare, "--out", "l", "--data", "none", "--vae", "vae"), "none"),
        ("data is a file", (*prepare, "--out", "l", "--data", "tiny.yaml", "--vae", "vae"), "tiny"),
        (
            "no such vae",
            (*prepare, "--out", "l", "--data", "images", "--vae", "novae", *small),
            "novae",
        ),
        (
            "vae is a run",
            (*prepare, "--out", "l", "--data", "images", "--vae", "given", *small),
            "given",
        ),
        (
            "resolution",
            (*made, "--resolution", "0"),
            "resolution",
        ),
        (
            "resolution 17",
            (*made, "--resolution", "17"),
            "17|resolution",
        ),
        (
            "batch",
            (*made, *small, "--batch", "0"),
            "batch",
        ),
        (
            "shard size",
            (
                *prepare,
                "--out",
                "l",
                "--data",
                "images",
                "--vae",
                "vae",
                *small,
                "--shard-size",
                "0",
            ),
            "shard",
        ),
        (
            "workers",
            (*made, *small, "--workers", "-1"),
            "workers",
        ),
        (
            "scale",
            (*prepare, "--out", "l", "--from", "edm2", "--data", "images", "--scale", "0"),
            "scale",
        ),
        (
            "a folder with other things",
            (*prepare, "--out", "images", "--data", "images", "--vae", "vae", *small),
            "images",
        ),
        ("unknown format", (*prepare, "--out", "l", "--from", "lmdb", "--data", "images"), "from"),
        ("verify nothing", (*prepare, "--out", "none", "--verify"), "none"),
    ):
        yield Line(f"prepare: {name}", line, says)
    convert = ("scripts/convert_checkpoint.py",)
    for name, line, says in (
        ("nothing", convert, "--from|--to"),
        ("no weights", (*convert, "--from", "dit", "--out", "o"), "weights"),
        (
            "no such weights",
            (*convert, "--from", "dit", "--weights", "no.pt", "--out", "o"),
            r"no\.pt",
        ),
        ("text", (*convert, "--from", "dit", "--weights", "tiny.yaml", "--out", "o"), "tiny"),
        ("a DiM", (*convert, "--to", "dit", "--run", "given/tiny", "--out", "o.pt"), "dit|DiT"),
        ("no such run", (*convert, "--to", "dit", "--run", "none", "--out", "o.pt"), "none"),
    ):
        yield Line(f"convert: {name}", line, says)
    yield Line("plan: out", ("scripts/plan.py", "--config", "tiny.yaml", "--out", "a.xyz"), "xyz")
    yield Line(
        "plan: folder", ("scripts/plan.py", "--config", "tiny.yaml", "--out", "images"), "images"
    )
    yield Line(
        "report: images", ("scripts/report.py", "--run", "given/tiny", "--images", "0"), "images"
    )


def further_commands() -> Iterator[Line]:
    """Options of average, cache, compare, app and env."""
    average = ("scripts/average.py", "--run", "given/tiny")
    for width in ("0", "-1", "nan", "inf", "x", "0.9"):
        yield Line(f"average --width {width}", (*average, "--width", width), "width")
    for step in ("x", "-1", "3", "999"):
        line = (*average, "--width", "0.1", "--step", step)
        yield Line(f"average --step {step}", line, "step")
    for name, line, says in (
        ("no width", average, "--width"),
        ("no run", ("scripts/average.py", "--width", "0.1"), "--run"),
        ("no such run", ("scripts/average.py", "--run", "no", "--width", "0.1"), "no"),
        ("no snapshots", ("scripts/average.py", "--run", "images", "--width", "0.1"), "images"),
        ("out is a file", (*average, "--width", "0.1", "--out", "tiny.yaml"), "tiny"),
    ):
        yield Line(f"average: {name}", line, says)
    yield from _cache()
    compare, app = (("tread_ssm/__main__.py", name) for name in ("compare", "app"))
    for name, line, says in (
        ("no runs", compare, "runs"),
        ("no such run", (*compare, "given/tiny", "nowhere"), "nowhere"),
        ("an empty run", (*compare, "given/tiny", "images"), "images"),
        ("a file", (*compare, "tiny.yaml"), "tiny"),
        ("out is a file", (*compare, "given/tiny", "--out", "tiny.yaml"), "tiny"),
        ("an unknown option", (*compare, "given/tiny", "--smooth", "2"), "--smooth"),
    ):
        yield Line(f"compare: {name}", line, says)
    for name, line, says in (
        ("no run", app, "--run"),
        ("no such run", (*app, "--run", "nowhere"), "nowhere|Gradio"),
        ("an empty run", (*app, "--run", "images"), "images|Gradio"),
        ("no number", (*app, "--run", "given/tiny", "--port", "x"), "--port"),
        ("no port", (*app, "--run", "given/tiny", "--port", "99999999"), "port"),
        ("no device", (*app, "--run", "given/tiny", "--device", "nothing"), "device|Gradio"),
    ):
        yield Line(f"app: {name}", line, says)
    for name, line, says in (
        ("an option", ("tread_ssm/__main__.py", "env", "--all"), "--all"),
        ("no command", ("tread_ssm/__main__.py", "trian"), "trian"),
    ):
        yield Line(f"tread-ssm: {name}", line, says)


def _cache() -> Iterator[Line]:
    cache = ("scripts/cache_features.py", "--library", "transformers", "--device", "cpu")
    whole = (*cache, "--data", "images", "--model", "vit", "--out", "f")
    for option, values in {
        "--size": ("0", "-1", "x", "15"),
        "--batch": ("0", "-1", "x"),
        "--shard-size": ("0", "x"),
        "--workers": ("-1", "x"),
        "--precision": ("fp8",),
        "--device": ("nothing", "cuda:99"),
        "--library": ("keras",),
        "--processes": ("0", "-1", "x"),
        "--weights": ("none.pt",),
    }.items():
        for value in values:
            size = () if option == "--size" else ("--size", "16")
            line = (*whole, *size, option, value)
            says = option.strip("-").replace("-", ".")
            yield Line(f"cache {option} {value}", line, f"{says}|15 x 15 pixels")
    small = ("--size", "16")
    for name, line, says in (
        ("no data", (*cache, "--model", "vit", "--out", "f"), "--data"),
        ("no such data", (*cache, "--data", "no", "--model", "vit", "--out", "f", *small), "no"),
        (
            "no images",
            (*cache, "--data", "vit", "--model", "vit", "--out", "f", *small),
            "vit.*image|image.*vit",
        ),
        (
            "no such model",
            (*cache, "--data", "images", "--model", "nowhere", "--out", "f", *small),
            "nowhere",
        ),
        (
            "a model of timm that is none",
            ("scripts/cache_features.py", "--data", "images", "--model", "vit_x", "--out", "f"),
            "vit_x",
        ),
        ("out is a file", (*whole[:-1], "tiny.yaml", *small), "tiny"),
        ("out holds other things", (*whole[:-1], "images", *small), "images"),
    ):
        yield Line(f"cache: {name}", line, says)


def damaged() -> Iterator[Line]:
    """Runs whose files say something else than they should."""
    for file in ("config.json", "config.yaml"):
        for name, content in {
            "empty": b"",
            "a list": b"[]",
            "not UTF-8": b"\xff\xfe",
            "nested deep": b"[" * 3000 + b"]" * 3000,
            "another object": b'{"step": "x"}',
        }.items():
            files = {f"given/tiny/{file}": content}
            if file == "config.yaml":
                line = ("scripts/report.py", "--run", "given/tiny")
                yield Line(f"report, {file}: {name}", line, "config", files)
            else:
                yield Line(f"sample, {file}: {name}", SAMPLE, "config", files)
    fifo: dict[str, bytes | None] = {"images/class0/pipe.png": None}
    line = (*TRAIN, "data={kind: folder, path: images, size: 8}", "model.n_classes=1")
    yield Line("a FIFO among images", line, r"1 of 7 files.*pipe\.png", fifo, code=0)


def bad_lines() -> Iterator[Line]:
    """All rows."""
    for rows in (configurations, files, options, further_commands, damaged):
        yield from rows()


def check(harness: Harness, row: Line) -> Failure | None:
    """What is wrong with how a row is answered; None where it is refused as it should be."""
    folder = harness.fresh()
    try:
        for name, content in row.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                os.mkfifo(path)
            else:
                path.write_bytes(content)
        outcome = harness.server.run(Trial(python(*row.argv), str(folder), limit=60))
    finally:
        shutil.rmtree(folder)
    said = (outcome.err + outcome.out if row.code == 0 else outcome.err).replace("\r", "\n").strip()
    if outcome.hung:
        return Failure("line", row.name, "hung")
    if outcome.code < 0:
        return Failure("line", row.name, f"crashed by signal {-outcome.code}")
    if "Traceback" in said:
        return Failure("line", row.name, f"traceback: {said.splitlines()[-1][:150]}")
    if outcome.code == 0 != row.code:
        return Failure("line", row.name, "silent: exit 0")
    if outcome.code != row.code:
        return Failure("line", row.name, f"exit {outcome.code}, not {row.code}: {said[-150:]}")
    if not re.search(row.says, said, re.IGNORECASE):
        return Failure("line", row.name, f"says {said[-200:]!r}, not {row.says!r}")
    return None
