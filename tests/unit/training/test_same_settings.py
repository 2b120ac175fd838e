"""An optimizer is one stage's own, and a run is continued with the settings that it began with."""

import copy
import signal

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import locallearn as ll
from locallearn.training.observer import Quiet

X, Y = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
LOADER = [(X, Y)] * 4


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))


def split(model=None):
    return ll.split(model or mlp(), depth=2, example=(X, Y))


def test_optimizers_of_other_parameters_are_refused():
    model, network = mlp(), split()
    of_all = torch.optim.SGD(network.parameters(), lr=0.1)
    before = copy.deepcopy(network.state_dict())
    wrong = {
        "SGD of stage 1 has none of its parameters": lambda _: torch.optim.SGD(model.parameters(), lr=0.1),
        "AdamW of stage 1 has parameters of stage 2, too": lambda _: torch.optim.AdamW(network.parameters()),
        "SGD of stage 1 has parameters of stage 2, too": lambda _: of_all,
    }
    for message, optimizer in wrong.items():
        with pytest.raises(ll.LocalLearnError, match=f"^optimizer: {message}.*expected one over the parameters"):
            ll.Trainer(network, optimizer=optimizer).fit(LOADER)
        with pytest.raises(ll.LocalLearnError, match=f"^optimizer: {message}"):
            network.set_optimizers(optimizer)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(ll.LocalLearnError, match="^optimizer: SGD of stage 1 has none of its parameters"):
        ll.split(model, depth=2, example=(X, Y), optimizer=lambda _: torch.optim.SGD(model.parameters(), lr=0.1))


def test_an_optimizer_may_have_some_parameters_of_its_stage_and_some_of_a_loss():
    network, scale = split(), nn.Parameter(torch.ones(()))
    matrices = [p.clone() for p in network.parameters() if p.dim() > 1]
    ll.Trainer(network, optimizer=lambda p: torch.optim.SGD([*(q for q in p if q.dim() > 1), scale], 0.1)).fit(LOADER)
    after = [p for p in network.parameters() if p.dim() > 1]
    assert all(not torch.equal(a, b) for a, b in zip(matrices, after, strict=True))
    assert torch.equal(network.merge()[0].bias, mlp()[0].bias)


class Stops(Quiet):
    def on_step(self, step):
        if step == 5:
            raise KeyboardInterrupt


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


def cosine(optimizer):
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)


def trained(folder, network, **settings):
    settings = {"optimizer": adam, "schedule": cosine, **settings}
    return ll.Trainer(network, run=folder, **settings).fit(LOADER, epochs=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3)}, "optimizer's groups lr 0.01, and this is 0.001"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=1e-2)}, "optimizer 'AdamW', and this is 'SGD'"),
        ({"schedule": None}, "schedule 'CosineAnnealingLR', and this is None"),
        ({"schedule": lambda o: lr_scheduler.LambdaLR(o, lambda _: 1)}, "schedule .*, and this is 'LambdaLR'"),
        ({"schedule": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=16)}, "schedule's T_max 8, and this is 16"),
        ({"schedule_unit": "epoch"}, "schedule_unit 'step', and this is 'epoch'"),
        ({"accumulate": 2}, "accumulate 1, and this is 2"),
        ({"average": 0.9}, "average 0.0, and this is 0.9"),
    ],
)
def test_a_run_that_began_with_other_settings_is_not_continued(settings, message, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", split(), observer=Stops())
    network = split()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ll.LocalLearnError, match=rf"^run: .* began with {message} \(stage 1\); expected the same"):
        trained(tmp_path / "run", network, **settings)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    how = {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True), "keep_last": 3}
    trained(tmp_path / "run", network, **how)
    whole = split()
    trained(None, whole, **how)
    torch.testing.assert_close(network.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_an_interrupted_training_without_a_folder_promises_nothing():
    class Asked(Quiet):
        def on_step(self, step):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(
        ll.LocalLearnError, match=r"^interrupted at step 1; fit begins anew.*run=FOLDER it continues$"
    ):
        ll.Trainer(split(), observer=Asked()).fit(LOADER)


def test_what_lies_in_a_folder_that_is_no_run_stays(tmp_path):
    folder, file = tmp_path / "papers", tmp_path / "file"
    folder.mkdir()
    for path in (folder / "thesis.txt", file):
        path.write_text("mine")
    for path, what in ((folder, "holds something else than a run"), (file, "is no folder")):
        with pytest.raises(ll.LocalLearnError, match=f"^run: {path} {what}; name another folder$"):
            trained(path, split())
    assert [path.read_text() for path in (*folder.iterdir(), file)] == ["mine", "mine"]
