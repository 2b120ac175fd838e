"""Heads on patches against a loop over patches."""

import torch

from locallearn.nn.heads import build_head
from locallearn.nn.patch_head import PatchHead, patch_starts


def test_patches_begin_evenly_and_cover_the_map():
    assert patch_starts(8, 2) == [0, 4]
    assert patch_starts(7, 2) == [0, 3]
    assert patch_starts(8, 3) == [0, 2, 5]
    assert patch_starts(1, 2) == [0]
    assert patch_starts(3, 3) == [0, 1, 2]


def head_on_patches(shape, patches=2, groups=2):
    return PatchHead(lambda small: build_head("1c2f", small, 5, groups=groups, stop_gradient=True), shape, patches)


def test_outputs_are_means_over_patches():
    torch.manual_seed(0)
    made = head_on_patches((4, 7, 6)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, 4, 7, 6)
    outs = [made.head(x[:, :, top : top + 4, left : left + 3]) for top in (0, 3) for left in (0, 3)]
    torch.testing.assert_close(made(x), sum(outs) / 4)
    assert not torch.allclose(made(x), made.head(x))


def test_one_patch_is_the_head_and_vectors_are_seen_whole():
    torch.manual_seed(0)
    made = head_on_patches((4, 8, 8), patches=1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, 4, 8, 8)
    assert torch.equal(made(x), made.head(x))
    vectors = head_on_patches((4,))
    for parameter in vectors.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, 4)
    assert torch.equal(vectors(x), vectors.head(x))
