"""Data sets. A kind of data is a file of this folder: its configuration with `open()`, and what
that opens. Here they are one union."""

from tread_ssm.data.arrays import ArrayData, Pixels
from tread_ssm.data.dataset import Augmentation, Data, MissingDataError
from tread_ssm.data.emoji import EmojiData, load_emoji
from tread_ssm.data.folders import FolderData
from tread_ssm.data.latents import LatentData
from tread_ssm.data.values import LatentValues, PixelValues, Values

__all__ = [
    "ArrayData",
    "Augmentation",
    "Data",
    "DataConfig",
    "EmojiData",
    "FolderData",
    "LatentData",
    "LatentValues",
    "MissingDataError",
    "PixelValues",
    "Pixels",
    "Values",
    "load_emoji",
]

DataConfig = EmojiData | ArrayData | FolderData | LatentData
