"""What a configuration leaves open is filled in: sizes, channels and classes as the data is."""

from __future__ import annotations

from tread_ssm.config.strict import Document, part
from tread_ssm.data import Data, DataConfig, MissingDataError

_SIZES = ("image_size", "channels", "n_classes")
_NO_DATA = {"image_size": 64, "channels": 3, "n_classes": 0}
_WIDEST_HEAD = 64


def infer(document: Document) -> None:
    """Fill in the model's sizes, a DiT's heads and the size of a folder's images, if not given.

    The data is opened, but no image is read. Where there is none yet, the model is made for
    64 pixels without classes, so that the plan can be looked at.

    Args:
        document: A run's parsed file; its tree and its notes are added to.

    Raises:
        ConfigError: The data cannot be used.
    """
    data, model = document.tree.get("data"), document.tree.get("model")
    if not isinstance(data, dict) or not isinstance(model, dict):
        return  # what is wrong with them is said when the run is built
    _infer_heads(model, document)
    missing = [key for key in _SIZES if model.get(key) is None]
    sizeless = data.get("kind") == "folder" and data.get("size") is None
    if not missing and not sizeless:
        return
    try:
        opened = _opened(document, data)
    except MissingDataError:
        if sizeless:
            data["size"] = _NO_DATA["image_size"]
        model.update({key: _NO_DATA[key] for key in missing})
        return
    channels, size, _ = opened.shape
    found = {"image_size": size, "channels": channels, "n_classes": len(opened.class_names)}
    if sizeless:
        data["size"] = size
    if data.get("kind") == "folder":
        document.notes.append(
            f"{len(opened.labels):,} images in {data['path']}, each cut to its central square and "
            f"scaled to {size} x {size} pixels{' (data.size)' if sizeless else ''}."
        )
    if missing:
        model.update({key: found[key] for key in missing})
        taken = ", ".join(f"model.{key} {found[key]}" for key in missing)
        document.notes.append(f"As in the data: {taken}{_classes(opened)}.")


def _infer_heads(model: dict[str, object], document: Document) -> None:
    """As few heads as heads of at most 64 channels allow, if a DiT's are not given."""
    dim = model.get("dim")
    if model.get("kind") != "dit" or model.get("heads") is not None or not isinstance(dim, int):
        return
    if dim < 4 or dim % 4:
        return  # the model refuses it
    # Rotary positions need a multiple of 4 channels a head.
    heads = next(h for h in range(1, dim) if dim % (4 * h) == 0 and dim // h <= _WIDEST_HEAD)
    model["heads"] = heads
    document.notes.append(f"model.heads is {heads}: heads of {dim // heads} channels.")


def _opened(document: Document, data: dict[str, object]) -> Data:
    # Damaged images are looked for only when the run starts.
    unchecked = data | {"check": False} if data.get("check") is True else data
    config: DataConfig = part(DataConfig, unchecked, "data", document)
    return config.open()


def _classes(data: Data) -> str:
    names = list(data.class_names)
    if not names:
        return ""
    return f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
