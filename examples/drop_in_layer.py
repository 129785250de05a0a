"""Fuse an ordinary model, check that it computes the same, and add a contractive penalty to its loss.

python examples/drop_in_layer.py
"""

import torch
from torch import nn

import fastae

torch.manual_seed(0)
x, labels = torch.rand(512, 64), torch.randint(10, (512,))
model = nn.Sequential(nn.Linear(64, 256), nn.Sigmoid(), nn.Linear(256, 10))
fused = fastae.fuse(model)  # shares the parameters
difference = (fused(x) - model(x)).abs().max().item()
print(f"fused and plain model differ by {difference:.1e}")
assert difference < 1e-5

encoder = fastae.nn.EncoderLayer(64, 256, activation="sigmoid")  # loads an nn.Linear's state_dict
encoder.load_state_dict(model[0].state_dict())
head = model[2]
optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-2)
penalties = []
for _ in range(50):
    code, penalty = encoder.contractive(x)  # the mean over rows of ||dcode/dx||_F^2
    loss = nn.functional.cross_entropy(head(code), labels) + 0.1 * penalty
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    penalties.append(penalty.item())
print(f"contractive penalty: {penalties[0]:.3f} before, {penalties[-1]:.3f} after training")
assert penalties[-1] < penalties[0]
