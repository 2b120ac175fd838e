import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import NTXentLoss

import reference_contrastive as slow
from locallearn.losses.contrastive import (
    cosine_similarities,
    modified_nt_xent,
    nt_xent,
    select_negatives,
    select_positives,
    share_thresholds,
)
from locallearn.losses.functional import supervised_contrastive


def projections(groups=3, images=5, features=4, seed=0):
    return torch.randn(groups, 2 * images, features, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tau", [0.07, 0.5, 1.0])
def test_nt_xent_is_algorithm_3_for_every_group(tau):
    z = projections().double()
    expected = [slow.algorithm_3(slow.similarities(slow.interleaved(x.tolist())), 5, tau) for x in z]
    torch.testing.assert_close(nt_xent(z, tau), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_nt_xent_is_that_of_pytorch_metric_learning(tau):
    z = projections(1, 16, 8).requires_grad_()
    labels = torch.arange(16).repeat(2)
    theirs = NTXentLoss(tau)(z[0], labels)
    ours = nt_xent(z, tau)
    torch.testing.assert_close(ours[0], theirs)
    gradients = [torch.autograd.grad(loss.sum(), z)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_another_order_of_views_is_caught():
    z = projections()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(nt_xent(z), nt_xent(torch.cat([z[:, ::2], z[:, 1::2]], 1)))


def test_losses_are_fp32_under_autocast():
    z = projections(2, 8, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nt_xent(z)
    assert found.dtype == torch.float32
    assert torch.equal(found, nt_xent(z))
    assert nt_xent(z.bfloat16()).dtype == torch.float32


values = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.25, 0.5, 1.0])  # few of them, so that there are ties


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.data())
def test_selection_and_loss_are_algorithms_5_to_7(n, data):
    """On matrices that are not even symmetric, with ties, empty selections and anchors without any partner."""
    rows = data.draw(st.lists(st.lists(values, min_size=2 * n, max_size=2 * n), min_size=2 * n, max_size=2 * n))
    alpha, beta = data.draw(st.sampled_from([-2.0, 0.25, 0.3, 2.0])), data.draw(st.sampled_from([-2.0, 0.25, 2.0]))
    matrix = torch.tensor([rows], dtype=torch.float64)
    s = slow.as_dictionary(rows)
    mu, omega = slow.algorithm_6(s, n, alpha), slow.algorithm_7(s, n, beta)

    positives = select_positives(matrix, torch.tensor([alpha]))
    negatives = select_negatives(matrix, torch.tensor([beta]))
    assert {k + 1 for k in range(n) if positives[0, k]} == mu
    names = slow.interleaved(list(range(2 * n)))
    found = {a + 1: {b + 1 for b, j in enumerate(names) if negatives[0, i, j]} for a, i in enumerate(names)}
    assert found == omega

    z = cosine_similarities(projections(1, n, 3, seed=n).double()).requires_grad_()
    loss = modified_nt_xent(z, positives, negatives, 0.5)
    expected = slow.algorithm_5(slow.as_dictionary(z[0].tolist()), n, mu, omega, 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert torch.autograd.grad(loss.sum(), z)[0].isfinite().all()


def test_a_rule_that_leaves_ties_out_is_caught(monkeypatch):
    monkeypatch.setitem(globals(), "select_negatives", lambda s, beta: s < beta[:, None, None])
    with pytest.raises(AssertionError):
        test_selection_and_loss_are_algorithms_5_to_7()


def test_every_pair_is_nt_xent_bit_for_bit():
    z = projections(2, 32, 16)
    s = cosine_similarities(z)
    alpha, beta = share_thresholds(s, 1.0, 1.0)
    found = modified_nt_xent(s, select_positives(s, alpha), select_negatives(s, beta), 0.3)
    assert torch.equal(found, nt_xent(z, 0.3))


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.5), (-2.0, -2.0), (2.0, -2.0)])
def test_nothing_selected_is_a_loss_of_0_without_gradient(alpha, beta):
    z = projections(2, 6).requires_grad_()
    s = cosine_similarities(z)
    positives, negatives = select_positives(s, torch.full((2,), alpha)), select_negatives(s, torch.full((2,), beta))
    loss = modified_nt_xent(s, positives, negatives, 0.1)
    assert loss.tolist() == [0.0, 0.0]
    assert torch.equal(torch.autograd.grad(loss.sum(), z)[0], torch.zeros_like(z))


def test_an_anchor_without_a_denominator_is_0_and_still_counts():
    z = projections(1, 3).double()
    s, all_positives = cosine_similarities(z), torch.ones(1, 3, dtype=torch.bool)
    negatives = torch.ones(1, 6, 6, dtype=torch.bool)
    negatives[0, 0] = False
    negatives[0, 0, 0] = True  # itself is nobody's negative
    whole = [slow.algorithm_3(slow.as_dictionary(s[0].tolist()), 3, 0.5)]
    first = (s[0, 0] / 0.5).exp().sum() - math.exp(1 / 0.5)
    without = first.log() - s[0, 0, 3] / 0.5
    found = modified_nt_xent(s, all_positives, negatives, 0.5)
    assert found.item() == pytest.approx(whole[0] - without.item() / 6, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.floats(0.05, 1), st.floats(0.05, 1), st.integers(0, 99), st.booleans())
def test_thresholds_choose_the_share_and_ties_with_its_last_pair(n, positive, negative, seed, rounded):
    s = cosine_similarities(projections(2, n, 3, seed))
    if rounded:
        s = (s * 2).round() / 2  # many ties
    alpha, beta = share_thresholds(s, positive, negative)
    partner = torch.arange(2 * n).roll(n)
    for g in range(2):
        pairs = sorted((s[g, i + n, i].item() for i in range(n)), reverse=True)
        wanted = math.ceil(positive * n - 1e-9)
        assert select_positives(s, alpha)[g].sum().item() == sum(p >= pairs[wanted - 1] for p in pairs)
        others = [(a, b) for a in range(2 * n) for b in range(2 * n) if b not in (a, partner[a])]
        levels = sorted(s[g, a, b].item() for a, b in others)
        wanted = math.ceil(negative * len(others) - 1e-9)
        chosen = select_negatives(s, beta)[g]
        assert sum(chosen[a, b].item() for a, b in others) == sum(x <= levels[wanted - 1] for x in levels)


def test_a_share_of_whole_pairs_is_not_rounded_up_by_arithmetic():
    s = cosine_similarities(projections(1, 20, 8))
    alpha, _ = share_thresholds(s, 0.95**1, 1.0)
    assert select_positives(s, alpha).sum() == 19


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0.0, 1e-7, 1e-5])
@pytest.mark.parametrize("loss", [nt_xent, lambda x: supervised_contrastive(x, torch.arange(4) % 2)])
def test_projections_of_zeros_have_a_finite_gradient(dtype, size, loss):
    x = torch.randn(1, 4, 8).to(dtype)
    x[0, 1] = size
    x.requires_grad_()
    loss(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[0, 0].abs().max() > 0
    if size == 0:
        assert x.grad[0, 1].abs().max() == 0
