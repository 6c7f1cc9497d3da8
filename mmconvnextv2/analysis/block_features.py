"""Looks into the blocks of a backbone while it encodes: ours, mmpretrain's ConvNeXt, and ViT.

Shape suffixes: N images, C channels, H and W positions, T tokens.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmconvnextv2.nn import ConvNeXtV2
from mmconvnextv2.nn.layouts import DenseLayout

Visit = Callable[[int, Tensor], None]
"""Takes the position of a block, from 0, and its features ``(N, C, H, W)``."""


See = Callable[[Tensor], None]
"""Takes the features of one block ``(N, C, H, W)``."""


class BlockName(NamedTuple):
    """Stage and place of a block in its stage, both from 1. The blocks of a ViT are one stage."""

    stage: int
    block: int


def block_names(backbone: nn.Module) -> list[BlockName]:
    """Names of the blocks, in the order of `visit_blocks`.

    Raises:
        TypeError: a backbone whose blocks are not known.
    """
    return [
        BlockName(stage, block)
        for stage, blocks in enumerate(_reader(backbone).stages, start=1)
        for block in range(1, len(blocks) + 1)
    ]


def visit_blocks(
    backbone: nn.Module,
    x_NCHW: Tensor,
    *,
    activation: Visit | None = None,
    hidden: Visit | None = None,
    output: Visit | None = None,
) -> None:
    """Encode whole images once, and show the features of every block on the way.

    Nothing is kept: a visitor that wants features later has to keep them. The backbone computes
    what it computes elsewhere, to rounding, each layer once. The tokens of a ViT are shown as the
    map of their patches, without the class token; its features inside a block are those of the
    feed-forward layer after its activation, which is "activation" and "hidden" alike.

    Args:
        backbone: ours, or mmpretrain's ConvNeXt (V1 and V2) or vision transformer, in eval mode.
        x_NCHW: normalised images.
        activation: called with what each block has after GELU and before GRN.
        hidden: called with what each block has after GELU and GRN, which its last layer gets.
        output: called with what each block returns.

    Raises:
        TypeError: a backbone whose blocks are not known.
    """
    reader = _reader(backbone)
    blocks = [block for stage in reader.stages for block in stage]
    with ExitStack() as hooks:
        for i, block in enumerate(blocks):
            if activation is not None:
                hooks.enter_context(reader.on_activation(block, _at(i, activation)))
            if hidden is not None:
                hooks.enter_context(reader.on_hidden(block, _at(i, hidden)))
        reader.encode(x_NCHW, output)


def _at(i: int, visit: Visit) -> See:
    return lambda features_NCHW: visit(i, features_NCHW)


def _reader(backbone: nn.Module) -> _Reader:
    if isinstance(backbone, ConvNeXtV2):
        return _OurReader(backbone)
    for kind, container in ((_ConvNeXtReader, "stages"), (_TransformerReader, "layers")):
        if isinstance(getattr(backbone, container, None), nn.ModuleList):
            reader = kind(backbone)
            if all(reader.stages):
                return reader
    raise TypeError(
        f"the blocks of a {type(backbone).__name__} are not known: give a backbone of this project "
        "or mmpretrain's ConvNeXt (V1, V2) or VisionTransformer (MAEViT, BEiTViT, ...)"
    )


class _Reader(ABC):
    """Where one kind of backbone has its blocks, and how its features become maps."""

    def __init__(self, backbone: Any, stages: list[list[Any]]) -> None:
        self.backbone = backbone
        self.stages = stages

    @abstractmethod
    def on_activation(self, block: Any, see: See) -> RemovableHandle: ...

    @abstractmethod
    def on_hidden(self, block: Any, see: See) -> RemovableHandle: ...

    @abstractmethod
    def on_output(self, block: Any, see: See) -> RemovableHandle: ...

    @abstractmethod
    def call(self, x_NCHW: Tensor) -> None: ...

    def encode(self, x_NCHW: Tensor, output: Visit | None) -> None:
        blocks = [block for stage in self.stages for block in stage]
        with ExitStack() as hooks:
            if output is not None:
                for i, block in enumerate(blocks):
                    hooks.enter_context(self.on_output(block, _at(i, output)))
            self.call(x_NCHW)


class _ConvNeXtReader(_Reader):
    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone, [_having(s, "pointwise_conv2") for s in backbone.stages])

    def on_activation(self, block: Any, see: See) -> RemovableHandle:
        # Ours has its GELU as a function, and what follows it may be GRN, a rival or nothing: so
        # the GELU is computed once more, from what it gets.
        act = getattr(block, "act", F.gelu)
        return block.pointwise_conv1.register_forward_hook(
            lambda layer, _, features: see(_channels_first(act(features), layer))
        )

    def on_hidden(self, block: Any, see: See) -> RemovableHandle:
        return block.pointwise_conv2.register_forward_pre_hook(
            lambda layer, inputs: see(_channels_first(inputs[0], layer))
        )

    def on_output(self, block: Any, see: See) -> RemovableHandle:
        return block.register_forward_hook(lambda _, inputs, features_NCHW: see(features_NCHW))

    def call(self, x_NCHW: Tensor) -> None:
        self.backbone(x_NCHW)


def _channels_first(features: Tensor, layer: nn.Module) -> Tensor:
    """Features at a pointwise layer as ``(N, C, H, W)``: a linear one has channels last."""
    return features.permute(0, 3, 1, 2) if isinstance(layer, nn.Linear) else features


class _OurReader(_ConvNeXtReader):
    def encode(self, x_NCHW: Tensor, output: Visit | None) -> None:
        layout, features, i = _LayerByLayer(), x_NCHW, 0
        for downsample, blocks in zip(self.backbone.downsample_layers, self.stages, strict=True):
            features = downsample(features, layout)
            for block in blocks:
                # Not block(...): a compiled block would keep the hooks it was compiled with.
                features = block.forward(features, layout)
                if output is not None:
                    output(i, layout.to_dense(features))
                i += 1


class _LayerByLayer(DenseLayout):
    """Dense features, and blocks that call each of their layers, so that hooks on these run."""

    def group_images(self, features: Tensor) -> Tensor | None:
        """Offer no view: with one, a block computes its pointwise layers as one function."""
        return None


class _TransformerReader(_Reader):
    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone, [_having(backbone.layers, "ffn")])
        self._grid = (0, 0)

    def on_activation(self, block: Any, see: See) -> RemovableHandle:
        return self.on_hidden(block, see)

    def on_hidden(self, block: Any, see: See) -> RemovableHandle:
        layers = [module for module in block.ffn.modules() if isinstance(module, nn.Linear)]
        return layers[-1].register_forward_pre_hook(lambda _, inputs: see(self._to_map(inputs[0])))

    def on_output(self, block: Any, see: See) -> RemovableHandle:
        return block.register_forward_hook(lambda _, inputs, x_NTC: see(self._to_map(x_NTC)))

    def call(self, x_NCHW: Tensor) -> None:
        def keep_grid(_: nn.Module, inputs: Any, output: tuple[Tensor, tuple[int, int]]) -> None:
            self._grid = output[1]

        # Those of masked image modelling draw a mask unless they are told not to.
        takes_mask = "mask" in inspect.signature(self.backbone.forward).parameters
        with self.backbone.patch_embed.register_forward_hook(keep_grid):
            self.backbone(x_NCHW, **(dict(mask=None) if takes_mask else {}))

    def _to_map(self, x_NTC: Tensor) -> Tensor:
        patches_NTC = x_NTC[:, self.backbone.num_extra_tokens :]
        return patches_NTC.transpose(1, 2).unflatten(2, self._grid)


def _having(module: nn.Module, attribute: str) -> list[nn.Module]:
    return [part for part in module.modules() if hasattr(part, attribute)]
