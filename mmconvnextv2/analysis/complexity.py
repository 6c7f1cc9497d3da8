"""Parameters and FLOPs of a config's model, counted from shapes alone.

One FLOP is one multiply-accumulate, the field's habit (and that of the paper): what is counted is
every convolution and every matrix product of one image's forward pass, attention included. Norms,
activations, pooling, interpolation and RoIAlign are not. A training step costs about three times
as much, since every product has two gradients.

torch's own `FlopCounterMode` does the counting: it sees the operations as they are dispatched,
those of custom autograd functions included, where mmengine's counter traces a graph with real
memory. Under fake tensors nothing is computed or allocated, so Huge costs a second; the mask of a
masked call is real, because the plan of its visible cells is read from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmconvnextv2.nn import CELL_SIZE, FCMAE, VisibleCells

Shape = tuple[int, int]
"""Height and width of the input image in pixels."""

NUM_PROPOSALS = 1000
"""Boxes that go through a detector's box head, as in mmdet's own tool."""

NUM_MASKS = 100
"""Boxes that go through a detector's mask head, as in mmdet's own tool."""

DETECTION_SHAPE = (800, 1280)
"""The input that detectors are compared at, 1280x800 as papers write it (width x height)."""


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates.

    Attributes:
        flops: all that are counted.
        attention: those of batched matrix products, as queries with keys and weights with values;
            counters that hook modules miss them.
    """

    flops: int = 0
    attention: int = 0


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        name: what it is.
        parameters: number of parameters.
        cost: what one image's forward pass takes.
    """

    name: str
    parameters: int
    cost: Cost


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a model.

    Attributes:
        name: what was counted, and under which assumptions.
        shape: height and width of the input.
        parts: the parts, in the order in which an image passes them.
    """

    name: str
    shape: Shape
    parts: tuple[Part, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model."""
        return sum(part.parameters for part in self.parts)

    @property
    def flops(self) -> int:
        """Multiply-accumulates of one image's forward pass."""
        return sum(part.cost.flops for part in self.parts)

    @property
    def attention(self) -> int:
        """Those of `flops` that are batched matrix products."""
        return sum(part.cost.attention for part in self.parts)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within it, tensors have shapes but neither values nor memory, and no graph is kept.

    Modules built outside may be used. Attention runs as two matrix products, which the counter
    sees, in place of a fused kernel, which it would miss.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def count_parameters(module: Module) -> int:
    """Number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def count(function: Callable[..., Any], *inputs: Any) -> tuple[Cost, Any]:
    """Call a function and count its multiply-accumulates.

    Returns:
        The cost, and what the function returned.
    """
    with FlopCounterMode(display=False) as counter:
        output = function(*inputs)
    by_operation = counter.get_flop_counts()["Global"]
    attention = by_operation.get(torch.ops.aten.bmm, 0) + by_operation.get(
        torch.ops.aten.baddbmm, 0
    )
    # torch counts a multiplication and an addition as two.
    return Cost(counter.get_total_flops() // 2, attention // 2), output


def measure_config(cfg: Config, shape: Shape | None = None) -> list[Complexity]:
    """Count the model of a config: a classifier, a detector, a segmentor or FCMAE.

    Images have three channels.

    Args:
        cfg: a whole config; ``default_scope`` and ``model`` are read, for FCMAE the mask ratio as
            well.
        shape: height and width of the input; `default_shape` when None.

    Returns:
        One entry; for FCMAE two, the encoder on whole maps and on visible cells only, unless its
        encoder is a dense one.

    Raises:
        ValueError: a model of another kind, or a shape that it cannot take.
    """
    shape = shape or default_shape(cfg)
    if min(shape) < CELL_SIZE:
        raise ValueError(f"both sides must be at least {CELL_SIZE} pixels, got {shape} (H, W)")
    task = _task(cfg)
    # The plan is read from the mask's values, so it is made where tensors have values.
    cells = _draw_cells(cfg, shape) if cfg.model.type == "FCMAE" else None
    with shapes_only():
        model = build_model(cfg)
        if cells is not None:
            layouts = ("masked", "packed") if model.sparse_encoder else ("masked",)
            return [measure_fcmae(model, cells, layout) for layout in layouts]
        return [_MEASURES[task](model, shape)]


def build_model(cfg: Config) -> Any:
    """Build the model of a config in evaluation mode; no checkpoint is loaded."""
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        return MODELS.build(cfg.model).eval()


def default_shape(cfg: Config) -> Shape:
    """The input that a config's model is compared at, height and width.

    Detectors: 800x1280. Segmentors: the side of the crop, and four times that, as 512x2048. All
    others: the size of the training crop.

    Raises:
        ValueError: the config does not tell.
    """
    task = _task(cfg)
    if task == "detection":
        return DETECTION_SHAPE
    if task == "segmentation":
        size = cfg.model.get("data_preprocessor", cfg.get("data_preprocessor", {})).get("size")
        if size is not None:
            return size[0], 4 * size[1]
    else:
        dataset = cfg.get("train_dataloader", {}).get("dataset", {})
        while "dataset" in dataset:
            dataset = dataset["dataset"]
        for transform in dataset.get("pipeline", []):
            if transform["type"] in ("RandomResizedCrop", "LoadRandomResizedCrop"):
                scale = transform["scale"]
                return (scale, scale) if isinstance(scale, int) else (scale[0], scale[1])
    raise ValueError("the config names no input size; give one with --shape HEIGHT WIDTH")


def measure_module(name: str, module: Module, shape: Shape) -> Complexity:
    """Count any module that takes images alone, such as a classifier of timm."""
    cost, _ = count(module, _image(shape))
    return Complexity(name, shape, (Part("model", count_parameters(module), cost),))


def measure_classifier(model: Any, shape: Shape) -> Complexity:
    """Count an mmpretrain classifier: backbone and neck, and head."""
    backbone_cost, features = count(model.extract_feat, _image(shape))
    head_cost, _ = count(model.head, features)
    head_parameters = count_parameters(model.head)
    body = count_parameters(model) - head_parameters
    parts = (Part("backbone", body, backbone_cost), Part("head", head_parameters, head_cost))
    return Complexity("classifier", shape, parts)


def measure_detector(model: Any, shape: Shape) -> Complexity:
    """Count a two-stage mmdet detector with a mask head, such as Mask R-CNN.

    How many boxes reach the second stage depends on the image, so their number is fixed:
    `NUM_PROPOSALS` for the box head and `NUM_MASKS` for the mask head.
    """
    backbone_cost, features = count(model.backbone, _image(shape))
    neck_cost, features = count(model.neck, features)
    rpn_cost, _ = count(model.rpn_head, features)
    roi_head = model.roi_head
    box_cost, _ = count(roi_head.bbox_head, _regions(roi_head.bbox_roi_extractor, NUM_PROPOSALS))
    mask_cost, _ = count(roi_head.mask_head, _regions(roi_head.mask_roi_extractor, NUM_MASKS))
    parts = (
        Part("backbone", count_parameters(model.backbone), backbone_cost),
        Part("neck", count_parameters(model.neck), neck_cost),
        Part("RPN head", count_parameters(model.rpn_head), rpn_cost),
        Part("box head", count_parameters(roi_head.bbox_head), box_cost),
        Part("mask head", count_parameters(roi_head.mask_head), mask_cost),
    )
    name = f"detector, {NUM_PROPOSALS} proposals, {NUM_MASKS} masks"
    return Complexity(name, shape, parts)


def measure_segmentor(model: Any, shape: Shape) -> Complexity:
    """Count an mmseg encoder-decoder on the whole image; its auxiliary head only trains."""
    backbone_cost, features = count(model.extract_feat, _image(shape))
    head_cost, _ = count(model.decode_head, features)
    parts = [
        Part("backbone", count_parameters(model.backbone), backbone_cost),
        Part("decode head", count_parameters(model.decode_head), head_cost),
    ]
    if model.with_auxiliary_head:
        auxiliary = count_parameters(model.auxiliary_head)
        parts.append(Part("auxiliary head (training only)", auxiliary, Cost()))
    return Complexity("segmentor", shape, tuple(parts))


def measure_fcmae(model: FCMAE, cells: VisibleCells, layout: str) -> Complexity:
    """Count the encoder and decoder of FCMAE under a mask, as the layout runs them.

    The packed layout is charged for a depthwise convolution over the dense map, which it runs
    everywhere but in float32 on a CPU.

    Args:
        model: the autoencoder; its ``mask_layout`` is restored.
        cells: plan of one image's mask, made from a real mask.
        layout: "masked" for whole maps, "packed" for visible cells only.
    """
    _, rows, columns = cells.mask_NHW.shape
    shape = (CELL_SIZE * rows, CELL_SIZE * columns)
    before, model.backbone.mask_layout = model.backbone.mask_layout, layout
    try:
        encoder_cost, features_NCHW = count(model.forward_encoder, _image(shape), cells)
    finally:
        model.backbone.mask_layout = before
    decoder_cost, _ = count(model.forward_decoder, features_NCHW, cells.mask_NHW)
    parts = (
        Part("encoder", count_parameters(model.backbone), encoder_cost),
        Part("decoder", count_parameters(model.neck), decoder_cost),
    )
    where = {"masked": "whole maps", "packed": "visible cells only"}[layout]
    name = f"FCMAE, {cells.num_visible} of {cells.mask_NHW.numel()} cells visible, {where}"
    return Complexity(name, shape, parts)


def _image(shape: Shape) -> Tensor:
    return torch.empty(1, 3, *shape)


def _regions(extractor: Any, number: int) -> Tensor:
    """What a RoI head's extractor hands on: ``(number, C, S, S)``."""
    return torch.empty(number, extractor.out_channels, *extractor.roi_layers[0].output_size)


def _draw_cells(cfg: Config, shape: Shape) -> VisibleCells:
    settings = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        preprocessor = MODELS.build({"type": "FCMAEDataPreprocessor", **settings})
    return VisibleCells.from_mask(preprocessor.draw_mask(1, shape))


def _task(cfg: Config) -> str:
    """What kind of model a config describes, by the parts that it names."""
    model: Mapping[str, Any] = cfg.model
    parts = {
        "classification": {"backbone", "head"},
        "detection": {"backbone", "neck", "rpn_head", "roi_head"},
        "segmentation": {"backbone", "decode_head"},
    }
    for task, needed in parts.items():
        if needed <= set(model):
            return task
    raise ValueError(
        f"cannot count a {model['type']}: a classifier, a two-stage detector with masks, a "
        f"segmentor or FCMAE is needed, but the model has {sorted(set(model) - {'type'})}"
    )


_MEASURES: dict[str, Callable[[Any, Shape], Complexity]] = {
    "classification": measure_classifier,
    "detection": measure_detector,
    "segmentation": measure_segmentor,
}
