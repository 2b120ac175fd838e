from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from locallearn.nn.features import features_of, prediction, seen_by_objective, with_features

Pair = namedtuple("Pair", "ids hidden")


@dataclass
class Holder:
    depth: int
    hidden: torch.Tensor


def _outputs(x):
    ids = torch.arange(3)
    return [
        x,
        (x, None),
        [ids, x],
        Pair(ids, x),
        {"ids": ids, "hidden": x},
        OrderedDict(hidden=x),
        Holder(2, x),
        (ids, [None, (x,)]),
    ]


@pytest.mark.parametrize("index", range(8))
def test_the_first_floating_tensor_is_found_and_replaced_and_nothing_else(index):
    x, y = torch.ones(3), torch.zeros(3)
    given = _outputs(x)[index]
    changed = with_features(given, y)
    assert features_of(given) is x
    assert features_of(changed) is y
    assert type(changed) is type(given)
    assert repr(with_features(changed, x)) == repr(given)


def test_nothing_is_found_where_there_is_no_floating_tensor():
    assert features_of((torch.arange(3), "text", None)) is None


def test_the_prediction_is_the_logits_where_a_model_names_them():
    x, y = torch.ones(3), torch.zeros(3)
    assert prediction({"hidden": x, "logits": y}) is y
    assert prediction((x, y)) is x


def test_tokens_are_their_mean_or_the_first_normalised():
    x = torch.randn(2, 5, 8)
    for how, token in (("mean", x.mean(1)), ("class", x[:, 0])):
        centred = token - token.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(seen_by_objective(x, how), expected)
    assert seen_by_objective(x, "all") is x
    maps = torch.randn(2, 3, 4, 4)
    assert seen_by_objective(maps, "mean") is maps
