"""Similarity without labels: examples are to be as alike in a module's features as they were in its input."""

from __future__ import annotations

from torch import Tensor, nn

from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.functional import similarity_matrix
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, Passage, objectives
from locallearn.losses.supervised import no_diversity
from locallearn.nn import peers
from locallearn.nn.precision import precise
from locallearn.nn.similarity import SimilarityHead

COLOURS = 3
"""Maps of at most so many channels are compared pixel by pixel, as images are."""


class InputSimilarity(Objective):
    r"""The similarity loss of features and input (Nokland and Eidnes, 2019: ``sim`` without labels in their code).

    .. math:: \frac{1}{B^2} \sum_{ij} (S(f(h))_{ij} - S(x)_{ij})^2

    with S the cosine similarities of all pairs of examples, each less its own mean, h the module's features, f the
    layer that ``predsim`` compares them through, and x what the module was given, detached. Of x, as of f(h), the
    standard deviation over positions is compared; of tokens their mean, and an image or vector as it is.
    Outside of training steps nothing is known of the input, and the loss is 0. There are no class scores.

    Args:
        similarity: f; maps features to vectors [G, B, F].
        groups: G.
    """

    replicable = True
    watches = True
    needs_labels = False

    def __init__(self, similarity: nn.Module, groups: int = 1) -> None:
        super().__init__()
        self.similarity, self.groups = similarity, groups

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Losses [G], which are 0."""
        return LocalLoss(precise(features.new_zeros(self.groups)), {}, None)

    def of_passage(self, passage: Passage, batch: Batch) -> LocalLoss:
        """Losses [G] of the nodes."""
        whole_batch = peers.current().whole_batch
        inputs_1BF = whole_batch(vectors(passage.inputs.detach())[None], 1)
        found_GBB = similarity_matrix(whole_batch(self.similarity(passage.features), 1))
        total = (found_GBB - similarity_matrix(inputs_1BF)).square().mean((1, 2))
        return LocalLoss(total, {"similarity": total.detach()}, None)


def vectors(x: Tensor) -> Tensor:
    """One vector an example, [B, ...] -> [B, F]: of maps the deviation over positions, of tokens the mean."""
    if x.dim() == 3:
        return precise(x).mean(1)
    if x.dim() == 4 and x.shape[1] > COLOURS and x.shape[2] * x.shape[3] > 1:
        return precise(x).flatten(2).std(-1)
    return precise(x).flatten(1)


@objectives.register("input-similarity")
def input_similarity(given: ObjectiveInput) -> InputSimilarity:
    """Similarity without labels.

    Raises:
        ConfigError: a diversity penalty, tokens one by one, or a module whose input is not known.
    """
    no_diversity(given, "input-similarity")
    config, k = given.config, given.position[0]
    if len(given.shape) == 2:
        raise ConfigError("tokens", "all", "mean or class with input-similarity, which compares whole examples")
    if not given.inputs:
        expected = f"another loss, or other cuts: module {k} is given no numbers that could be compared"
        raise ConfigError("objective.loss", "input-similarity", expected)
    stop = config.stop_gradient and given.groups > 1
    if not stop and given.shape[0] == given.groups:
        expected = f"fewer than the {given.groups} channels with input-similarity (one has no similarity)"
        raise ConfigError("width", given.groups, expected)
    head = SimilarityHead(given.shape, given.groups, stop, config.pool_others)
    return InputSimilarity(head, given.groups)
