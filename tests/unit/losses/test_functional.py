import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.losses import SupConLoss

import reference
import reference_losses as slow
from locallearn.losses.functional import (
    cross_entropy,
    diversity,
    layerwise_ensemble,
    layerwise_weights,
    reconstruction,
    similarity_loss,
    similarity_matrix,
    supervised_contrastive,
)


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


def projections(groups=3, batch=7, size=4, classes=3):
    torch.manual_seed(batch)
    return torch.randn(groups, batch, size, dtype=torch.float64), torch.randint(0, classes, (batch,))


@given(st.integers(1, 3), st.integers(2, 7), st.integers(1, 5), st.sampled_from([0.07, 0.5]))
def test_supervised_contrastive_equals_slow_loop(groups, batch, size, temperature):
    z, labels = projections(groups, batch, size)
    labels[0] = labels[1]  # at least one positive
    expected = torch.stack([slow.plain_supervised_contrastive(one, labels, temperature) for one in z])
    torch.testing.assert_close(supervised_contrastive(z, labels, temperature), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch", [8, 64])
def test_supervised_contrastive_equals_pytorch_metric_learning(batch):
    z, labels = projections(1, batch, 16, 5)
    expected = SupConLoss(temperature=0.07)(z[0], labels)
    assert supervised_contrastive(z, labels, 0.07).item() == pytest.approx(expected.item(), rel=1e-6)


def test_supervised_contrastive_of_another_temperature_differs():
    z, labels = projections()
    assert not torch.allclose(supervised_contrastive(z, labels, 0.07), supervised_contrastive(z, labels, 0.1))


def test_images_without_a_positive_are_left_out_as_anchors_but_stay_negatives():
    z, _ = projections(1, 5)
    labels = torch.tensor([0, 0, 1, 1, 2])
    whole = supervised_contrastive(z, labels)
    assert whole.item() == pytest.approx(slow.plain_supervised_contrastive(z[0], labels, 0.07).item())
    assert whole.item() != pytest.approx(supervised_contrastive(z[:, :4], labels[:4]).item())


def test_without_any_positive_the_contrastive_loss_and_its_gradient_are_zero():
    z, _ = projections(2, 3)
    z.requires_grad_()
    loss = supervised_contrastive(z, torch.arange(3))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert z.grad is not None
    assert z.grad.abs().sum() == 0


def test_supervised_contrastive_ignores_the_length_of_projections():
    z, labels = projections()
    torch.testing.assert_close(supervised_contrastive(1000 * z, labels), supervised_contrastive(z, labels))


@given(st.integers(1, 3), st.integers(1, 6), st.integers(2, 5))
def test_similarity_loss_equals_slow_loop(groups, batch, size):
    x, labels = projections(groups, batch, size)
    expected = torch.stack([slow.plain_similarity_loss(one, labels, 3) for one in x])
    torch.testing.assert_close(similarity_loss(x, labels, 3), expected, rtol=1e-9, atol=1e-12)


def test_similarity_of_one_hot_targets_is_1_within_and_minus_one_over_c_less_1_between_classes():
    targets = torch.nn.functional.one_hot(torch.tensor([0, 0, 1]), 5).double()[None]
    expected = torch.tensor([[1, 1, -0.25], [1, 1, -0.25], [-0.25, -0.25, 1]], dtype=torch.float64)
    torch.testing.assert_close(similarity_matrix(targets)[0], expected)
    assert similarity_loss(targets, torch.tensor([0, 0, 1]), 5).item() == pytest.approx(0.0, abs=1e-12)


def test_similarity_without_the_mean_taken_off_differs():
    x, _ = projections()
    unit = torch.nn.functional.normalize(x, dim=-1)
    assert not torch.allclose(similarity_matrix(x), unit @ unit.mT, atol=1e-2)


def test_a_constant_row_is_similar_to_nothing_and_has_no_gradient():
    x = torch.tensor([[[2.0, 2.0, 2.0], [1.0, 2.0, 4.0]]], requires_grad=True)
    similarity_loss(x, torch.tensor([0, 1]), 2).sum().backward()
    assert similarity_matrix(x)[0, 0].tolist() == [0.0, 0.0]
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[0, 0].abs().sum() == 0


def test_reconstruction_equals_slow_loop():
    torch.manual_seed(0)
    scores, pixels = 3 * torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.rand(2, 3, 2, 2, dtype=torch.float64)
    assert reconstruction(scores, pixels).item() == pytest.approx(slow.plain_bce(scores, pixels), rel=1e-12)


def test_reconstruction_of_certain_and_wrong_pixels_is_finite():
    scores = torch.tensor([[[[500.0, -500.0]]]], requires_grad=True)
    loss = reconstruction(scores, torch.tensor([[[[0.0, 1.0]]]]))
    loss.backward()
    assert loss.item() == pytest.approx(500.0)
    assert scores.grad is not None
    assert scores.grad.flatten().tolist() == [0.5, -0.5]


def test_matrix_products_of_losses_are_fp32_under_autocast():
    z, labels = projections(2, 16, 32)
    low = z.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        contrastive, similar = supervised_contrastive(low, labels), similarity_loss(low, labels, 3)
    assert contrastive.dtype == similar.dtype == torch.float32
    assert torch.equal(contrastive, supervised_contrastive(low.float(), labels))
    assert torch.equal(similar, similarity_loss(low.float(), labels, 3))
