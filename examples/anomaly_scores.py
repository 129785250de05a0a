"""Score rows by their reconstruction error: train on the digit 0, then find other digits among zeros.

python examples/anomaly_scores.py
"""

import torch
from sklearn.metrics import roc_auc_score

import fastae
from fastae import diagnostics
from fastae.train import load_dataset

data = load_dataset("digits")
assert data.test is not None and data.test.labels is not None and data.train.labels is not None
zeros = torch.from_numpy(data.train.read())[torch.as_tensor(data.train.labels) == 0]

torch.manual_seed(0)
model = fastae.nn.Autoencoder(64, 32, loss="mse", tied=False, corruption=fastae.Gaussian(0.1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(300):
    loss = model(zeros).total
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

scores, _ = diagnostics.reconstruction_errors(model.eval(), torch.from_numpy(data.test.read()))
auc = roc_auc_score(data.test.labels != 0, scores)
print(f"area under the ROC curve, digits 1 to 9 against 0: {auc:.3f}")
assert auc > 0.95
