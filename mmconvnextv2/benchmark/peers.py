"""The alternatives of other libraries, imported on demand and given our weights where they fit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from mmconvnextv2.checkpoint import StateDictMismatch, convert_state_dict, load_strictly
from mmconvnextv2.checkpoint.key_maps import TIMM_CONV_SIZES
from mmconvnextv2.nn import ARCHITECTURES, ConvNeXtV2


class LeftOut(Exception):
    """An alternative cannot take part; the message says why."""


class Encoder(nn.Module):
    """A peer's network, whose forward pass returns the raw feature map of its last stage.

    Args:
        network: the peer's module.
        features: computes the map ``(N, C, H / 32, W / 32)`` from the network and images.
    """

    def __init__(self, network: nn.Module, features: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Compute the map."""
        return self.features(self.network, x_NCHW)


def import_peer(name: str, distribution: str | None = None) -> ModuleType:
    """Import a module of a peer.

    Args:
        name: the module.
        distribution: what to install, where that is not the module's first name.

    Raises:
        LeftOut: it is not installed, or its import fails.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == package:
            what = distribution or package
            raise LeftOut(f"{package} is not installed (pip install {what})") from error
        raise LeftOut(f"{package} cannot be imported: {error}") from error
    # An old build against another torch raises what it likes, AttributeError and OSError included.
    except Exception as error:
        raise LeftOut(f"{package} cannot be imported: {type(error).__name__}: {error}") from error


def timm_encoder(ours: ConvNeXtV2, arch: str) -> Encoder:
    """Timm's ConvNeXt V2 with our weights."""
    convnext = import_peer("timm.models.convnext")
    network = convnext.ConvNeXt(
        depths=ours.depths,
        dims=ours.channels,
        num_classes=0,
        use_grn=True,
        ls_init_value=None,
        conv_mlp=arch in TIMM_CONV_SIZES,
    )
    # The head's norm is no part of the feature map.
    network.head = nn.Identity()
    load_ours(network, ours, "timm")
    return Encoder(network, lambda net, x_NCHW: net.forward_features(x_NCHW))


def transformers_encoder(ours: ConvNeXtV2, arch: str) -> Encoder:
    """The ConvNextV2Model of transformers with our weights."""
    transformers = import_peer("transformers")
    config = transformers.ConvNextV2Config(
        hidden_sizes=list(ours.channels), depths=list(ours.depths)
    )
    network = transformers.ConvNextV2Model(config)
    network.layernorm = nn.Identity()
    load_ours(network, ours, "transformers", prefix="convnextv2.")
    return Encoder(network, lambda net, x_NCHW: net(x_NCHW).last_hidden_state)


def mmpretrain_encoder(ours: ConvNeXtV2, arch: str) -> Encoder:
    """The ConvNeXt of mmpretrain with our weights, which need no renaming."""
    models = import_peer("mmpretrain.models", "onedl-mmpretrain")
    network = models.ConvNeXt(
        arch=dict(depths=list(ours.depths), channels=list(ours.channels)),
        use_grn=True,
        layer_scale_init_value=0.0,
        gap_before_final_norm=False,
        out_indices=[3],
    )
    network.norm3 = nn.Identity()
    load_ours(network, ours, "mmpretrain", prefix="backbone.")
    return Encoder(network, lambda net, x_NCHW: net(x_NCHW)[-1])


DENSE_ENCODERS: dict[str, Callable[[ConvNeXtV2, str], Encoder]] = {
    "timm": timm_encoder,
    "transformers": transformers_encoder,
    "mmpretrain": mmpretrain_encoder,
}
"""Each builds a peer's encoder with the weights of ours, by the library's name."""


def load_ours(network: nn.Module, ours: ConvNeXtV2, publisher: str, prefix: str = "") -> None:
    """Load our weights into a peer's network, under its names and in its shapes.

    Args:
        network: the peer's.
        ours: the backbone, without output norms.
        publisher: of `mmconvnextv2.checkpoint.PUBLISHERS`.
        prefix: what the publisher's files have before the names of a network without a head.

    Raises:
        LeftOut: the two have not the same tensors.
    """
    converted = convert_state_dict(ours.state_dict(), target=publisher).state_dict
    try:
        load_strictly(network, {key.removeprefix(prefix): converted[key] for key in converted})
    except StateDictMismatch as error:
        said = " ".join(str(error).split())
        raise LeftOut(f"its tensors are not those of {publisher}'s files: {said}") from error


def mmpretrain_mae(image_size: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Mmpretrain's MAE of ViT-B/16 as its configs/mae has it, and its loss."""
    patches = (image_size // 16) ** 2
    return _mmpretrain_model(
        type="MAE",
        backbone=dict(type="MAEViT", arch="b", patch_size=16, mask_ratio=0.75, img_size=image_size),
        neck=dict(
            type="MAEPretrainDecoder",
            num_patches=patches,
            patch_size=16,
            embed_dim=768,
            decoder_embed_dim=512,
            decoder_depth=8,
            decoder_num_heads=16,
        ),
        head=dict(
            type="MAEPretrainHead",
            norm_pix=True,
            patch_size=16,
            loss=dict(type="PixelReconstructionLoss", criterion="L2"),
        ),
    )


def transformers_mae(image_size: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The ViTMAEForPreTraining of transformers, ViT-B/16 at a mask ratio of 0.75, and its loss."""
    transformers = import_peer("transformers")
    config = transformers.ViTMAEConfig(image_size=image_size, norm_pix_loss=True, mask_ratio=0.75)
    model = transformers.ViTMAEForPreTraining(config)
    return model, lambda x_NCHW: model(x_NCHW).loss


def mmpretrain_spark(arch: str, image_size: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Mmpretrain's SparK of ConvNeXt V2 as its configs/spark has it, for any size; and its loss."""
    settings = ARCHITECTURES[arch]
    return _mmpretrain_model(
        type="SparK",
        input_size=image_size,
        mask_ratio=0.6,
        enc_dec_norm_cfg=dict(type="SparseLN2d", eps=1e-6),
        enc_dec_norm_dim=settings["channels"][-1],
        backbone=dict(
            type="SparseConvNeXt",
            arch={key: list(value) for key, value in settings.items()},
            drop_path_rate=0.2,
            out_indices=(0, 1, 2, 3),
            gap_before_output=False,
            layer_scale_init_value=0.0,
            use_grn=True,
        ),
        # Its default is synchronised batch norm, which is plain batch norm in a single process.
        neck=dict(
            type="SparKLightDecoder",
            feature_dim=512,
            upsample_ratio=32,
            norm_cfg=dict(type="BN2d"),
            last_act=False,
        ),
        head=dict(
            type="SparKPretrainHead",
            loss=dict(type="PixelReconstructionLoss", criterion="L2"),
        ),
    )


def _mmpretrain_model(**config: Any) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    import_peer("mmpretrain.models", "onedl-mmpretrain")
    model = import_peer("mmpretrain.registry").MODELS.build(config)
    return model, lambda x_NCHW: model.loss(x_NCHW, data_samples=None)["loss"]
