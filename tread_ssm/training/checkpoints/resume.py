"""Whether a run may resume in its folder, and what is written there for the next time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tread_ssm.config.check import features_of
from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.config.strict import dump, plain
from tread_ssm.data import Data
from tread_ssm.data.dataset import digest
from tread_ssm.errors import ConfigError
from tread_ssm.files import read_json, remove_left_over, write_json, write_text

# What may change in the middle of a run: where it stands, what it says, how it computes.
_MAY_CHANGE = (
    "name",
    "out",
    "eval",
    "sample",
    "train.checkpoint_gradients",
    "train.compile",
    "train.log_every",
    "train.micro_batch",
    "train.posthoc_ema.every",
    "train.report",
    "train.retain",
    "train.save_every",
    "train.start_from",
    "train.steps",
    "train.threads",
    "train.trackers",
    "train.validate_every",
)


def check_folder(config: RunConfig, data: Data) -> list[str]:
    """Compare with what was trained in the run folder before, and with the data it was trained on.

    Returns:
        What the user should know, in sentences.

    Raises:
        ConfigError: The folder holds checkpoints of a run with other settings or other data.
    """
    folder = config.folder
    done = max(folder.checkpoints(), default=0)
    if not done or not folder.config.is_file():
        return []
    before = load_config(folder.config)
    changed = [
        key
        for key in differences(before, config)
        if not any(key == k or key.startswith(k + ".") for k in _MAY_CHANGE)
    ]
    if changed:
        raise ConfigError(
            f"{folder.path} holds a run with other settings for {', '.join(changed)}; choose "
            f"another name, with train.start_from={folder.checkpoint(done)} to start from its "
            f"weights, or remove that folder."
        )
    if folder.data.is_file():
        _check_data(_recorded(folder.data), _fingerprint(config, data), folder.path)
    was, steps = before.train.steps, config.train.steps
    if steps < done:
        return [f"train.steps is {steps}, but {done} steps are done; their weights are exported."]
    schedule = config.routing.schedule
    timed = config.train.schedule == "cosine" or schedule.dense_tail > 0 or schedule.ramp > 0
    if steps != was and timed:
        return [
            f"train.steps was {was} and is {steps}. The learning rate or the routes depend on it, "
            f"so the result differs from that of a run of {steps} steps."
        ]
    return []


def begin(config: RunConfig, data: Data) -> None:
    """Tidy the run folder and write what the run is. One process calls it and holds the lock."""
    folder = config.folder
    for part in (folder.path, folder.samples, folder.eval_grid(0).parent, folder.pictures):
        remove_left_over(part)
    write_text(folder.config, dump(config))
    write_json(folder.data, _fingerprint(config, data))


def _recorded(path: Path) -> Any:
    """The description of the data that an earlier command wrote. Raises ConfigError."""
    try:
        recorded = read_json(path)
    except ValueError:  # neither JSON nor UTF-8
        recorded = None
    if not isinstance(recorded, dict):
        raise ConfigError(
            f"{path} is damaged, so that nothing tells whether the data is the same. If you are "
            f"sure that it is, remove that file and rerun the command to resume."
        )
    return recorded


def _fingerprint(config: RunConfig, data: Data) -> dict[str, Any]:
    """What the training data is, cached features included."""
    features = features_of(config, data)
    if features is None:
        return data.fingerprint()
    sums = digest(f"{file.name} {file.sha256}" for file in features.manifest.files)
    return data.fingerprint() | {"features": sums}


def _check_data(before: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    # As JSON gives it back: tuples are lists there.
    now = json.loads(json.dumps(found))
    changed = [f"{k} was {before.get(k)} and is {now[k]}" for k in now if before.get(k) != now[k]]
    if changed:
        raise ConfigError(
            f"{folder} holds a run on other data: {'; '.join(changed)}. Bring the data back, or "
            f"choose another name."
        )


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The keys in which two configurations (or their parts) differ."""
    old, new = plain(old), plain(new)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = (dict(enumerate(v)) for v in (old, new))
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [path] if old != new else []
    keys = list(dict.fromkeys([*old, *new]))
    return [
        d
        for k in keys
        for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))
    ]
