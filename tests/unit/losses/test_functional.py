import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from locallearn.losses.functional import cross_entropy, diversity, layerwise_ensemble, layerwise_weights


def example(groups=3, batch=4, classes=5):
    torch.manual_seed(groups)
    return 3 * torch.randn(groups, batch, classes, dtype=torch.float64), torch.randint(0, classes, (batch,))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_slow_loop(smoothing):
    logits, labels = example()
    for g, value in enumerate(cross_entropy(logits, labels, smoothing)):
        total = 0.0
        for i, label in enumerate(labels):
            log_p = logits[g, i] - logits[g, i].exp().sum().log()
            total -= (1 - smoothing) * log_p[label] + smoothing * log_p.mean()
        assert value.item() == pytest.approx(total.item() / len(labels), rel=1e-12)


@given(st.integers(2, 5), st.integers(1, 4), st.integers(2, 6), st.sampled_from([0.5, 1.0, 3.0]))
def test_diversity_equals_slow_loop_over_pairs_and_images(groups, batch, classes, temperature):
    logits, labels = example(groups, batch, classes)
    expected = torch.stack(reference.plain_diversity(list(logits), labels, temperature))
    torch.testing.assert_close(diversity(logits, labels, temperature), expected, rtol=1e-10, atol=1e-12)


def test_diversity_of_the_wrong_temperature_differs():
    logits, labels = example()
    assert not torch.allclose(diversity(logits, labels, 3.0), diversity(logits, labels, 1.0), rtol=1e-3)


def test_diversity_of_identical_groups_sums_to_one():
    logits, labels = example(1)
    assert diversity(logits.expand(4, -1, -1), labels).sum().item() == pytest.approx(1.0)


def test_diversity_of_one_group_is_zero():
    assert diversity(*example(1)).tolist() == [0.0]


def test_diversity_survives_certain_predictions():
    logits = torch.full((2, 1, 3), -200.0)
    logits[:, :, 0] = 200.0
    assert diversity(logits, torch.tensor([0]), 1.0).sum().item() == pytest.approx(1.0)


def test_diversity_detaches_the_other_group():
    logits, labels = example(2)
    logits.requires_grad_()
    diversity(logits, labels)[0].backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().sum() > 0
    assert logits.grad[1].abs().sum() == 0


def test_layerwise_weights():
    assert layerwise_weights(1) == [1.0]
    assert layerwise_weights(3) == pytest.approx([2 / 14, 4 / 14, 8 / 14])


def test_ensemble_equals_eq_2_in_a_slow_loop():
    """Eq. 2 with alpha_j = K 2^j / sum 2^i is our ensemble; any other constant gives the same predictions."""
    depth, groups, batch, classes = 3, 2, 4, 5
    logits = [example(groups, batch, classes)[0] + k for k in range(depth)]
    for image in range(batch):
        for c in range(classes):
            total = 0.0
            for j in range(depth):
                alpha = depth * 2 ** (j + 1) / (2 + 4 + 8)
                for i in range(groups):
                    p = logits[j][i, image].exp()
                    total += alpha * p[c] / p.sum()
            assert layerwise_ensemble(logits)[image, c].item() == pytest.approx(total.item() / (depth * groups))


def test_ensemble_takes_modules_of_different_width_and_sums_to_one():
    logits = [example(2)[0], example(4)[0], example(1)[0]]
    assert layerwise_ensemble(logits).sum(-1).tolist() == pytest.approx([1.0] * 4)
    swapped = layerwise_ensemble(logits[::-1])
    assert not torch.allclose(layerwise_ensemble(logits), swapped)


def test_losses_of_bf16_logits_are_computed_in_fp32():
    logits, labels = example()
    low = logits.bfloat16()
    assert cross_entropy(low, labels).dtype == torch.float32
    assert torch.equal(cross_entropy(low, labels), cross_entropy(low.float(), labels))
    assert diversity(low, labels).dtype == torch.float32
