"""What is different where FSDP2 spreads a model's parameters over the processes (as DTensors).

Elsewhere every function here hands back what it got.
"""

from __future__ import annotations

import os
import warnings

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tread_ssm.errors import ConfigError
from tread_ssm.training.heads import backbone_of


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """accelerate's settings where its launcher asked for FSDP, else None.

    FSDP's own mixed precision casts whole blocks, the residual stream, A and the step bias to half
    precision. It stays off: autocast does here what it does everywhere else.

    Raises:
        ConfigError: The launcher asked for DeepSpeed, FSDP 1, or FSDP's own recomputation.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ConfigError("DeepSpeed is not supported; shard with configs/accelerate/fsdp2.yaml.")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("FSDP version 1 is not supported; set fsdp_version to 2.")
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise ConfigError(
            "fsdp_activation_checkpointing is set; leave it to train.checkpoint_gradients, which "
            "does the same for every launcher."
        )
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
    )


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """accelerate's `prepare`; under FSDP2 each block of the model is sharded by itself."""
    # Nobody here changes a model's output in place, DDP copies small gradients just as well, and
    # accelerate 1.8 says that it upcasts weights which are float32 already.
    for text in (
        "FSDP2-wrapped module .* returned a view",
        "Grad strides do not match bucket",
        "FSDP upcast of low precision parameters",
    ):
        warnings.filterwarnings("ignore", message=text)
    if accelerator.is_fsdp2:
        plugin = accelerator.state.fsdp_plugin
        plugin.transformer_cls_names_to_wrap = [type(backbone_of(model).blocks[0]).__name__]
        if accelerator.mixed_precision != "no":  # accelerate leaves it to FSDP's casts
            half = {"bf16": torch.bfloat16, "fp16": torch.float16}[accelerator.mixed_precision]
            autocast = torch.autocast(accelerator.device.type, half)
            setattr(model, "forward", autocast(model.forward))  # noqa: B010  (mypy knows a method)
    module, optimizer = accelerator.prepare(model, optimizer)
    return module, optimizer


def is_shared(module: nn.Module) -> bool:
    """Whether a backward pass through a prepared module exchanges gradients by itself."""
    return isinstance(module, DistributedDataParallel | FSDPModule)


def is_sharded(tensor: Tensor) -> bool:
    """Whether processes hold parts of a tensor."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; shares its memory. Call without gradients."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is sharded, every process calls and gets a copy."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(tensor: Tensor, values: Tensor) -> None:
    """Set a tensor to `values` (all of them, on every process), in place."""
    if isinstance(tensor, DTensor):
        values = values.to(tensor.device)
        mesh, placements = tensor.device_mesh, tensor.placements
        values = distribute_tensor(values, mesh, placements, src_data_rank=None)
    local(tensor).copy_(local(values))


def reshard(model: nn.Module) -> None:
    """Drop the gathered copies of parameters: a forward pass without a backward one leaves some,
    and changes to the shards would not reach them."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
