"""Data for every task: importing this package registers datasets, samplers and transforms."""

from mmconvnextv2.datasets.image_folder import BadImagesError, ImageFolder
from mmconvnextv2.datasets.image_reading import UnreadableImageError, read_image
from mmconvnextv2.datasets.raster_reading import read_raster
from mmconvnextv2.datasets.raster_transforms import (
    LoadRaster,
    NormalizeChannels,
    RasterCenterCrop,
    RasterRandomResizedCrop,
)
from mmconvnextv2.datasets.samplers import StatelessInfiniteSampler, StatelessSampler
from mmconvnextv2.datasets.shard_index import ShardError
from mmconvnextv2.datasets.shards import ShardedImages
from mmconvnextv2.datasets.split_image_folder import SplitImageFolder
from mmconvnextv2.datasets.stateless import SeededIndex, StatelessDataset
from mmconvnextv2.datasets.transforms import LoadImage, LoadRandomResizedCrop

__all__ = [
    "BadImagesError",
    "ImageFolder",
    "LoadImage",
    "LoadRandomResizedCrop",
    "LoadRaster",
    "NormalizeChannels",
    "RasterCenterCrop",
    "RasterRandomResizedCrop",
    "SeededIndex",
    "ShardError",
    "ShardedImages",
    "SplitImageFolder",
    "StatelessDataset",
    "StatelessInfiniteSampler",
    "StatelessSampler",
    "UnreadableImageError",
    "read_image",
    "read_raster",
]
