"""Whether a run may resume in its folder, and the resolved configuration that is written there."""

from __future__ import annotations

from tread_ssm.config.run import RunConfig, differences, load_config
from tread_ssm.config.strict import dump
from tread_ssm.errors import ConfigError
from tread_ssm.files import replacing

# What may change in the middle of a run: where it stands, what it says, how it computes.
_MAY_CHANGE = (
    "name",
    "out",
    "eval",
    "sample",
    "train.checkpoint_gradients",
    "train.compile",
    "train.keep",
    "train.log_every",
    "train.micro_batch",
    "train.report",
    "train.save_every",
    "train.steps",
    "train.threads",
    "train.trackers",
)


def check_folder(config: RunConfig) -> None:
    """Raises ConfigError where the folder holds checkpoints of a run with other settings."""
    written = config.folder.config
    if not config.folder.checkpoints() or not written.is_file():
        return
    changed = [
        key
        for key in differences(load_config(written), config)
        if not any(key == k or key.startswith(k + ".") for k in _MAY_CHANGE)
    ]
    if changed:
        raise ConfigError(
            f"{config.folder.path} holds a run with other settings for {', '.join(changed)}; "
            f"choose another name or remove that folder."
        )


def write_config(config: RunConfig) -> None:
    """Write the resolved configuration, every default spelled out, as YAML that loads again."""
    with replacing(config.folder.config) as temporary:
        temporary.write_text(dump(config), encoding="utf-8")
