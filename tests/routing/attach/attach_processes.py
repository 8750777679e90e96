"""Run by two processes: attached routes under DistributedDataParallel, prepared by accelerate."""

import torch
from accelerate import Accelerator
from torch import nn

from tread_ssm.routing import Route, RoutePlan, TokenSubset, attach

BATCH, GRID, N, D = 3, (4, 4), 16, 8


def encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
torch.manual_seed(0)
model, whole = encoder(), encoder()
whole.load_state_dict(model.state_dict())
x = torch.randn(2 * BATCH, N, D, generator=torch.Generator().manual_seed(1))
plan = RoutePlan((Route(1, -1),), 6)
draw = plan.draw(2 * BATCH, GRID, torch.Generator().manual_seed(2))
rows = slice(accelerator.process_index * BATCH, (accelerator.process_index + 1) * BATCH)
mine = tuple((r, TokenSubset(s.index[rows], s.length)) for r, s in draw)

module = accelerator.prepare(model)
assert isinstance(module, nn.parallel.DistributedDataParallel)
with attach(model.layers).using(mine):
    accelerator.backward(module(x[rows]).square().mean())
with attach(whole.layers).using(draw):
    whole(x).square().mean().backward()
for own, expected in zip(model.parameters(), whole.parameters(), strict=True):
    torch.testing.assert_close(own.grad, expected.grad, rtol=1e-4, atol=1e-6)
print("agree")
accelerator.end_training()
