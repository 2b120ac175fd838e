"""Optimizers, schedules and batches as people have them."""

import copy
import dataclasses
import signal
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.optim import lr_scheduler

import locallearn as ll
from locallearn.core.clipping import clip_gradients
from locallearn.core.rehearsal import SplitWarning
from locallearn.training.observer import Quiet

X, Y = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))


class Words(nn.Module):
    """An embedding with sparse gradients, then linear layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.b, self.c = nn.Embedding(20, 8, sparse=True), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, ids):
        return self.c(self.b(self.table(ids).mean(1)).relu())


WORDS = (torch.randint(20, (6, 4), generator=torch.Generator().manual_seed(0)), Y)


def test_double_precision_is_kept_in_the_loss():
    model = mlp().double()
    network = ll.split(model, depth=1, example=(X.double(), Y), optimizer=sgd)
    loss = network.step((X.double(), Y))["loss"]
    expected = F.cross_entropy(model(X.double()), Y)
    gradient = torch.autograd.grad(expected, model[0].weight)[0]
    assert loss.dtype == torch.float64
    assert torch.equal(loss, expected)
    torch.testing.assert_close(network.merge()[0].weight, model[0].weight - 0.1 * gradient, rtol=0, atol=1e-15)
    assert ll.Trainer(network).predict([(X.double(), Y)]).dtype == torch.float64


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.complex64])
def test_clipping_is_torch_s_for_every_type_of_number(kind):
    torch.manual_seed(0)
    ours, theirs = (
        [nn.Parameter(torch.ones(4, 3, dtype=kind)), nn.Parameter(torch.ones(4, dtype=kind))] for _ in "ab"
    )
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    clip_gradients(ours, 1, 0.5)
    nn.utils.clip_grad_norm_(theirs, 0.5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_sparse_gradients_are_clipped_and_trained():
    model = Words()
    network = ll.split(model, depth=1, example=WORDS, optimizer=sgd, clip_norm=0.1)
    network.step(WORDS)
    model.table.sparse = False
    F.cross_entropy(model(WORDS[0]), Y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    sgd(model.parameters()).step()
    torch.testing.assert_close(network.merge().state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (torch.optim.AdamW, "optimizer: AdamW of stage 1 makes no step: RuntimeError: .*sparse"),
        (torch.optim.LBFGS, "optimizer: LBFGS of stage 1 makes no step: TypeError: .*closure"),
        (torch.optim.SparseAdam, "optimizer: SparseAdam of stage 1 makes no step: RuntimeError: .*dense"),
    ],
)
def test_an_optimizer_that_makes_no_step_is_named(make, message):
    network = ll.split(Words(), cuts=["b"], example=WORDS)
    with pytest.raises(ll.LocalLearnError, match=message) as refused:
        ll.Trainer(network, optimizer=lambda p: make(p)).fit([WORDS])
    assert "\n" not in str(refused.value)


def test_a_schedule_that_ends_too_early_is_named():
    network = ll.split(mlp(), depth=2, example=(X, Y))
    trainer = ll.Trainer(network, optimizer=sgd, schedule=lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=2))
    with pytest.raises(ll.LocalLearnError, match="schedule: OneCycleLR of stage 1 makes no step: ValueError"):
        trainer.fit([(X, Y)] * 4)


def test_the_trainer_s_optimizer_is_the_split_s_by_default():
    networks = [ll.split(mlp(), depth=2, example=(X, Y), optimizer=sgd) for _ in range(2)]
    assert copy.deepcopy(networks[0]).maker.function is sgd
    ll.Trainer(networks[0]).fit([(X, Y)])
    networks[1].step((X, Y))
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict(), rtol=0, atol=0)
    other = ll.Trainer(networks[0], optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    other.fit([(X, Y)])
    assert other.rates == [0.5, 0.5]


def plateau(optimizer):
    return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=10.0)


def test_a_schedule_that_follows_the_validation_waits_for_it():
    """It is asked for before training whether there will be any, and steps after the epochs that are evaluated."""
    make = lambda unit: ll.Trainer(  # noqa: E731
        ll.split(mlp(), depth=2, example=(X, Y)), optimizer=sgd, schedule=plateau, schedule_unit=unit
    )
    with pytest.raises(ll.LocalLearnError, match="schedule_unit: 'step' is not valid; expected 'epoch' with Reduce"):
        make("step").fit([(X, Y)], validation=[(X, Y)])
    trainer = make("epoch")
    before = trainer.network.merge().state_dict()
    with pytest.raises(ll.LocalLearnError, match="needs validation"):
        trainer.fit([(X, Y)])
    torch.testing.assert_close(trainer.network.merge().state_dict(), before, rtol=0, atol=0)
    trainer.fit([(X, Y)], epochs=4, validation=[(X, Y)], evaluate_every=2)
    assert trainer.rates == pytest.approx([0.001] * 2)  # two evaluations, neither better by ten


@dataclasses.dataclass
class Fields:
    input: Tensor
    labels: Tensor


class Named(NamedTuple):
    input: Tensor
    labels: Tensor
    other: None = None


class Takes(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, input, other=None):
        return self.body(input)


def test_batches_are_dataclasses_and_named_tuples_too():
    losses = []
    for batch in ((X, Y), Fields(X, Y), Named(X, Y)):
        network = ll.split(Takes(), depth=2, example=batch, optimizer=sgd)
        trainer = ll.Trainer(network, optimizer=sgd)
        trainer.fit([batch])
        losses.append(trainer.evaluate([batch])["nodes"])
    assert losses[0] == losses[1] == losses[2]


def test_batches_that_are_something_else_say_what_would_be_right():
    network = ll.split(mlp(), depth=2, example=(X, Y))
    with pytest.raises(ll.LocalLearnError, match="batch: a tuple of 3 is not valid; .* whose inputs may be a tuple"):
        network.step((X, Y, Y))
    with pytest.raises(ll.LocalLearnError, match="batch: PackedSequence is not valid; expected padded sequences"):
        ll.split(nn.GRU(8, 8), depth=1, example=(pack_sequence([X[:3], X[:2]]), Y[:2]))


@pytest.mark.parametrize("call", ["step", "fit", "evaluate"])
def test_a_batch_of_no_examples_is_named(call):
    network = ll.split(mlp(), depth=2, example=(X, Y), optimizer=sgd)
    empty = (X[:0], Y[:0])
    with pytest.raises(ll.LocalLearnError, match=r"batch: inputs \(0, 8\) have no examples"):
        network.step(empty) if call == "step" else getattr(ll.Trainer(network), call)([(X, Y), empty])
    built, (images, labels) = of_the_package()
    with pytest.raises(ll.LocalLearnError, match=r"batch: images \(0, 1, 8, 8\) have no examples"):
        ll.Trainer(built).evaluate([(images, labels), (images[:0], labels[:0])])


def test_weights_that_cannot_be_trained_are_named():
    with torch.device("meta"):
        model = mlp()
    with pytest.raises(ll.LocalLearnError, match=r"model: 0\.weight has no values .*\(it is on the meta device\)"):
        ll.split(model, depth=2, example=(X, Y))
    with torch.inference_mode():
        model = mlp()
    with pytest.raises(ll.LocalLearnError, match=r"model: 0\.weight was made in torch\.inference_mode"):
        ll.split(model, depth=2, example=(X, Y))


def of_the_package():
    config = ll.RunConfig(method="gn-dgl", model="resnet8", depth=2, width=(2,))
    return ll.build_network(config, ll.ImageShape(1, 8, 10)), (torch.ones(4, 1, 8, 8), torch.arange(4))


@pytest.mark.parametrize("how", ["step", "fit", "threads"])
@pytest.mark.parametrize("own", [True, False])
def test_training_does_not_mind_where_it_is_called(own, how):
    """Inside ``torch.no_grad`` networks of the package trained nothing, without a word."""
    states = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        model = mlp()
        network, batch = (None, (X, Y)) if own else of_the_package()
        with mode():
            network = network or ll.split(model, depth=2, example=batch)
            network.set_optimizers(sgd)
            if how == "step":
                network.step(batch)
            else:
                ll.Trainer(network, runtime="inline" if how == "fit" else how).fit([batch] * 2, validation=[batch])
        states.append({name: value.clone() for name, value in network.state_dict().items()})
    for other in states[1:]:
        torch.testing.assert_close(other, states[0], rtol=0, atol=0)


class Interrupts(Quiet):
    """Ctrl-C at a step; keeps warnings."""

    def __init__(self, at=0):
        self.at, self.warnings = at, []

    def on_step(self, step):
        if step == self.at:
            signal.raise_signal(signal.SIGINT)

    def on_warning(self, message):
        self.warnings.append(message)


def loader(**settings):
    data = torch.utils.data.TensorDataset(X, Y)
    drawn = torch.utils.data.RandomSampler(data, generator=torch.Generator().manual_seed(3))
    batches = torch.utils.data.BatchSampler(drawn, 2, False)
    return torch.utils.data.DataLoader(data, batch_sampler=batches, **settings)


def test_a_sampler_of_batches_draws_the_same_after_a_resume(tmp_path):
    networks = [ll.split(mlp(), depth=2, example=(X, Y), optimizer=sgd) for _ in range(3)]
    ll.Trainer(networks[0]).fit(loader(), epochs=3)
    with pytest.raises(ll.LocalLearnError, match="interrupted at step 4"):
        ll.Trainer(networks[1], run=tmp_path / "run", observer=Interrupts(4)).fit(loader(), epochs=3)
    ll.Trainer(networks[2], run=tmp_path / "run").fit(loader(), epochs=3)
    torch.testing.assert_close(networks[2].state_dict(), networks[0].state_dict(), rtol=0, atol=0)


def test_persistent_workers_are_told_of_when_a_run_goes_on(tmp_path):
    kept = loader(num_workers=1, persistent_workers=True)
    make = lambda at: ll.Trainer(  # noqa: E731
        ll.split(mlp(), depth=2, example=(X, Y)), run=tmp_path / "run", observer=Interrupts(at)
    )
    with pytest.raises(ll.LocalLearnError, match="interrupted"):
        make(1).fit(kept)
    trainer = make(0)
    trainer.fit(kept)
    assert [text for text in trainer.observer.warnings if "persistent" in text]


class Refills:
    """Gives batches in the same memory, which it fills anew."""

    def __init__(self):
        self.x, self.y = torch.empty(6, 8), torch.empty(6, dtype=torch.long)

    def __len__(self):
        return 8

    def __iter__(self):
        draw = torch.Generator().manual_seed(0)
        for _ in range(len(self)):
            self.x.copy_(torch.randn(6, 8, generator=draw))
            self.y.copy_(torch.randint(5, (6,), generator=draw))
            yield self.x, self.y


def test_a_loader_that_fills_its_memory_again_trains_on_threads_too():
    states = []
    for runtime in ("inline", "threads"):
        network = ll.split(mlp(), depth=2, example=(X, Y), optimizer=sgd)
        ll.Trainer(network, runtime=runtime).fit(Refills(), epochs=2)
        states.append(network.state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


class SavesLess(nn.Sequential):
    """Leaves weights out of its ``state_dict``, as models with adapters do."""

    def state_dict(self, *args, **kwargs):
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "0." not in name}


def test_checkpoints_hold_what_a_model_s_own_state_dict_leaves_out(tmp_path):
    networks = [ll.split(SavesLess(*mlp()), depth=2, example=(X, Y), optimizer=sgd) for _ in range(2)]
    ll.Trainer(networks[0], run=tmp_path / "run").fit([(X, Y)])
    ll.load_run(networks[1], tmp_path / "run")
    assert torch.equal(networks[1].model[0].weight, networks[0].model[0].weight)


def test_a_loss_that_writes_into_labels_again_in_every_module_is_refused():
    def shifted(scores, labels):
        return F.cross_entropy(scores, labels.add_(1).remainder_(5))

    def ignoring(scores, labels):
        labels[labels == 4] = -100
        return F.cross_entropy(scores, labels)

    with pytest.raises(ll.LocalLearnError, match="objective: the loss writes into the labels"):
        ll.split(mlp(), depth=2, example=(X, Y), objective=shifted)
    labels = Y.clone()
    network = ll.split(mlp(), depth=2, example=(X, labels), objective=ignoring)  # writes the same again
    assert torch.equal(labels, Y)
    assert network.step((X, labels))["loss"].isfinite()
    ll.split(mlp(), depth=1, example=(X, Y), objective=shifted)  # nobody else is given them


def test_weights_that_a_hook_makes_are_not_split_in_width():
    norm = nn.utils.spectral_norm
    model = nn.Sequential(
        norm(nn.Conv2d(1, 8, 3)), norm(nn.Conv2d(8, 8, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    with pytest.raises(ll.LocalLearnError, match="width: 2 .* Conv2d 0 is neither"):
        ll.split(model, cuts=["0"], width=2, example=(torch.rand(6, 1, 8, 8), Y))


class Graphs(nn.Module):
    """Scores of graphs, from features of their nodes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x, graph, count):
        return self.b(torch.zeros(count, 8).index_add(0, graph, self.a(x).relu()))


