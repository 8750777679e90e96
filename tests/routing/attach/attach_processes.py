"""Run by two processes: attached routes under DistributedDataParallel, prepared by accelerate.

Each process draws its own tokens; the gradients are those of one process that routes the whole
batch with both draws. Prints what each process drew.
"""

import hashlib

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import nn

from tread_ssm.routing import TokenSubset, attach

BATCH, N, D, STEPS = 3, 16, 8, 2


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
model, whole = encoder(), encoder()
x = torch.randn(2 * BATCH, N, D, generator=torch.Generator().manual_seed(1))
rows = slice(accelerator.process_index * BATCH, (accelerator.process_index + 1) * BATCH)

module = accelerator.prepare(model)
assert isinstance(module, nn.parallel.DistributedDataParallel)
routing, reference = attach(model.layers, drop=0.5), attach(whole.layers)
drawn = []
for _ in range(STEPS):
    accelerator.backward(module(x[rows]).square().mean())
    ((route, subset),) = routing.draw
    both = gather(subset.index)
    assert not torch.equal(both[:BATCH], both[BATCH:])
    with reference.using(((route, TokenSubset(both, N)),)):
        whole(x).square().mean().backward()
    for own, expected in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-4, atol=1e-6)
    drawn.append(subset.index)
    routing.step()
assert not torch.equal(*drawn)
digest = hashlib.sha256(torch.stack(drawn).numpy().tobytes()).hexdigest()
print(f"process {accelerator.process_index} drew {digest}", flush=True)
accelerator.end_training()
