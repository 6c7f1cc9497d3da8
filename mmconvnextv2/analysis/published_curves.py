"""The curves of the paper's figure 4: mean cosine distance of the channels, block by block.

Read off the picture, to about 0.003. The supervised V1's first and third points lie behind other
markers, near 0.48. The figure has 36 points for ConvNeXt, which are the blocks of Base or Large,
and 12 for ViT, those of ViT-B; each is the mean over 1,000 images of ImageNet-1K's validation set
of different classes. The paper does not name the tensor.
"""

from __future__ import annotations

PAPER_CURVES: dict[str, tuple[float, ...]] = {
    "ConvNeXt V2, FCMAE": (
        *(0.486, 0.483, 0.484, 0.466, 0.483, 0.486, 0.489, 0.442, 0.458, 0.490, 0.459, 0.478),
        *(0.480, 0.493, 0.474, 0.474, 0.456, 0.441, 0.486, 0.461, 0.475, 0.422, 0.423, 0.433),
        *(0.453, 0.486, 0.481, 0.453, 0.457, 0.430, 0.452, 0.452, 0.450, 0.416, 0.410, 0.473),
    ),
    "ConvNeXt V1, FCMAE": (
        *(0.478, 0.405, 0.466, 0.348, 0.280, 0.296, 0.341, 0.313, 0.321, 0.321, 0.335, 0.296),
        *(0.321, 0.329, 0.277, 0.357, 0.256, 0.240, 0.297, 0.349, 0.374, 0.304, 0.311, 0.307),
        *(0.264, 0.218, 0.252, 0.242, 0.273, 0.273, 0.258, 0.213, 0.199, 0.178, 0.239, 0.186),
    ),
    "ConvNeXt V1, supervised": (
        *(0.480, 0.447, 0.480, 0.445, 0.426, 0.479, 0.379, 0.424, 0.451, 0.410, 0.452, 0.453),
        *(0.442, 0.430, 0.416, 0.434, 0.445, 0.449, 0.420, 0.453, 0.460, 0.448, 0.456, 0.398),
        *(0.445, 0.437, 0.424, 0.409, 0.415, 0.426, 0.409, 0.382, 0.364, 0.333, 0.282, 0.261),
    ),
    "ViT, MAE": (
        *(0.491, 0.361, 0.383, 0.404, 0.387, 0.381, 0.380, 0.353, 0.366, 0.363, 0.371, 0.353),
    ),
}
"""Distance at each block, from the first to the last."""


def layer_positions(count: int) -> list[float]:
    """Normalised layer index of each of some blocks: 0 is the first, 1 the last."""
    return [i / max(count - 1, 1) for i in range(count)]
