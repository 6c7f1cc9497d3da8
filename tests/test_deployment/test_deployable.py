"""What is exported against the models themselves: pixels in, tensors out, before any exporter."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from narrowing import ARCH, narrow_classifier, narrow_detector, narrow_segmentor
from torch import Tensor

from mmconvnextv2 import nn
from mmconvnextv2.checkpoint import StateDictMismatch
from mmconvnextv2.deployment import load_deployable, use_float16
from mmconvnextv2.deployment.export import trace

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "classifier": "convnextv2/convnextv2-atto_16xb64-coslr-300e_in1k.py",
    "segmentor": "upernet/convnextv2-atto_upernet_8xb2-amp-160k_ade20k-512x512.py",
    "detector": "mask_rcnn/mask-rcnn_convnextv2-atto_fpn_8xb4-amp-lsj-3x_coco.py",
}
NARROW = dict(classifier=narrow_classifier, segmentor=narrow_segmentor, detector=narrow_detector)


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Weights, norms and statistics such that no layer is an identity."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, tuple[Config, torch.nn.Module, Path]]:
    """Config, model and checkpoint of each task."""
    folder, result = tmp_path_factory.mktemp("checkpoints"), {}
    for task, name in CONFIGS.items():
        config = Config.fromfile(ROOT / "configs" / name)
        NARROW[task](config, folder / "nothing.json")
        with DefaultScope.overwrite_default_scope(config.default_scope):
            model = randomize(MODELS.build(copy.deepcopy(config.model)))
        path = folder / f"{task}.pth"
        torch.save(dict(state_dict=model.state_dict()), path)
        result[task] = config, model, path
    return result


def pictures(batch: int, height: int, width: int) -> Tensor:
    """RGB pixel values."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator).float()


def preprocessed(model: torch.nn.Module, rgb_N3HW: Tensor) -> Tensor:
    """What the model's own preprocessor makes of the pictures, which it takes in BGR."""
    batch = dict(inputs=list(rgb_N3HW.flip(1).byte()), data_samples=None)
    return model.data_preprocessor(batch)["inputs"]


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_a_classifier_takes_rgb_pixels(built) -> None:
    config, model, path = built["classifier"]
    rgb_N3HW = pictures(3, 64, 96)
    (logits_NK,) = load_deployable(config, path)(rgb_N3HW)
    assert logits_NK.shape == (3, 1000)
    assert_close(logits_NK, model(preprocessed(model, rgb_N3HW), mode="tensor"))


def test_a_segmentor_gives_what_its_own_inference_gives(built) -> None:
    config, model, path = built["segmentor"]
    deployable = load_deployable(config, path)
    assert deployable.fixed_shape == (64, 64)
    rgb_N3HW = pictures(2, 64, 64)
    (logits_NKHW,) = deployable(rgb_N3HW)
    metas = [dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64))] * 2
    assert_close(logits_NKHW, model.whole_inference(preprocessed(model, rgb_N3HW), metas))


def test_the_caller_may_normalise(built) -> None:
    config, model, path = built["classifier"]
    x_NCHW = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    deployable = load_deployable(config, path, normalize=False)
    assert_close(deployable(x_NCHW)[0], model(x_NCHW, mode="tensor"))
    assert "(pixels - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]" in deployable.expects


def test_the_maps_of_a_detector_are_normed(built) -> None:
    config, model, path = built["detector"]
    x_NCHW = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    maps = load_deployable(config, path, "backbone", normalize=False)(x_NCHW)
    expected = model.backbone(x_NCHW)
    assert len(maps) == len(expected) == 4
    for found, wanted in zip(maps, expected, strict=True):
        assert_close(found, wanted)


