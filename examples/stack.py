"""Pretrain a stack of denoising autoencoders on digits, then train a classifier on its codes.

python examples/stack.py
"""

import tempfile

import torch

from fastae.train import Stage, TrainConfig, load_checkpoint, load_dataset, train

with tempfile.TemporaryDirectory() as folder:
    config = TrainConfig(
        data="digits",
        sizes=(64, 256, 128),
        corruption=("masking:0.25", "none"),  # one value, or one per layer
        pretrain=Stage(epochs=20),
        classifier=True,
        supervised=Stage(epochs=30),
        out=f"{folder}/run",
        tensorboard=False,
    )
    train(config)
    checkpoint = load_checkpoint(f"{folder}/run")  # as after a restart

test = load_dataset("digits").test
assert test is not None and test.labels is not None and checkpoint.classifier is not None
x, labels = torch.from_numpy(test.read()), torch.as_tensor(test.labels)
with torch.no_grad():
    codes = checkpoint.stack.encode(x)
    error = (checkpoint.classifier(x).argmax(1) != labels).float().mean().item()
print(f"codes of the test rows: {list(codes.shape)}")
print(f"test error: {100 * error:.1f} %")
assert error < 0.15
