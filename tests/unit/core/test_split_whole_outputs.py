"""Losses of all that a model gives: several tasks in a dict, a variational autoencoder's three tensors."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll


class TwoTasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)))
        self.kind, self.size = nn.Linear(6, 4), nn.Linear(6, 1)

    def forward(self, x):
        features = self.body(x)
        return {"kind": self.kind(features), "size": self.size(features).squeeze(-1), "unused": None}


def of_two(output, labels):
    return F.cross_entropy(output["kind"], labels["kind"]) + F.mse_loss(output["size"], labels["size"])


BATCH = (torch.rand(8, 6), {"kind": torch.arange(8) % 4, "size": torch.rand(8)})


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def split(loss=of_two, depth=3, model=TwoTasks):
    torch.manual_seed(0)
    return ll.split(model(), depth=depth, example=BATCH, objective=loss, optimizer=sgd)


def test_every_stage_has_the_loss_of_all_outputs():
    """A head gives the 5 numbers of an example in a row: 4 of the class and one of the size."""
    network = split()
    features = network.model.body[0](BATCH[0])
    rows = network.model_stages[0].objective.head(features)[0]
    expected = of_two({"kind": rows[:, :4], "size": rows[:, 4]}, BATCH[1])
    last = of_two(network.model(BATCH[0]), BATCH[1])
    metrics = network.step(BATCH)
    assert sorted(metrics) == ["loss", "loss/1", "loss/2", "loss/3"]
    assert torch.equal(metrics["loss/1"], expected.detach())
    assert torch.equal(metrics["loss/3"], last.detach())


def test_one_stage_is_plain_training():
    network = split(depth=1)
    torch.manual_seed(0)
    model = TwoTasks()
    optimizer = sgd(model.parameters())
    for _ in range(3):
        network.step(BATCH)
        optimizer.zero_grad()
        of_two(model(BATCH[0]), BATCH[1]).backward()
        optimizer.step()
    assert all(torch.equal(p, network.merge().get_parameter(name)) for name, p in model.named_parameters())


def of_kind(output, labels):
    return F.cross_entropy(output["kind"], labels["kind"])


@pytest.mark.parametrize("loss", [of_two, of_kind])
def test_what_nothing_trains_is_said(loss):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        split(loss)
    found = [str(each.message) for each in said if "nothing trains" in str(each.message)]
    assert found == (
        [] if loss is of_two else ["nothing trains size.bias, size.weight: the losses do not depend on them"]
    )


def test_threads_train_what_one_after_the_other_does():
    networks = [split(), split()]
    for network, runtime in zip(networks, ("inline", "threads"), strict=True):
        ll.Trainer(network, optimizer=sgd, runtime=runtime).fit([BATCH, BATCH], epochs=2)
    inline, threads = (network.state_dict() for network in networks)
    assert all(torch.equal(value, threads[name]) for name, value in inline.items())


def test_predictions_are_the_models_own():
    network = split()
    trainer = ll.Trainer(network, optimizer=sgd)
    trainer.fit([BATCH], epochs=1, validation=[BATCH])
    found, expected = trainer.predict([BATCH, BATCH]), network.merge().eval()(BATCH[0])
    assert found.keys() == expected.keys()
    assert found["unused"] is None
    assert all(torch.equal(found[name], torch.cat([expected[name]] * 2)) for name in ("kind", "size"))


def of_scores(scores, labels):
    return F.cross_entropy(scores, labels["kind"])


def test_a_loss_that_takes_scores_is_given_them():
    """As before: the first output is the scores."""
    network = split(of_scores)
    assert network.model_stages[0].objective.head(torch.rand(8, 6)).shape == (1, 8, 4)
    assert ll.Trainer(network).predict([BATCH]).shape == (8, 4)


class Variational(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.mean, self.scale = nn.Linear(6, 2), nn.Linear(6, 2)
        self.decoder = nn.Sequential(nn.Sequential(nn.Linear(2, 6), nn.Tanh()), nn.Linear(6, 6))

    def forward(self, x):
        features = self.encoder(x)
        mean, scale = self.mean(features), self.scale(features)
        return self.decoder(mean + torch.randn_like(mean) * scale.exp()), mean, scale


def elbo(output, labels, batch):
    rebuilt, mean, scale = output
    assert batch[0].shape == (8, 6)
    return F.mse_loss(rebuilt, batch[0]) + (mean**2 + (2 * scale).exp() - 2 * scale - 1).mean() / 2


def test_a_variational_autoencoder_learns():
    network = split(elbo, 2, Variational)
    first = network.step(BATCH)
    for _ in range(40):
        last = network.step(BATCH)
    assert all(last[name] < first[name] for name in ("loss/1", "loss/2"))


def elbo_of_batch(output, batch):
    return elbo(output, None, batch)


def test_a_loss_may_leave_the_labels_out_for_the_batch():
    losses = []
    for loss in (elbo, elbo_of_batch):
        torch.manual_seed(3)
        losses.append(split(loss, 2, Variational).step(BATCH))
    assert losses[0] == losses[1]
    unlabelled = BATCH[:1]
    network = ll.split(Variational(), depth=2, example=unlabelled, objective=elbo_of_batch)
    assert network.step(unlabelled).keys() == losses[0].keys()


def test_a_list_of_one_tensor_is_an_input_without_labels():
    """As loaders of a TensorDataset(x) give it."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(BATCH[0]), batch_size=8)
    trainer = ll.Trainer(ll.split(Variational(), depth=2, example=next(iter(loader)), objective=elbo_of_batch))
    assert trainer.fit(loader, epochs=1)["status"] == "finished"
    assert trainer.predict(loader)[0].shape == (8, 6)
    with pytest.raises(
        ll.LocalLearnError, match=r"batch: a list of 3 is not valid; expected a mapping, inputs, or a pair"
    ):
        ll.split(Variational(), depth=2, example=[BATCH[0]] * 3, objective=elbo_of_batch)


def test_a_loss_that_takes_neither_is_one_line():
    message = (
        "objective: the loss does not take scores .*; and the loss does not take the model's whole output .*'sizes'"
    )
    with pytest.raises(ll.LocalLearnError, match=message):
        split(lambda output, labels: output["sizes"].sum())
