"""Hugging Face's ViT as four local modules, on the digits of scikit-learn.

python examples/vit_on_digits.py [EPOCHS] [DEPTH]: a depth of 1 is plain backpropagation.
"""

import sys

import torch
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

import locallearn as ll

EPOCHS, DEPTH = (int(value) for value in [*sys.argv[1:], *("10", "4")[len(sys.argv) - 1 :]])


def digits():
    """Images [N, 1, 8, 8] and labels [N], every fifth one for the test."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    labels = torch.tensor(labels)
    test = torch.arange(len(labels)) % 5 == 0
    return (images[~test], labels[~test]), (images[test], labels[test])


def accuracy(model, images, labels):
    """Share of right answers [%] of the model alone: heads are not asked."""
    model.eval()
    with torch.no_grad():
        right = model(pixel_values=images).logits.argmax(-1) == labels
    model.train()
    return 100 * right.float().mean().item()


def adamw(parameters):
    """The optimizer of one module."""
    return torch.optim.AdamW(parameters, lr=3e-3)


torch.manual_seed(0)
torch.set_num_threads(1)
(images, labels), test = digits()
config = ViTConfig(
    image_size=8,
    patch_size=2,
    num_channels=1,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    num_labels=10,
)
model = ViTForImageClassification(config)

example = {"pixel_values": images[:64], "labels": labels[:64]}
network = ll.split(model, depth=DEPTH, example=example, optimizer=adamw)
network.train()
for k, piece in enumerate(network.pieces, start=1):
    print(
        f"module {k} ends after {piece.path or 'the classifier'}: {piece.macs / 64 / 1e6:.2f} M multiply-accumulates"
    )

for epoch in range(1, EPOCHS + 1):
    for chosen in torch.randperm(len(labels)).split(64):
        metrics = network.step({"pixel_values": images[chosen], "labels": labels[chosen]})
    if epoch % 5 == 0 or epoch == EPOCHS:
        losses = " ".join(f"{metrics[f'loss/{k}']:.2f}" for k in range(1, network.depth + 1))
        print(f"epoch {epoch}: losses of the modules {losses}, test accuracy {accuracy(network, *test):.1f} %")

merged = network.merge()
fresh = ViTForImageClassification(config)
fresh.load_state_dict(merged.state_dict())
print(f"merged into {type(merged).__name__}, loaded into a new one: {accuracy(fresh, *test):.1f} %")
