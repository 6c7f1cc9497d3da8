"""Nearest neighbours against scikit-learn's, and the tool from config and checkpoint to numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from mmconvnextv2.analysis.knn import FeatureBank, knn_accuracy, vote
from mmconvnextv2.models import ConvNeXtV2

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
CLASSES, TEMPERATURE = 7, 0.07


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping clusters of features of unequal length."""
    centres = torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    features = centres[labels] + 1.5 * torch.randn(count, 12, generator=generator)
    return features * (0.1 + torch.rand(count, 1, generator=generator)), labels


def batched(features: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(features.split(size), labels.split(size), strict=True))


@pytest.mark.parametrize("k", [1, 10, 20])
def test_against_scikit_learn(k: int) -> None:
    (bank_BC, bank_labels), (queries_QC, labels) = clusters(400, 1), clusters(150, 2)
    reference = KNeighborsClassifier(
        k,
        metric="cosine",
        algorithm="brute",
        # Theirs hands over distances, which are 1 minus the similarity.
        weights=lambda distance: np.exp((1 - distance) / TEMPERATURE),
    ).fit(bank_BC.double().numpy(), bank_labels.numpy())
    expected = reference.predict_proba(queries_QC.double().numpy())

    batches = batched(bank_BC.double(), bank_labels, 64)
    bank = FeatureBank.from_batches(batches, 400, CLASSES)
    similarity, neighbours = bank.nearest(queries_QC.double(), k, chunk_size=37)
    votes = vote(similarity, neighbours, CLASSES, TEMPERATURE)
    np.testing.assert_allclose(votes.numpy(), expected, rtol=1e-9, atol=1e-12)

    accuracies = knn_accuracy(bank, batched(queries_QC.double(), labels, 40), [k], TEMPERATURE)
    top1 = 100 * (expected.argmax(1) == labels.numpy()).mean()
    assert accuracies[f"k{k}/top1"] == pytest.approx(top1)
    assert 20 < top1 < 90, "a task on which both mistakes and hits occur"
    order = np.argsort(-expected, axis=1)[:, :5]
    hits = (order == labels.numpy()[:, None]) & (np.take_along_axis(expected, order, 1) > 0)
    assert accuracies[f"k{k}/top5"] == pytest.approx(100 * hits.any(1).mean())


def test_several_k_at_once_equal_one_at_a_time() -> None:
    bank = FeatureBank.from_batches([clusters(90, 1)], 90, CLASSES)
    queries = [clusters(30, 2), clusters(11, 3)]
    together = knn_accuracy(bank, queries, [3, 25])
    apart = knn_accuracy(bank, queries, [3]) | knn_accuracy(bank, queries, [25])
    assert together == apart
    assert set(together) == {"k3/top1", "k3/top5", "k25/top1", "k25/top5"}


def test_classes_without_a_vote_never_count() -> None:
    """With two neighbours of one class, top-5 holds that class alone."""
    features = torch.eye(3)
    bank = FeatureBank.from_batches([(features, torch.tensor([4, 4, 4]))], 3, CLASSES)
    queries = (torch.eye(3), torch.tensor([4, 0, 1]))
    accuracies = knn_accuracy(bank, [queries], [2])
    assert accuracies["k2/top1"] == accuracies["k2/top5"] == pytest.approx(100 / 3)


