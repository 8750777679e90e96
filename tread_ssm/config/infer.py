"""What a configuration leaves open is taken from the data: sizes, channels, classes."""

from __future__ import annotations

from tread_ssm.config.strict import Source, part
from tread_ssm.data import Data, DataConfig, MissingDataError

_SIZES = ("image_size", "channels", "n_classes")
_NO_DATA = {"image_size": 64, "channels": 3, "n_classes": 0}


def infer(source: Source) -> None:
    """Fill in the model's sizes, and the size of a folder's images, where they are not given.

    The data is opened, but no image is read. Where there is none yet, the model is made for
    64 pixels without classes, so that the plan can be looked at.

    Args:
        source: A run's parsed file; its tree and its notes are added to.

    Raises:
        ConfigError: The data cannot be used.
    """
    data, model = source.tree.get("data"), source.tree.get("model")
    if not isinstance(data, dict) or not isinstance(model, dict):
        return  # what is wrong with them is said when the run is built
    missing = [key for key in _SIZES if model.get(key) is None]
    sizeless = data.get("kind") == "folder" and data.get("size") is None
    if not missing and not sizeless:
        return
    try:
        opened = _opened(source, data)
    except MissingDataError:
        if sizeless:
            data["size"] = _NO_DATA["image_size"]
        model.update({key: _NO_DATA[key] for key in missing})
        return
    channels, size, _ = opened.shape
    found = {"image_size": size, "channels": channels, "n_classes": len(opened.class_names)}
    if sizeless:
        data["size"] = size
        source.notes.append(
            f"{len(opened.labels):,} images in {data['path']}, each cut to its central square and "
            f"scaled to {size} x {size} pixels (data.size)."
        )
    if missing:
        model.update({key: found[key] for key in missing})
        taken = ", ".join(f"model.{key} {found[key]}" for key in missing)
        source.notes.append(f"As in the data: {taken}{_classes(opened)}.")


def _opened(source: Source, data: dict[str, object]) -> Data:
    # Damaged images are looked for only when the run starts.
    unchecked = data | {"check": False} if data.get("check") is True else data
    config: DataConfig = part(DataConfig, unchecked, "data", source)
    return config.open()


def _classes(data: Data) -> str:
    names = list(data.class_names)
    if not names:
        return ""
    return f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
