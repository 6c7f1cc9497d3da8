"""ONNX files: what they compute without this package, and what they are made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from narrowing import ARCH, narrow_classifier, narrow_segmentor
from PIL import Image

from mmconvnextv2.analysis.complexity import build_model
from mmconvnextv2.deployment import CheckFailed, export
from mmconvnextv2.deployment import export as export_function
from mmconvnextv2.nn import ConvNeXtV2

onnx = pytest.importorskip("onnx", reason="ONNX export needs onnx")
pytest.importorskip("onnxscript", reason="ONNX export needs onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="the check needs onnxruntime")

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo" / "image_demo_onnx.py"
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def randomized(config: Config, path: Path) -> torch.nn.Module:
    """The config's model, no layer an identity, and its checkpoint."""
    model = build_model(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2, generator=generator)
    torch.save(dict(state_dict=model.state_dict()), path)
    return model


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> tuple[Config, torch.nn.Module, Path]:
    folder = tmp_path_factory.mktemp("classifier")
    name = "convnextv2/convnextv2-atto_16xb64-coslr-300e_in1k.py"
    config = narrow_classifier(Config.fromfile(ROOT / "configs" / name), folder)
    return config, randomized(config, folder / "run.pth"), folder / "run.pth"


def normalised(image_NCHW: np.ndarray) -> torch.Tensor:
    x_NCHW = (image_NCHW - MEAN[:, None, None]) / STD[:, None, None]
    return torch.from_numpy(x_NCHW).float()


def pictures(*size: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, size).astype(np.float32)


def close(found: np.ndarray, expected: torch.Tensor, tolerance: float) -> bool:
    wanted = expected.numpy()
    assert found.shape == wanted.shape and wanted.std() > 1e-3
    return bool(np.abs(found - wanted).max() < tolerance * np.abs(wanted).max())