def test_accuracy_is_of_labels_where_inputs_have_other_rows():
    torch.manual_seed(0)
    graph = torch.tensor([0, 0, 1, 2, 2, 2])
    batch = ((X, graph, 3), Graphs()(X, graph, 3).argmax(1))
    torch.manual_seed(0)
    network = ll.split(Graphs(), depth=1, example=batch, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer = ll.Trainer(network, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    summary, found = trainer.fit([batch], validation=[batch]), trainer.evaluate([batch])
    torch.manual_seed(0)
    expected = (Graphs()(X, graph, 3).argmax(1) == batch[1]).float().mean().item()
    assert found["last_layer"] == summary["accuracy"]["last_layer"] == pytest.approx(expected)
    assert found["examples"] == 3


@pytest.mark.parametrize("labels", [Y % 2, Y])
def test_a_single_score_has_no_accuracy(labels):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    network = ll.split(model, depth=2, example=(X, labels), optimizer=sgd)
    assert ll.Trainer(network, optimizer=sgd).evaluate([(X, labels)])["last_layer"] is None


@pytest.mark.parametrize(
    ("end", "outputs", "labels", "named"),
    [
        (nn.Softmax(1), 5, Y, "cross-entropy"),
        (nn.Sigmoid(), 1, (Y % 2).float()[:, None], "binary-cross-entropy"),
        (nn.Sequential(nn.Sigmoid(), nn.Flatten(0)), 1, (Y % 2).float(), "binary-cross-entropy"),
    ],
)
def test_a_model_of_probabilities_is_not_given_scores_loss(end, outputs, labels, named):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs), end)
    with pytest.raises(ll.LocalLearnError, match=f"objective: None .* which {named} applies itself"):
        ll.split(model, depth=2, example=(X, labels))
    network = ll.split(model, depth=2, example=(X, labels), objective=named)  # the user's word
    assert network.step((X, labels))["loss"].isfinite()


