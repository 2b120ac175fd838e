import dataclasses

import pytest
import torch

import small
from locallearn.config import AugmentConfig, DataConfig, ModificationConfig, ObjectiveConfig, OptimizerConfig
from locallearn.core.assembly import build_network
from locallearn.data.datasets import load as load_dataset
from locallearn.data.store import Batch, ImageStore
from locallearn.errors import CheckpointError, ConfigError, UsageError
from locallearn.losses.contrastive import select_negatives, select_positives
from locallearn.runtime.inline import InlineRuntime
from locallearn.training import runs
from locallearn.training.checkpoint import load
from locallearn.training.finished import open_run
from locallearn.training.scorers import MovingAverage, Pretrained, Scorer, Severity, build_scorer, crop_overlap
from locallearn.training.setup import image_shape, resolve

VIEWS = AugmentConfig(resized_crop=(0.3, 1.0), flip=0.0)


def config(method="dgssl-llm", depth=3, **modification):
    objective = ObjectiveConfig(temperature=0.5, modification=ModificationConfig(**modification))
    optimizer = OptimizerConfig(name="adam", learning_rate=1e-2, weight_decay=0.0)
    return small.config(method, depth, (1,), objective=objective, augment=VIEWS, optimizer=optimizer)


def made(given):
    """Resolved configuration, data set, network and a batch of two views."""
    dataset = load_dataset(given.data)
    given = resolve(given, dataset)
    store = ImageStore(dataset.train, dataset, given.augment, "cpu", 0, views=2)
    return given, dataset, build_network(given, image_shape(dataset)), next(store.epoch(0, 6))


def test_a_scorer_is_built_only_where_pairs_are_chosen():
    for given in (config("dgssl"), config(depth=1), config(scorer="self")):
        settled, dataset, network, batch = made(given)
        scorer = build_scorer(settled, network, dataset)
        assert type(scorer) is Scorer
        assert scorer.scored(batch).scores is None
        assert scorer.tensors() == {}


def test_severity_is_overlap_times_likeness_of_colours():
    settled, dataset, network, batch = made(config(scorer="augmentation"))
    found = build_scorer(settled, network, dataset).scored(batch).scores
    colours = [[f for c in x for f in (c.mean().item(), c.std(correction=0).item())] for x in batch.pixels]
    boxes = batch.boxes.tolist()

    def overlap(i):
        cells = [
            {(y, x) for y in range(t, t + h) for x in range(left, left + w)}
            for t, left, h, w in (boxes[i], boxes[i + 6])
        ]
        return len(cells[0] & cells[1]) / len(cells[0] | cells[1])

    for a in range(12):
        for b in range(12):
            u, v = colours[a], colours[b]
            alike = 1 - (sum((x - y) ** 2 for x, y in zip(u, v, strict=True)) / len(u)) ** 0.5
            expected = alike * overlap(a % 6) if abs(a - b) == 6 else alike
            assert found[a, b].item() == pytest.approx(expected, abs=1e-5)


def test_boxes_that_do_not_meet_have_no_overlap():
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 4, 4]]).float(), torch.tensor([[3, 0, 2, 2], [0, 0, 2, 4]]).float()
    assert crop_overlap(*boxes).tolist() == [0.0, 0.5]


def test_severity_needs_no_crops():
    *_, batch = made(config(scorer="augmentation"))
    whole = Batch(batch.images, batch.labels, batch.pixels[:6].repeat(2, 1, 1, 1), batch.step)
    scores = Severity().scored(whole).scores
    torch.testing.assert_close(scores.diagonal(6), torch.ones(6))


def test_the_moving_average_follows_weights_and_statistics():
    settled, dataset, network, batch = made(config(scorer="ema", ema_decay=0.75))
    scorer = build_scorer(settled, network, dataset)
    assert isinstance(scorer, MovingAverage)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    scorer.update()  # the first step takes the network as it is
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(1.0)
    scorer.update()
    for name, value in scorer.average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, own[name] + 0.25)
    scores = scorer.scored(batch).scores
    features = torch.nn.functional.normalize(scorer.average.module.eval()(batch.images), dim=1)
    torch.testing.assert_close(scores, (features @ features.T).detach())
    assert not scores.requires_grad


def test_a_finished_run_scores_and_its_network_stays_as_it_is(tmp_path):
    runs.train(config("simclr", 1), tmp_path / "simclr")
    given = config(scorer_run=str(tmp_path / "simclr"))
    settled, dataset, network, batch = made(dataclasses.replace(given, data=DataConfig(train_limit=160, mean=(0.9,))))
    scorer = build_scorer(settled, network, dataset)
    assert isinstance(scorer, Pretrained)
    opened = open_run(tmp_path / "simclr")
    before = {name: value.clone() for name, value in scorer.network.state_dict().items()}
    theirs = load_dataset(DataConfig())
    normalised = (batch.pixels - theirs.mean[0]) / theirs.std[0]  # as the scorer was trained, not as this run is
    features = torch.nn.functional.normalize(opened.network(normalised), dim=1)
    torch.testing.assert_close(scorer.scored(batch).scores, (features @ features.T).detach())
    summary = runs.train(given, tmp_path / "llm")
    assert summary["scorer"] == scorer.identity
    assert all(torch.equal(value, before[name]) for name, value in scorer.network.state_dict().items())
    shares = [node["terms"] for node in _last_train(tmp_path / "llm")]
    assert [round(s["positive_share"], 3) for s in shares[:2]] == [0.906, 0.969]  # 29 and 31 of 32 pairs
    assert 0.9025 <= shares[0]["negative_share"] < 0.904
    assert shares[2] == {}


