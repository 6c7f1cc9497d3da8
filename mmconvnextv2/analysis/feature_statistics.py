"""Figures that tell varied features from collapsed ones, without labels and with them.

Shape suffixes: N images, C channels, H and W positions, P all positions of a map, B blocks,
S stages, K neighbours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmconvnextv2.analysis.block_features import BlockName, block_names, visit_blocks
from mmconvnextv2.analysis.knn import vote

COLLAPSED_BELOW = 0.35
"""Mean cosine distance of a stage below which its channels count as collapsing.

It lies below every block of the paper's healthy encoders (figure 4: 0.41 is the lowest of V2, 0.35
that of MAE's ViT) and above stages 2 to 4 of the V1 that collapses (0.31, 0.29 and 0.20). The last
stage of a supervised V1, at 0.29, is below it too, and no failure.
"""


def channel_diversity(features_NCHW: Tensor) -> Tensor:
    """Mean cosine distance between the channels of each image's feature map.

    Paper, section 3 ("Feature cosine distance analysis"): with X_i the map of channel i as a
    vector, d = 1/C^2 sum_ij (1 - cos(X_i, X_j)) / 2, the terms i = j included. Since the sum of all
    cosines is the squared length of the sum of all unit vectors, the cost is O(C H W) and not
    O(C^2 H W).

    A dead channel, 0 at every position, has no direction. It counts as equal to all others: it
    adds nothing, and a collapse by dying channels shows as a low distance too.

    Args:
        features_NCHW: feature maps; positions that are 0 in all channels, such as those of removed
            cells, change nothing.

    Returns:
        float64 ``(N,)`` between 0, all channels equal up to a positive factor, and 1; channels
        without relation give about 0.5.

    Raises:
        ValueError: not four dimensions, or one of them is empty.
    """
    if features_NCHW.ndim != 4 or 0 in features_NCHW.shape:
        raise ValueError(f"features must be (N, C, H, W), got {tuple(features_NCHW.shape)}")
    features_NCP = features_NCHW.flatten(2).float()
    # The largest value first: squares of very large or small features leave the range of float32.
    features_NCP = features_NCP / _or_one(features_NCP.abs().amax(dim=2, keepdim=True))
    norm_NC1 = features_NCP.norm(dim=2, keepdim=True)
    alive_N = (norm_NC1 > 0).sum(dim=(1, 2)).double()
    direction_NP = (features_NCP / _or_one(norm_NC1)).sum(dim=1, dtype=torch.float64)
    squared_length_N = direction_NP.square().sum(dim=1)
    channels = features_NCP.shape[1]
    return ((alive_N.square() - squared_length_N) / (2 * channels**2)).clamp(min=0)


def _or_one(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.ones_like(x))


def block_diversity(backbone: nn.Module, x_NCHW: Tensor) -> Tensor:
    """Encode whole images, and measure the diversity of the channels inside each block.

    Measured is what the last layer of a block gets: the 4C channels after GELU and GRN. There the
    paper sees the collapse that GRN prevents ("in the dimension-expansion MLP layers"); which
    tensor its figure 4 shows is not stated. In a ViT it is the same place, the feed-forward layer
    after its activation.

    Args:
        backbone: any that `visit_blocks` knows, in eval mode.
        x_NCHW: normalised images.

    Returns:
        `channel_diversity` of the B blocks, float64 ``(N, B)``.

    Raises:
        TypeError: a backbone whose blocks are not known.
    """
    return _measure(backbone, x_NCHW)[0]


def stage_diversity(backbone: nn.Module, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Average `block_diversity` over the blocks of each stage.

    In the paper's figure 4 the blocks of V2 lie between 0.41 and 0.49, and those of a V1 that
    collapses go down to 0.18.

    Returns:
        Means float64 ``(N, S)``, and the features of the last block ``(N, C, H, W)``, without any
        output norm.

    Raises:
        TypeError: a backbone whose blocks are not known.
    """
    diversity_NB, features_NCHW = _measure(backbone, x_NCHW)
    return mean_by_stage(diversity_NB, block_names(backbone)), features_NCHW


def mean_by_stage(values_NB: Tensor, blocks: Sequence[BlockName]) -> Tensor:
    """Average figures of the blocks over those of each stage, ``(N, S)``."""
    sizes = Counter(name.stage for name in blocks)
    return torch.stack(
        [stage_NB.mean(dim=1) for stage_NB in values_NB.split(list(sizes.values()), dim=1)], dim=1
    )


def _measure(backbone: nn.Module, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    diversity: list[Tensor] = []
    last = [x_NCHW]

    def keep_last(_: int, features_NCHW: Tensor) -> None:
        last[0] = features_NCHW

    visit_blocks(
        backbone,
        x_NCHW,
        hidden=lambda _, features_NCHW: diversity.append(channel_diversity(features_NCHW)),
        output=keep_last,
    )
    return torch.stack(diversity, dim=1), last[0]


def effective_rank(features_NC: Tensor) -> float:
    """Number of directions that the features of a set of images really use.

    exp of the entropy of the singular values, normalised to sum 1 (Roy and Vetterli, 2007; RankMe,
    Garrido et al., 2023, which does not centre the features either). If all images get the same
    features, the rank is 1.

    Args:
        features_NC: pooled features, one row an image. Compare ranks of equal N only: the rank is
            at most min(N, C), and grows with N.

    Returns:
        The rank, from 1 on; 1 as well where all features are 0, and nan where one is not finite.

    Raises:
        ValueError: there is no feature.
    """
    if features_NC.ndim != 2 or 0 in features_NC.shape:
        raise ValueError(f"features must be (N, C), got {tuple(features_NC.shape)}")
    if not torch.isfinite(features_NC).all():
        return math.nan
    values = torch.linalg.svdvals(features_NC.double())
    if values[0] == 0:
        return 1.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def leave_one_out_knn(
    features_NC: Tensor, labels_N: Tensor, k: int = 20, temperature: float = 0.07
) -> float:
    """Classify each image by the votes of its nearest neighbours among all the others.

    Args:
        features_NC: features of any length.
        labels_N: class indices, from 0.
        k: number of neighbours, cut to N - 1 where there are fewer.
        temperature: of the votes, see `mmconvnextv2.analysis.knn.vote`.

    Returns:
        Share of the images whose class got the most votes, in percent.

    Raises:
        ValueError: fewer than two images, `k` below 1, a label below 0, or another number of
            labels.
    """
    images = len(features_NC)
    if images < 2 or len(labels_N) != images or k < 1 or labels_N.min() < 0:
        raise ValueError(
            f"leave-one-out needs at least 2 images with one label from 0 each, and k of at least "
            f"1: got {images} images, {len(labels_N)} labels, k={k}"
        )
    features_NC = F.normalize(features_NC, dim=1)
    similarity_NN = (features_NC @ features_NC.T).fill_diagonal_(-torch.inf)
    similarity_NK, neighbours_NK = similarity_NN.topk(min(k, images - 1), dim=1)
    num_classes = int(labels_N.max()) + 1
    votes = vote(similarity_NK, labels_N[neighbours_NK], num_classes, temperature)
    return 100 * (votes.argmax(dim=1) == labels_N).double().mean().item()