def test_log_probabilities_and_squared_errors_of_probabilities_are_fine():
    log = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5), nn.LogSoftmax(1))
    network = ll.split(log, depth=2, example=(X, Y))
    torch.testing.assert_close(network.step((X, Y))["loss"], F.nll_loss(log(X), Y))
    pixels = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid())
    assert ll.split(pixels, depth=2, example=(X, torch.rand(6, 8))).step((X, torch.rand(6, 8)))["loss"] < 1


class Unregistered(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.layers, self.c = nn.Linear(8, 8), [nn.Linear(8, 8), nn.Linear(8, 8)], nn.Linear(8, 5)

    def forward(self, x):
        x = self.a(x).relu()
        for layer in self.layers:
            x = layer(x).relu()
        return self.c(x)


def test_layers_in_a_plain_list_are_told_of():
    with pytest.warns(SplitWarning, match=r"nothing trains 4 parameters .* \(one is 8( x 8)?\): layers in a list"):
        ll.split(Unregistered(), cuts=["a"], example=(X, Y))


class TimeFirst(nn.Module):
    """A recurrent model of [T, B] tokens that gives scores [B, C]."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(20, 8), nn.GRU(8, 8), nn.GRU(8, 8)
        self.end = nn.Linear(8, 5)

    def forward(self, ids):
        return self.end(self.second(self.first(self.embed(ids))[0])[0][-1])


class Bags(nn.Module):
    """Scores [B, C] of words that lie one after the other, with where each example's begin."""

    def __init__(self):
        super().__init__()
        self.words, self.a, self.b = nn.EmbeddingBag(20, 8, mode="sum"), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, ids, offsets):
        return self.b(self.a(self.words(ids, offsets)).relu())