def test_bad_input() -> None:
    features, labels = clusters(5, 0)
    with pytest.raises(ValueError, match="announced with 4 images and has at least 5"):
        FeatureBank.from_batches([(features, labels)], 4, CLASSES)
    with pytest.raises(ValueError, match="at least one image"):
        FeatureBank.from_batches([], 4, CLASSES)
    with pytest.raises(ValueError, match="between 0 and 0"):
        FeatureBank.from_batches([(features, labels)], 5, 1)
    bank = FeatureBank.from_batches([(features, labels)], 5, CLASSES)
    with pytest.raises(ValueError, match="between 1 and 5, the bank, got 6"):
        bank.nearest(features, 6)
    with pytest.raises(ValueError, match="no image to classify"):
        knn_accuracy(bank, [], [1])
    with pytest.raises(ValueError, match="positive, got 0"):
        vote(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long), 2, temperature=0)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "analysis_tools" / "knn.py"
    spec = importlib.util.spec_from_file_location("knn_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Pictures of one colour a class, with noise, and a narrow encoder with random weights."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label, colour in enumerate([(220, 20, 20), (20, 220, 20), (20, 20, 220)]):
            folder = tmp_path / split / f"class_{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.normal(colour, 10, (48, 64, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    arch = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    encoder = ConvNeXtV2(arch, gap_before_final_norm=False, output_norms=False)
    for parameter in encoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    tensors = {f"backbone.{name}": value for name, value in encoder.state_dict().items()}
    tensors["neck.mask_token"] = torch.zeros(1, 16, 1, 1)
    torch.save(dict(state_dict=tensors), tmp_path / "epoch_1.pth")
    narrow = dict(_delete_=True, **arch)
    sample = next((ROOT / "configs" / "convnextv2").glob("*_sample.py"))
    (tmp_path / "config.py").write_text(
        f"_base_ = {str(sample)!r}\n"
        f"model = dict(backbone=dict(arch={narrow}), head=dict(in_channels=8, num_classes=3))\n"
        f"train_dataloader = dict(num_workers=0, persistent_workers=False,\n"
        f"    dataset=dict(dataset=dict(data_root={str(tmp_path)!r})))\n"
        f"val_dataloader = dict(num_workers=0, persistent_workers=False,\n"
        f"    dataset=dict(data_root={str(tmp_path)!r}))\n"
    )
    return tmp_path


def test_tool(tool: ModuleType, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(files / "config.py"), str(files / "epoch_1.pth"), "--device", "cpu"]
    out = files / "knn.json"
    assert tool.main([*arguments, "--k", "3", "12", "--batch-size", "5", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "12 labelled images, 6 to classify" in printed
    assert "k =   3: top-1 100.00 %, top-5 100.00 %" in printed
    accuracies = json.loads(out.read_text())
    assert accuracies["k3/top1"] == accuracies["k12/top5"] == 100.0


def test_tool_uses_the_checkpoint_and_the_test_pipeline(tool: ModuleType, files: Path) -> None:
    """The bank's features are those of the encoder by hand, on images resized and not cropped."""
    cfg = tool.Config.fromfile(files / "config.py")
    model = tool.build_encoder(cfg, str(files / "epoch_1.pth"), torch.device("cpu"))
    loader = tool.build_loader(cfg, "train", 4)
    features, labels = next(tool.encode(model, loader, torch.device("cpu")))
    assert labels.tolist() == [0, 0, 0, 0]
    picture = Image.open(files / "train" / "class_0" / "0.png").resize((96, 96), Image.BICUBIC)
    x = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1)[None].float()
    x = (x - torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1)) / torch.tensor(
        [58.395, 57.12, 57.375]
    ).view(-1, 1, 1)
    plain = ConvNeXtV2(cfg.model.backbone.arch, output_norms=False).eval()
    tensors = torch.load(files / "epoch_1.pth", weights_only=True)["state_dict"]
    plain.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    )
    with torch.no_grad():
        (pooled,) = plain(x)
    expected = torch.nn.functional.layer_norm(pooled, (8,), eps=1e-6)
    torch.testing.assert_close(features[:1], expected, rtol=1e-3, atol=1e-3)


def test_tool_gives_an_untrained_encoder_by_its_seed(
    tool: ModuleType, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tool.Config.fromfile(files / "config.py")
    built = tool.build_encoder(cfg, 7, torch.device("cpu")).backbone.state_dict()
    torch.manual_seed(7)
    expected = ConvNeXtV2(cfg.model.backbone.arch, gap_before_final_norm=True).state_dict()
    torch.testing.assert_close(built, expected, rtol=0, atol=0)

    config = str(files / "config.py")
    assert tool.main([config, "--random-start", "7", "--device", "cpu", "--k", "3"]) == 0
    assert "k =   3: top-1" in capsys.readouterr().out
    for arguments in ([config], [config, str(files / "epoch_1.pth"), "--random-start", "7"]):
        with pytest.raises(SystemExit, match="2"):
            tool.main(arguments)
        assert "either a checkpoint or --random-start" in capsys.readouterr().err
    assert tool.parse_args([config, "--device", "cpu", "epoch_1.pth"]).checkpoint == "epoch_1.pth"


@pytest.mark.parametrize(
    ("config", "checkpoint", "message"),
    [
        ("missing.py", "epoch_1.pth", "missing.py"),
        ("config.py", "missing.pth", "missing.pth"),
        ("config.py", "config.py", "cannot be read as a checkpoint"),
    ],
)
def test_tool_refuses(
    tool: ModuleType,
    files: Path,
    capsys: pytest.CaptureFixture[str],
    config: str,
    checkpoint: str,
    message: str,
) -> None:
    assert tool.main([str(files / config), str(files / checkpoint), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_tool_needs_a_classifier_with_validation(
    tool: ModuleType, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fcmae = ROOT / "configs/fcmae/fcmae_convnextv2-atto_64xb64-coslr-800e_in1k.py"
    assert tool.main([str(fcmae), str(files / "epoch_1.pth")]) == 2
    assert "builds no classifier" in capsys.readouterr().err
    arguments = [str(files / "config.py"), str(files / "epoch_1.pth"), "--device", "cpu"]
    assert tool.main([*arguments, "--cfg-options", "val_dataloader=None"]) == 2
    assert "lacks train_dataloader or val_dataloader" in capsys.readouterr().err
