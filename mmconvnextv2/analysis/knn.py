"""Weighted nearest-neighbour classification, a test of features that trains nothing.

As in DINO's evaluation: an image gets the votes of the k most similar images of a labelled bank,
each with weight exp(cosine similarity / temperature). The bank is read once, queries pass by in
batches, and similarities are computed a chunk of the bank at a time, so memory holds the bank and
little more.

Shape suffixes: Q queries, B images of the bank, C features, K neighbours, L classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Features ``(N, C)`` and labels ``(N,)`` of some images."""


@dataclass(frozen=True)
class FeatureBank:
    """Labelled features to look neighbours up in.

    Args:
        features_BC: features of length 1.
        labels_B: class indices.
        num_classes: number of classes L.
    """

    features_BC: Tensor
    labels_B: Tensor
    num_classes: int

    @classmethod
    def from_batches(cls, batches: Iterable[Batch], size: int, num_classes: int) -> FeatureBank:
        """Collect features of any length into memory that is allocated once.

        Args:
            batches: features ``(N, C)`` and labels ``(N,)``, batch by batch. Features and labels
                stay on the device of the first batch.
            size: number of images in all batches, at most.
            num_classes: number of classes L.

        Raises:
            ValueError: there is no image, or more than `size`, or a label outside of the classes.
        """
        features_BC = labels_B = torch.empty(0)
        filled = 0
        for features_NC, labels_N in batches:
            if filled == 0:
                features_BC = features_NC.new_empty(size, features_NC.shape[1])
                labels_B = labels_N.new_empty(size)
            end = filled + len(features_NC)
            if end > size:
                raise ValueError(
                    f"the bank was announced with {size} images and has at least {end}"
                )
            features_BC[filled:end] = F.normalize(features_NC, dim=1)
            labels_B[filled:end] = labels_N
            filled = end
        if filled == 0:
            raise ValueError("the bank of features needs at least one image, got none")
        labels_B = labels_B[:filled]
        first, last = int(labels_B.min()), int(labels_B.max())
        if first < 0 or last >= num_classes:
            raise ValueError(
                f"labels must lie between 0 and {num_classes - 1}, and the bank has {first} to "
                f"{last}: does num_classes fit the data set?"
            )
        return cls(features_BC[:filled], labels_B, num_classes)

    def nearest(self, queries_QC: Tensor, k: int, chunk_size: int = 65536) -> Batch:
        """Find the most similar images of the bank.

        Args:
            queries_QC: features of any length, on the bank's device.
            k: number of neighbours, at most the size of the bank.
            chunk_size: images of the bank to compare with at once.

        Returns:
            Cosine similarities ``(Q, K)``, in descending order, and the neighbours' labels
            ``(Q, K)``.

        Raises:
            ValueError: `k` is less than 1 or more than the bank has.
        """
        if not 1 <= k <= len(self.labels_B):
            raise ValueError(f"k must lie between 1 and {len(self.labels_B)}, the bank, got {k}")
        queries_QC = F.normalize(queries_QC, dim=1)
        best_QK = queries_QC.new_empty(len(queries_QC), 0)
        labels_QK = self.labels_B.new_empty(len(queries_QC), 0)
        for start in range(0, len(self.labels_B), chunk_size):
            chunk = slice(start, start + chunk_size)
            similarity_QB = queries_QC @ self.features_BC[chunk].T
            candidates = torch.cat([best_QK, similarity_QB], dim=1)
            labels = torch.cat([labels_QK, self.labels_B[chunk].expand_as(similarity_QB)], dim=1)
            best_QK, index_QK = candidates.topk(min(k, candidates.shape[1]), dim=1)
            labels_QK = labels.gather(1, index_QK)
        return best_QK, labels_QK


def vote(
    similarity_QK: Tensor, labels_QK: Tensor, num_classes: int, temperature: float = 0.07
) -> Tensor:
    """Let neighbours vote, each with weight exp(similarity / temperature).

    Args:
        similarity_QK: cosine similarities, between -1 and 1.
        labels_QK: the neighbours' classes.
        num_classes: number of classes L.
        temperature: the smaller, the more the nearest count.

    Returns:
        Share of the votes ``(Q, L)``; each row sums to 1.

    Raises:
        ValueError: the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    weights_QK = torch.softmax(similarity_QK / temperature, dim=1)
    votes_QL = weights_QK.new_zeros(len(weights_QK), num_classes)
    return votes_QL.scatter_add_(1, labels_QK, weights_QK)


def knn_accuracy(
    bank: FeatureBank,
    batches: Iterable[Batch],
    ks: Sequence[int] = (10, 20),
    temperature: float = 0.07,
    top: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Classify images by their neighbours, and count how often that is right.

    Args:
        bank: labelled features.
        batches: features and labels of the images to classify, batch by batch.
        ks: numbers of neighbours.
        temperature: of the votes.
        top: a guess counts when the label is among the classes of the most votes: how many.

    Returns:
        Accuracies in percent, under names such as ``k10/top1``. A class without any vote ranks
        behind all others and never counts.

    Raises:
        ValueError: there is no image to classify, or an argument is outside what is allowed.
    """
    if not ks or not top or min(top) < 1:
        raise ValueError(f"ks and top need numbers of at least 1, got ks={ks}, top={top}")
    correct = {(k, n): 0 for k in ks for n in top}
    total = 0
    for queries_QC, labels_Q in batches:
        similarity_QK, neighbours_QK = bank.nearest(queries_QC, max(ks))
        for k in ks:
            votes_QL = vote(
                similarity_QK[:, :k], neighbours_QK[:, :k], bank.num_classes, temperature
            )
            most, classes = votes_QL.topk(min(max(top), bank.num_classes), dim=1)
            hits = (classes == labels_Q[:, None]) & (most > 0)
            for n in top:
                correct[k, n] += int(hits[:, :n].sum())
        total += len(labels_Q)
    if total == 0:
        raise ValueError("there is no image to classify")
    return {f"k{k}/top{n}": 100 * count / total for (k, n), count in correct.items()}
