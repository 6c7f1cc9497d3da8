"""Data for every task: importing this package registers datasets, samplers and transforms."""

from mmconvnextv2.datasets.image_folder import BadImagesError, ImageFolder
from mmconvnextv2.datasets.image_reading import UnreadableImageError, read_image
from mmconvnextv2.datasets.samplers import StatelessInfiniteSampler, StatelessSampler
from mmconvnextv2.datasets.stateless import SeededIndex, StatelessDataset
from mmconvnextv2.datasets.transforms import LoadImage, LoadRandomResizedCrop

__all__ = [
    "BadImagesError",
    "ImageFolder",
    "LoadImage",
    "LoadRandomResizedCrop",
    "SeededIndex",
    "StatelessDataset",
    "StatelessInfiniteSampler",
    "StatelessSampler",
    "UnreadableImageError",
    "read_image",
]