@pytest.mark.parametrize("examples", [4, 7])
def test_examples_are_found_on_the_second_axis(examples):
    """As many as steps in time, too; each example's loss then depends on its own tokens alone."""
    torch.manual_seed(0)
    ids, labels = torch.randint(20, (7, examples)), torch.arange(examples) % 5
    network = ll.split(TimeFirst(), cuts=["first"], example=(ids, labels))
    assert (network.pieces[0].layout.batch, network.pieces[0].layout.channels) == (1, 2)
    features = network.model.first(network.model.embed(ids))[0]
    seen = network.pieces[0].layout.ordered(features)
    torch.testing.assert_close(seen, features.transpose(0, 1))
    assert network.step((ids, labels))["accuracy/1"] <= 1
    assert ll.Trainer(network).evaluate([(ids, labels)])["examples"] == examples


def test_examples_of_bags_of_words_are_found():
    batch = ((torch.randint(20, (11,)), torch.tensor([0, 3, 5, 8])), torch.arange(4))
    network = ll.split(Bags(), depth=2, example=batch)
    assert network.pieces[0].shape == (8,)
    assert ll.cost(network, batch).nodes[1].macs == 8 * 5
    assert ll.Trainer(network).predict([batch, batch]).shape == (8, 5)


def test_nodes_of_graphs_are_no_examples():
    batch = ((X, torch.tensor([0, 0, 1, 2, 2, 2]), 3), torch.arange(3))
    with pytest.raises(ll.LocalLearnError, match="cuts: 'a' .* a row of features for each of the model's 3 scores"):
        ll.split(Graphs(), cuts=["a"], example=batch)


