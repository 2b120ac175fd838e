"""torch's own transformer encoder with a padding mask, which it packs into a nested tensor in eval mode."""

import pytest
import torch
from torch import nn

import locallearn as ll

pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.score = nn.Linear(16, 3)

    def forward(self, x, src_key_padding_mask=None):
        return self.score(self.encoder(self.embed(x), src_key_padding_mask=src_key_padding_mask).mean(1))


def example():
    mask = torch.zeros(8, 6, dtype=torch.bool)
    mask[1:, 4:] = True
    return {"x": torch.rand(8, 6, 5), "src_key_padding_mask": mask, "labels": torch.arange(8) % 3}


def split(batch):
    torch.manual_seed(0)
    return ll.split(Encoder(), depth=3, example=batch, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))


def test_evaluation_computes_what_training_does():
    """Without dropout the two differ in nothing; each stage's loss is the same, and torch's switch is as it was."""
    batch = example()
    network = split(batch)
    trained = network.step(batch)
    found = ll.Trainer(network).evaluate([batch])
    losses = {f"loss/{k}": node["loss"] for k, node in enumerate(found["nodes"], start=1)}
    assert losses == pytest.approx({name: float(trained[name]) for name in losses}, rel=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


def test_stages_apart_evaluate_what_the_whole_does():
    batch = example()
    network = split(batch)
    together = ll.Trainer(network).evaluate([batch])["nodes"]
    network.run_apart()
    network.eval()
    given, features = network.given_batch(batch), batch["x"]
    with torch.no_grad():
        for stage, node in zip(network.model_stages, together, strict=True):
            output = stage(features, given)
            assert stage.loss(output, given).total.item() == pytest.approx(node["loss"], rel=1e-6)
            if stage is not network.model_stages[-1]:
                features = stage.handed_on(output)


def test_torch_itself_would_pack_the_tokens():
    """Else nothing is shown above."""
    batch, seen = example(), []
    model = Encoder().eval()
    model.encoder.layers[0].register_forward_hook(lambda _module, _given, output: seen.append(output.is_nested))
    with torch.no_grad():
        model(batch["x"], batch["src_key_padding_mask"])
    assert seen == [True]