def test_the_maps_of_a_classifier_are_raw(built) -> None:
    config, model, path = built["classifier"]
    plain = nn.ConvNeXtV2(
        ARCH, out_indices=(0, 1, 2, 3), gap_before_final_norm=False, output_norms=False
    )
    plain.load_state_dict(
        {k: v for k, v in model.backbone.state_dict().items() if not k.startswith("norm3.")}
    )
    x_NCHW = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    maps = load_deployable(config, path, "backbone", normalize=False)(x_NCHW)
    for found, wanted in zip(maps, plain.eval()(x_NCHW), strict=True):
        assert_close(found, wanted)


def test_bgr_models_say_so(built) -> None:
    config, _, path = built["classifier"]
    config = copy.deepcopy(config)
    config.model.data_preprocessor.to_rgb = False
    assert load_deployable(config, path).expects.startswith("BGR,")


def test_float16_leaves_the_norms_alone(built) -> None:
    config, _, path = built["segmentor"]
    module = load_deployable(config, path)
    half = use_float16(module)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    norms = (nn.GRN, torch.nn.LayerNorm)
    kinds = {
        (isinstance(part, norms), p.dtype)
        for part in half.network.modules()
        for p in part.parameters(recurse=False)
    }
    assert kinds == {(True, torch.float32), (False, torch.float16)}
    rgb_N3HW = pictures(2, 64, 64)
    (expected,), (found,) = module(rgb_N3HW), half(rgb_N3HW)
    error = (found - expected).abs().max() / expected.abs().max()
    assert found.dtype == torch.float32 and 0 < error < 2e-2


def test_the_recorded_operations_are_aten_alone(built) -> None:
    """No fused function of ours, and no size that the example happened to have."""
    config, _, path = built["classifier"]
    module = load_deployable(config, path, "backbone")
    programs = [trace(module), trace(use_float16(module), 2, (64, 64))]
    for program in programs:
        calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert calls and {str(call).split(".")[0] for call in calls} == {"aten"}
    for shape in ((1, 64, 64), (5, 128, 96)):
        rgb_N3HW = pictures(*shape)
        for found, wanted in zip(programs[0].module()(rgb_N3HW), module(rgb_N3HW), strict=True):
            assert_close(found, wanted)


def test_a_whole_detector_is_refused(built) -> None:
    config, _, path = built["detector"]
    with pytest.raises(ValueError, match=r"is MaskRCNN; .*--part backbone.*deployment\.md"):
        load_deployable(config, path)


def test_configs_that_do_not_serve_are_refused(built) -> None:
    config, _, path = built["classifier"]
    other = copy.deepcopy(config)
    other.model.backbone = dict(type="ResNet", depth=18)
    for part in ("model", "backbone"):
        with pytest.raises(ValueError, match="ConvNeXtV2"):
            load_deployable(other, path, part)
    bare = copy.deepcopy(config)
    bare.model.data_preprocessor = dict(num_classes=1000)
    with pytest.raises(ValueError, match="no mean and std.*--no-normalize"):
        load_deployable(bare, path)
    assert load_deployable(bare, path, normalize=False).expects.endswith("as in training")
    with pytest.raises(ValueError, match="no model"):
        load_deployable(Config(), path)
    with pytest.raises(ValueError, match="one of backbone, model, got 'neck'"):
        load_deployable(config, path, "neck")


@pytest.mark.parametrize("part", ["model", "backbone"])
def test_a_checkpoint_that_does_not_fit_is_refused(built, tmp_path, part: str) -> None:
    config, model, _ = built["classifier"]
    tensors = model.state_dict()
    tensors.pop("backbone.stages.2.0.grn.gamma")
    torch.save(dict(state_dict=tensors), tmp_path / "short.pth")
    with pytest.raises(StateDictMismatch, match=r"stages\.2\.0\.grn\.gamma"):
        load_deployable(config, tmp_path / "short.pth", part)


def test_a_detector_wants_the_norms_of_its_maps(built) -> None:
    """A file of another task, here the classifier's, has no norms for four maps."""
    config, (_, _, path) = built["detector"][0], built["classifier"]
    with pytest.raises(StateDictMismatch, match="norm0.weight"):
        load_deployable(config, path, "backbone")