def test_predictions_of_other_lengths_do_not_go_together():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    loader = [(torch.zeros(2, n, dtype=torch.long), torch.ones(2, n, dtype=torch.long)) for n in (4, 6)]
    trainer = ll.Trainer(ll.split(model, depth=2, example=loader[0]))
    with pytest.raises(ll.LocalLearnError, match=r"batches give \(2, 4, 5\) and \(2, 6, 5\), which do not go"):
        trainer.predict(loader)


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))


@pytest.mark.parametrize("runtime", ["inline", "threads"])
@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [
        (mlp, (torch.zeros(3, 7), Y[:3]), "batch: a step on it fails: RuntimeError: mat1 and mat2 shapes"),
        (mlp, (X.double(), Y), "batch: a step on it fails: RuntimeError: mat1 and mat2 must have the same dtype"),
        (mlp, (X, Y[:4]), r"batch: a step on it fails: ValueError: .*batch_size \(6\) to match .*\(4\)"),
        (mlp, (X, Y.float()), r"batch: labels \(6,\) of float32 are no classes, as those of the example are"),
        (normed, (X[:1], Y[:1]), "batch: a step on it fails: ValueError: .*than 1 value.*drop_last=True"),
    ],
)
def test_a_batch_that_the_model_does_not_take_is_named(make, batch, message, runtime):
    network = ll.split(make(), depth=2, example=(X, Y), optimizer=sgd)
    with pytest.raises(ll.LocalLearnError, match=f"^{message}") as refused:
        ll.Trainer(network, runtime=runtime).fit([(X, Y), batch])
    assert "\n" not in str(refused.value)
    trained, plain = network.merge(), make()
    if make is mlp and runtime == "inline":  # the good batch before it counts
        loss = ll.split(make(), depth=2, example=(X, Y), optimizer=sgd)
        loss.step((X, Y))
        torch.testing.assert_close(trained.state_dict(), loss.merge().state_dict(), rtol=0, atol=0)
        assert not torch.equal(trained[0].weight, plain[0].weight)
    if make is mlp:
        with pytest.raises(ll.LocalLearnError, match="^batch: "):
            ll.Trainer(network).evaluate([batch])


def test_probabilities_train_a_model_whose_example_has_classes_where_there_are_no_heads():
    soft, model = torch.softmax(X[:, :5], 1), mlp()
    network = ll.split(model, depth=1, example=(X, Y), optimizer=sgd)
    network.step((X, soft))
    F.cross_entropy(model(X), soft).backward()
    sgd(model.parameters()).step()
    torch.testing.assert_close(network.merge().state_dict(), model.state_dict(), rtol=0, atol=0)
