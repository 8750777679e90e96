"""DiM's published weights under our names.

The layout is that of the `nnet_ema.pth` files of tyshiwo1/DiM-DiffusionMamba (Teng et al., arXiv
2405.14224): a state dict, whose layers compute what ours do. Times run from 1 there, see
`NoisePrediction.first`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tread_ssm.models.convert import check_names, check_shapes, numbers_of_blocks
from tread_ssm.models.dim import DiM, DiMConfig
from tread_ssm.models.mixers import Mamba1Config

POSITION, PADS = "additional_embed", "a4m_adapter.pad_token"

# Beginnings of names, ours and published; those of blocks follow "blocks.<number>." and
# "transformer_blocks.<number>.".
_PAIRS = (
    ("label_token.", "label_emb."),
    ("patches.projection.", "pos_embed.proj."),
    ("t_cond.hidden.", "adaln_single.emb.timestep_embedder.linear_1."),
    ("t_cond.out.", "adaln_single.emb.timestep_embedder.linear_2."),
    ("label_cond.", "adaln_single.emb.class_embedder.embedding_table."),
    ("modulation.", "adaln_single.linear."),
    ("conv_in.", "a4m_adapter.first_smoother."),
    ("conv_out.", "a4m_adapter.last_smoother."),
    ("position", POSITION),
    ("pads", PADS),
    ("separators", "a4m_adapter.pad_token_dec_split"),
    ("head.norm.", "norm_out.norm."),
    ("head.modulation.", "proj_out_1."),
    ("head.linear.", "proj_out_2."),
)
_BLOCK_PAIRS = (
    ("norm.", "norm1.norm."),
    ("mixer.", "attn1."),
    ("table", "scale_shift_table"),
    ("skip.joint.", "skip_linear."),
    ("skip.apart.", "skip_linear."),
)
# Tensors that have another shape there: from the published one to ours.
_BACK: dict[str, Callable[[Tensor], Tensor]] = {
    "position": lambda x: x[0],
    "separators": lambda x: x[0],
    "pads": lambda x: x[0].T,
}
# The weights whose shapes tell the sizes of the network, and their numbers of dimensions.
_TELLING = {
    "label_emb.weight": 2,
    "pos_embed.proj.weight": 4,
    POSITION: 3,
    PADS: 3,
    "transformer_blocks.0.attn1.in_proj.weight": 2,
    "transformer_blocks.0.attn1.conv1d.weight": 3,
    "transformer_blocks.0.attn1.A_log": 2,
}


def from_published(weights: Mapping[str, Tensor]) -> tuple[DiMConfig, dict[str, Tensor]]:
    """The config and the state dict of our DiM for published weights; tensors are not copied.

    Raises:
        ValueError: Names or shapes are not those of a class-conditional DiM.
    """
    config = config_of(weights)
    with torch.device("meta"):
        ours = DiM(config).state_dict()
    names = {name: published_name(name) for name in ours}
    shapes = {names[n]: tuple(t.shape) for n, t in ours.items()}
    for name in ("position", "separators"):
        shapes[names[name]] = (1, *shapes[names[name]])
    shapes[PADS] = (1, config.dim, config.pads)
    check_names("DiM", shapes, weights)
    check_shapes("DiM", shapes, weights)
    found = {name: weights[old] for name, old in names.items()}
    for name, back in _BACK.items():
        found[name] = back(found[name])
    return config, found


def config_of(weights: Mapping[str, Tensor]) -> DiMConfig:
    """The sizes of a network, by the names and shapes of its published weights.

    Raises:
        ValueError: They are not those of a class-conditional DiM.
    """
    check_names("DiM", _TELLING, weights, complete=False)
    check_shapes("DiM", _TELLING, weights)
    shapes = {name: tuple(weights[name].shape) for name in _TELLING}
    dim, channels, patch, _ = shapes["pos_embed.proj.weight"]
    n_tokens = shapes[POSITION][1] - 2  # t and the label come first
    side = math.isqrt(max(0, n_tokens))
    if side * side != n_tokens:
        raise ValueError(f"{POSITION} has {n_tokens} image tokens; our DiM takes square images.")
    block = "transformer_blocks.0.attn1."
    return DiMConfig(
        image_size=side * patch,
        channels=channels,
        n_classes=shapes["label_emb.weight"][0] - 1,
        dim=dim,
        depth=1 + max(numbers_of_blocks("transformer_blocks", weights)),
        patch=patch,
        pads=shapes[PADS][2],
        mixer=Mamba1Config(
            d_state=shapes[block + "A_log"][1],
            d_conv=shapes[block + "conv1d.weight"][2],
            expand=shapes[block + "in_proj.weight"][0] // (2 * dim),
        ),
    )


def published_name(ours: str) -> str:
    """What the published layout calls one of our tensors."""
    pairs: tuple[tuple[str, str], ...] = _PAIRS
    start = ""
    if ours.startswith("blocks."):
        _, number, ours = ours.split(".", 2)
        pairs, start = _BLOCK_PAIRS, f"transformer_blocks.{number}."
    new, old = next(pair for pair in pairs if ours.startswith(pair[0]))
    return start + old + ours.removeprefix(new)
