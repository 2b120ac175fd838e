import pytest
import torch

from locallearn.errors import ConfigError, UsageError
from locallearn.registry import Registry
from locallearn.seeding import derive, generator


def test_registry_refuses_duplicates():
    things: Registry[int] = Registry("thing")
    things.add("one", 1)
    with pytest.raises(UsageError, match="thing 'one' is registered already"):
        things.add("one", 2)
    assert things.get("one") == 1


def test_a_registry_checks_what_it_is_given_and_what_that_gives():
    builders: Registry[object] = Registry("thing", "given: int", float)
    builders.add("half", lambda given: given / 2)
    builders.add("text", lambda given, more=1: str(given))
    assert builders.build("half", 3) == 1.5
    with pytest.raises(UsageError, match=r"thing 'text' \(.*py:\d+\) returned str; expected float"):
        builders.build("text", 3)
    for wrong in (lambda: 1.0, lambda a, b: a, lambda *, given: given, 3):
        with pytest.raises(UsageError, match=r"expected a function of \(given: int\) that returns float"):
            builders.add("wrong", wrong)


def test_unknown_names_are_explained():
    things: Registry[int] = Registry("model")
    for name in ("resnet32", "vgg6a"):
        things.add(name, 0)
    with pytest.raises(ConfigError, match="model: 'resnet33' is not known. Did you mean resnet32"):
        things.get("resnet33")
    with pytest.raises(ConfigError, match="expected one of resnet32, vgg6a"):
        things.get("zzz")


def test_seeds_are_fixed_for_ever():
    """Published runs depend on these numbers."""
    assert derive(0) == 2033344993903900207
    assert derive(0, "init", "1", 0) == 4054673121110218454


def test_every_key_counts_and_types_differ():
    seeds = [derive(0), derive(1), derive(0, 1), derive(0, "1"), derive(0, 1, 2), derive(0, 12)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_one_purpose_agree():
    a, b = (torch.rand(3, generator=generator(5, "x")) for _ in range(2))
    assert torch.equal(a, b)