def demo(image: Path, model: Path, *options: str) -> tuple[int, str, str]:
    """Run the demo where torch and this package cannot be imported; status, output, errors."""
    alone = (
        "import runpy, sys\n"
        "sys.modules['torch'] = sys.modules['mmconvnextv2'] = None\n"
        "del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", alone, DEMO, image, model, *options], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_a_classifier_runs_from_the_documented_demo(classifier, tmp_path) -> None:
    config, model, path = classifier
    result = export(config, path, tmp_path / "model.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]
    assert {c.shape[0] for c in result.comparisons} == {1, 2, 3}
    assert all(c.relative < 1e-5 for c in result.comparisons)

    session = onnxruntime.InferenceSession(result.path)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_modelmeta().custom_metadata_map.items() >= result.metadata.items()
    for size in ((1, 3, 96, 64), (5, 3, 128, 160)):
        image_NCHW = pictures(*size)
        (logits,) = session.run(["logits"], {"image": image_NCHW})
        assert close(logits, model(normalised(image_NCHW), mode="tensor"), 1e-4)

    pixels_HWC = pictures(224, 224, 3).astype(np.uint8)
    Image.fromarray(pixels_HWC).save(tmp_path / "picture.png")
    status, out, _ = demo(tmp_path / "picture.png", result.path)
    assert status == 0
    rows = [line.split() for line in out.splitlines()]
    x_NCHW = normalised(pixels_HWC.transpose(2, 0, 1)[None])
    scores, labels = model(x_NCHW, mode="tensor")[0].softmax(-1).topk(5)
    assert [int(row[3]) for row in rows] == labels.tolist()
    assert [float(row[0]) for row in rows] == pytest.approx((100 * scores).tolist(), abs=0.06)


def test_the_demo_takes_the_size_from_the_file_and_refuses_what_it_cannot_feed(
    classifier, tmp_path
) -> None:
    config, model, path = classifier
    pixels_HWC = np.full((50, 70, 3), (200, 90, 30), np.uint8)  # no matter how it is resized
    Image.fromarray(pixels_HWC).save(tmp_path / "picture.png")
    out = export(config, path, tmp_path / "fixed.onnx", shape=(64, 96), batch=1).path
    status, said, errors = demo(tmp_path / "picture.png", out, "--topk", "2")
    assert status == 0, errors
    x_NCHW = normalised(np.broadcast_to(pixels_HWC[0, 0, :, None, None], (1, 3, 64, 96)))
    expected = model(x_NCHW, mode="tensor")[0].topk(2).indices.tolist()
    assert [int(line.split()[3]) for line in said.splitlines()] == expected

    out = export(config, path, tmp_path / "raw.onnx", shape=(64, 96), normalize=False).path
    status, said, errors = demo(tmp_path / "picture.png", out)
    assert (status, said) == (2, "") and "raw.onnx says: image, float32" in errors
    status, _, errors = demo(tmp_path / "nowhere.png", out)
    assert status == 2 and errors.startswith("image_demo_onnx.py: no such file: ")


def test_a_segmentor_has_a_fixed_size_and_any_batch(tmp_path) -> None:
    name = "upernet/convnextv2-atto_upernet_8xb2-amp-160k_ade20k-512x512.py"
    config = narrow_segmentor(Config.fromfile(ROOT / "configs" / name), tmp_path)
    model = randomized(config, tmp_path / "run.pth")
    out = export(config, tmp_path / "run.pth", tmp_path / "model.onnx", shape=(96, 64)).path
    session = onnxruntime.InferenceSession(out)
    assert session.get_inputs()[0].shape == ["batch", 3, 96, 64]
    metas = [dict(img_shape=(96, 64), pad_shape=(96, 64))]
    for batch in (1, 4):
        image_NCHW = pictures(batch, 3, 96, 64)
        (logits,) = session.run(["logits"], {"image": image_NCHW})
        assert close(logits, model.whole_inference(normalised(image_NCHW), metas * batch), 1e-4)


def test_float16_keeps_norms_in_float32(classifier, tmp_path) -> None:
    config, model, path = classifier
    out = export(config, path, tmp_path / "half.onnx", float16=True, batch=2, shape=(64, 64)).path
    image_NCHW = pictures(2, 3, 64, 64)
    (logits,) = onnxruntime.InferenceSession(out).run(None, {"image": image_NCHW})
    assert logits.dtype == np.float32
    assert close(logits, model(normalised(image_NCHW), mode="tensor"), 2e-2)

    graph = onnx.shape_inference.infer_shapes(onnx.load(out)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    types.update((weight.name, weight.data_type) for weight in graph.initializer)

    def kinds(operation: str) -> list[int]:
        return [types[node.input[0]] for node in graph.node if node.op_type == operation]

    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    blocks, norms = 4, 1 + 4 + 3 + 1  # of the stem, blocks, downsampling, output
    assert kinds("ReduceL2") == [single] * blocks
    assert kinds("LayerNormalization") == [single] * norms
    assert kinds("MatMul") == [half] * 2 * blocks
    assert kinds("Conv") == [half] * 8


def test_large_weights_go_to_a_second_file(classifier, tmp_path, monkeypatch) -> None:
    """Both are there or neither."""
    config, _, path = classifier
    monkeypatch.setattr(sys.modules[export_function.__module__], "SINGLE_FILE_BYTES", 1000)
    options = dict(part="backbone", batch=1, shape=(64, 64), normalize=False)
    with pytest.raises(CheckFailed):
        export(config, path, tmp_path / "model.onnx", tolerance=0.0, **options)
    assert list(tmp_path.iterdir()) == []
    out = export(config, path, tmp_path / "model.onnx", **options).path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    x_NCHW = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    names = ["stage1", "stage4"]
    first, last = onnxruntime.InferenceSession(out).run(names, {"image": x_NCHW})
    net = ConvNeXtV2(
        ARCH, out_indices=(0, 3), gap_before_final_norm=False, output_norms=False
    ).eval()
    tensors = torch.load(path, weights_only=True)["state_dict"]
    net.load_state_dict({k: tensors[f"backbone.{k}"] for k in net.state_dict()})
    with torch.no_grad():
        expected = net(torch.from_numpy(x_NCHW))
    assert close(first, expected[0], 1e-4) and close(last, expected[1], 1e-4)
