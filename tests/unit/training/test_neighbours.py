"""Weighted kNN against scikit-learn and a slow loop, and as the evaluation of networks without a classifier."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

import small
from locallearn.config import TrainConfig, digest
from locallearn.data.datasets import load
from locallearn.errors import ConfigError
from locallearn.losses.objectives import Classification
from locallearn.training import neighbours, runs
from locallearn.training.depth_features import FeatureReader, places
from locallearn.training.finished import open_run
from locallearn.training.neighbours import knn_votes

T = 0.1


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def example(seed=0, queries=40, bank=150, size=6, classes=5):
    labels = torch.randint(0, classes, (bank,), generator=torch.Generator().manual_seed(seed + 1))
    labels[:classes] = torch.arange(classes)
    return draw(seed, queries, size), draw(seed + 2, bank, size), labels


@pytest.mark.parametrize("k", [1, 7, 40, 150])
def test_probabilities_are_those_of_scikit_learn(k):
    queries, bank, labels = example()

    def weights(distances):
        return np.exp((1 - distances) / T)

    oracle = KNeighborsClassifier(k, weights=weights, algorithm="brute", metric="cosine")
    oracle.fit(bank.double().numpy(), labels.numpy())
    votes = knn_votes(queries, bank, labels, k, T)
    share = (votes / votes.sum(1, keepdim=True)).numpy()
    np.testing.assert_allclose(share, oracle.predict_proba(queries.double().numpy()), atol=2e-5)


def slow_votes(query, bank, labels, k, temperature):
    scored = []
    for row, label in zip(bank.tolist(), labels.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(query.tolist(), row, strict=True))
        scored.append((dot / math.hypot(*query.tolist()) / math.hypot(*row), label))
    votes = [0.0] * (max(labels.tolist()) + 1)
    for similarity, label in sorted(scored, reverse=True)[:k]:
        votes[label] += math.exp((similarity - max(scored)[0]) / temperature)
    return votes


@given(st.integers(0, 1000), st.integers(1, 40), st.floats(0.02, 2.0))
@settings(max_examples=20, deadline=None)
def test_votes_equal_a_slow_loop(seed, k, temperature):
    queries, bank, labels = example(seed, queries=3, bank=30, size=4)
    expected = [slow_votes(query, bank, labels, k, temperature) for query in queries]
    np.testing.assert_allclose(knn_votes(queries, bank, labels, k, temperature), expected, rtol=2e-3, atol=1e-5)


def test_wrong_weights_would_be_seen():
    """The comparison can fail: votes without weights are other votes."""
    queries, bank, labels = example(3, queries=3, bank=30, size=4)
    expected = [slow_votes(query, bank, labels, 9, 0.1) for query in queries]
    assert not np.allclose(knn_votes(queries, bank, labels, 9, 1e9), expected, atol=1e-2)


def test_queries_in_parts_give_the_same(monkeypatch):
    queries, bank, labels = example()
    whole = knn_votes(queries, bank, labels, 20, T)
    products = []
    normalize = neighbours.normalize
    monkeypatch.setattr(neighbours, "SIMILARITIES", 7 * len(bank))
    monkeypatch.setattr(neighbours, "normalize", lambda x, dim: products.append(len(x)) or normalize(x, dim=dim))
    torch.testing.assert_close(knn_votes(queries, bank, labels, 20, T), whole)
    assert products == [150, 7, 7, 7, 7, 7, 5]


def test_small_temperatures_and_zero_features_give_finite_votes():
    queries, bank, labels = example()
    votes = knn_votes(queries, bank, labels, 200, 1e-4)
    assert votes.isfinite().all()
    assert torch.equal(votes.argmax(1), knn_votes(queries, bank, labels, 1, T).argmax(1))  # the nearest alone
    zeros = knn_votes(torch.zeros(1, 6), bank, labels, 150, T)
    assert torch.equal(zeros[0], torch.bincount(labels).float())  # equally far from all: each has one vote


@pytest.fixture
def without_classifier(monkeypatch):
    """Heads whose scores are no scores of classes, as projections are not."""
    monkeypatch.setattr(Classification, "logits", lambda self, features: None)


def test_a_run_without_classifier_is_evaluated_by_neighbours(without_classifier, tmp_path):
    config = small.config(
        depth=2, width=(2, 1), train=dataclasses.replace(small.TRAIN, knn_neighbours=9, knn_bank=100)
    )
    summary = runs.train(config, tmp_path / "run")
    accuracy = summary["accuracy"]
    assert accuracy["protocol"] == "kNN, k = 9, T = 0.1, cosine, 100 training images"
    assert accuracy["ensemble"] is None
    assert [(node["module"], node["group"]) for node in summary["nodes"]] == [(1, 1), (1, 2), (2, 1)]
    assert accuracy["last_layer"] == summary["nodes"][-1]["accuracy"]
    assert all("loss" not in node for node in summary["nodes"])
    run = open_run(tmp_path / "run")
    assert run.evaluate().nodes == summary["nodes"]
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert (last["event"], last["protocol"], last["ensemble"]) == ("evaluate", accuracy["protocol"], None)
    assert last["nodes"] == summary["nodes"] == by_hand(run, load(config.data))


def by_hand(run, dataset):
    """The same accuracies from features of all images at once and the slow loop."""
    reader = FeatureReader(run.network, places(run.network, "modules"), "fp32")
    bank, test = (reader(next(run.store(images).ordered(1000)).images) for images in (dataset.train, dataset.test))
    found = []
    for module, groups in ((1, 2), (2, 1)):
        size = bank[module - 1].shape[1] // groups
        for group in range(groups):
            rows = slice(group * size, (group + 1) * size)
            known, asked = bank[module - 1][:100, rows], test[module - 1][:, rows]
            votes = [slow_votes(query, known, dataset.train.labels[:100], 9, 0.1) for query in asked]
            hits = (torch.tensor(votes).argmax(1) == dataset.test.labels).double().mean().item()
            found.append({"module": module, "group": group + 1, "accuracy": pytest.approx(hits)})
    return found


def test_several_groups_in_the_last_module_are_judged_together_and_alone(without_classifier, tmp_path):
    config = small.config(depth=1, width=(2,), train=dataclasses.replace(small.TRAIN, knn_neighbours=9))
    training = runs.build(*_parts(config, tmp_path))
    found = training.evaluation()
    assert [(node["module"], node["group"]) for node in found.nodes] == [(1, 1), (1, 2)]
    reader = FeatureReader(training.network, places(training.network, "last"), "fp32")
    bank, test = (next(store.ordered(1000)) for store in (training.train_store, training.test_store))
    votes = knn_votes(reader(test.images)[0], reader(bank.images)[0], bank.labels, 9, T)
    assert found.last_layer == pytest.approx((votes.argmax(1) == test.labels).double().mean().item())


def _parts(config, tmp_path):
    from locallearn.training.observer import Quiet
    from locallearn.training.record import RunFolder
    from locallearn.training.setup import resolve

    dataset = load(config.data)
    return resolve(config, dataset), dataset, RunFolder(tmp_path / "run"), Quiet()


def test_settings_are_checked_and_do_not_change_what_is_trained():
    with pytest.raises(
        ConfigError, match=r"train\.knn_temperature: 0 is not valid; expected a finite number above 0"
    ):
        TrainConfig(knn_temperature=0)
    with pytest.raises(ConfigError, match=r"train\.knn_neighbours: 0 is not valid"):
        TrainConfig(knn_neighbours=0)
    other = dataclasses.replace(small.TRAIN, knn_neighbours=5, knn_temperature=1.0, knn_bank=0)
    assert digest(small.config(train=other)) == digest(small.config())
