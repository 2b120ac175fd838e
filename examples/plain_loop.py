"""The K x G network in a training loop of your own: no run folder, no configuration file, your data loader.

Run it with: python examples/plain_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import locallearn as ll

torch.manual_seed(0)
found = load_digits()
images = torch.from_numpy(found.images).float()[:, None] / 16 - 0.3
labels = torch.from_numpy(found.target)
loader = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=64, shuffle=True, drop_last=True)

config = ll.RunConfig(method="gn-dgl", model="resnet8", depth=3, width=(2,))
network = ll.build_network(config, ll.ImageShape(channels=1, size=8, classes=10))
steps = [ll.LocalStep(module, torch.optim.AdamW(module.parameters(), lr=2e-3)) for module in network]

for epoch in range(3):
    for number, (x, y) in enumerate(loader):
        batch, features = ll.Batch(x, y, x, number), x
        for step in steps:  # forward, loss, backward and update of one module; nothing flows back to the one before
            features, losses = step(features, batch)
    print(f"epoch {epoch + 1}: loss of the classifier {losses.total.item():.2f}")

network.eval()
with torch.inference_mode():
    accuracy = (network(images[1400:]).argmax(-1) == labels[1400:]).float().mean().item()
assert accuracy > 0.85
print(f"test accuracy above 85 %: {accuracy > 0.85}")