def _last_train(run):
    import json

    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event["nodes"] for event in events if event["event"] == "train"][-1]


def test_every_module_chooses_by_algorithms_6_and_7():
    """What the objective chooses, against the rules applied by hand: shares, thresholds, hardest first."""
    cases = [
        ({"positive_ratio": 0.5, "negative_ratio": 0.7}, 0.25, 0.49, 1),
        ({"positive_ratio": 0.5, "negative_ratio": 0.7, "difficulty": "decreasing"}, 0.25, 0.49, -1),
        ({"positive_ratio": 0.5, "pairs": "positive"}, 0.25, 1.0, 1),
    ]
    for settings, positive, negative, sign in cases:
        settled, dataset, network, batch = made(config(scorer="augmentation", **settings))
        scores = build_scorer(settled, network, dataset).scored(batch).scores
        chosen_positive, chosen_negative = next(iter(network)).objective._select(scores[None])
        pairs = sorted((sign * scores[i + 6, i].item() for i in range(6)), reverse=True)
        assert chosen_positive[0].tolist() == [
            sign * scores[i + 6, i].item() >= pairs[-(-6 * 25 // 100) - 1] for i in range(6)
        ]
        others = sorted(sign * scores[a, b].item() for a in range(12) for b in range(12) if (a - b) % 6)
        level = torch.inf if negative == 1 else others[-(-120 * 49 // 100) - 1]
        assert torch.equal(chosen_negative[0], sign * scores <= level)
        assert positive == 0.5**2


def test_rounding_does_not_tell_the_two_sides_of_a_pair_apart():
    """Which of S(a, b) and S(b, a) a matrix product rounds up depends on the product; both are one pair's."""
    *_, network, _ = made(config(scorer="self", positive_ratio=0.5, negative_ratio=0.5))
    choose = next(iter(network)).objective._select
    torch.manual_seed(0)
    exact = torch.rand(1, 12, 12)
    exact = exact + exact.mT
    rounded = exact + torch.triu(torch.full_like(exact, 1e-6)) * torch.randint(-1, 2, exact.shape)
    assert not torch.equal(rounded, rounded.mT)
    for a, b in zip(choose(exact), choose(rounded), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(choose(rounded)[1], choose(rounded)[1].mT)


def test_thresholds_are_taken_as_they_are():
    settled, dataset, network, batch = made(
        config(scorer="augmentation", positive_thresholds=(0.7, 0.5), negative_thresholds=(0.8, 0.9))
    )
    scores = build_scorer(settled, network, dataset).scored(batch).scores[None]
    for module, alpha, beta in zip(network, (0.7, 0.5), (0.8, 0.9), strict=False):
        positives, negatives = module.objective._select(scores)
        assert torch.equal(positives, select_positives(scores, torch.tensor([alpha])))
        assert torch.equal(negatives, select_negatives(scores, torch.tensor([beta])))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("scorer", ["ema", "augmentation", "self"])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, monkeypatch, scorer):
    given = config(scorer=scorer, positive_ratio=0.8, negative_ratio=0.8)
    runs.train(given, tmp_path / "whole")
    step = InlineRuntime.step

    def dying(self, batch, index, *rest):
        if index == 7:
            raise Killed
        return step(self, batch, index, *rest)

    monkeypatch.setattr(InlineRuntime, "step", dying)
    with pytest.raises(Killed):
        runs.train(given, tmp_path / "killed")
    monkeypatch.setattr(InlineRuntime, "step", step)
    runs.resume(tmp_path / "killed")
    a, b = (load(sorted((tmp_path / run / "checkpoints").glob("step-*"))[-1]).tensors for run in ("whole", "killed"))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert any(name.startswith("scorer/") for name in a) == (scorer == "ema")


def test_a_run_goes_on_only_with_its_own_scorer(tmp_path):
    for seed in (0, 1):
        runs.train(dataclasses.replace(config("simclr", 1), seed=seed), tmp_path / f"simclr{seed}")
    runs.train(config(scorer_run=str(tmp_path / "simclr0")), tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    text = (tmp_path / "run" / "config.toml").read_text()
    (tmp_path / "run" / "config.toml").write_text(text.replace("simclr0", "simclr1"))
    with pytest.raises(CheckpointError, match="was trained with another scorer than objective.modification names"):
        runs.resume(tmp_path / "run")


def test_a_missing_or_wrong_scorer_is_one_line(tmp_path):
    settled, dataset, network, _ = made(config())
    with pytest.raises(
        ConfigError, match="objective.modification.scorer_run: None is not valid; expected the folder"
    ):
        build_scorer(settled, network, dataset)
    with pytest.raises(UsageError):
        build_scorer(made(config(scorer_run=str(tmp_path)))[0], network, dataset)
    with pytest.raises(ConfigError, match="scorer_run: 'x' .* unless objective.modification.scorer is pretrained"):
        ModificationConfig(scorer="ema", scorer_run="x")
    with pytest.raises(ConfigError, match="none where objective.modification.pairs is positive"):
        ModificationConfig(pairs="positive", negative_thresholds=(0.1,))
    with pytest.raises(
        ConfigError, match=r"positive_thresholds: \(0.1,\) .* expected 2 numbers, one for each module"
    ):
        made(config(scorer="self", positive_thresholds=(0.1,)))
