"""The zoo: metafiles that are complete, right and up to date, and names that others find."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import mmpretrain
import numpy as np
import pytest
import timm
import torch
import yaml
from mmengine.config import Config
from mmpretrain.apis import FeatureExtractor, ImageClassificationInferencer, ModelHub
from modelindex.load_model_index import load

import mmconvnextv2
from mmconvnextv2.analysis.complexity import Complexity, Cost, Part
from mmconvnextv2.apis.configs import config_path, resource_root
from mmconvnextv2.apis.zoo import find_model, get_config, list_models, register_models
from mmconvnextv2.checkpoint import StateDictMismatch
from mmconvnextv2.models import FCMAE, ConvNeXtV2

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
INDEX = yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]
METAFILES = {path: yaml.safe_load((ROOT / path).read_text()) for path in INDEX}
MODELS = [model for metafile in METAFILES.values() for model in metafile["Models"]]
WITH_WEIGHTS = [model for model in MODELS if "Weights" in model]
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*/*.py") if p.parent.name != "_base_")
PUBLISHED = yaml.safe_load((ROOT / "docs/data/published_results.yml").read_text())
MMPRETRAIN = Path(mmpretrain.__file__).parent / ".mim" / "configs" / "convnext_v2" / "metafile.yml"
SIZES = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
ATTO = "convnextv2-atto_fcmae-pre_3rdparty_in1k"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools/analysis_tools/make_metafiles.py"
    spec = importlib.util.spec_from_file_location("make_metafiles", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data() -> tuple[dict[str, Any], dict[str, Any]]:
    return yaml.safe_load((ROOT / "docs/data/published_weights.yml").read_text()), PUBLISHED


def written(cfg: Config) -> Complexity:
    """What the metafiles say about a config, in the place of counting it."""
    path = str(Path(cfg.filename).relative_to(ROOT))
    metadata = next(model["Metadata"] for model in MODELS if model["Config"] == path)
    height, width = map(int, metadata["Input Size"].split("x"))
    part = Part("all", metadata["Parameters"], Cost(metadata["FLOPs"]))
    return Complexity("written", (height, width), (part,))


def by_name(name: str) -> dict[str, Any]:
    return next(model for model in MODELS if model["Name"] == name)


# The files.


def test_metafiles_are_up_to_date(tool: ModuleType) -> None:
    for folder, text in tool.render(*data(), ROOT / "configs", written).items():
        on_disk = (ROOT / "configs" / folder / "metafile.yml").read_text()
        assert on_disk == text, "run tools/analysis_tools/make_metafiles.py"


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["fcmae", "convnextv2", "mask_rcnn", "upernet"])
def test_every_config_builds_and_counts_as_written(tool: ModuleType, folder: str) -> None:
    measure = tool.counter()
    for path in CONFIGS:
        if path.parent.name == folder:
            cfg = Config.fromfile(path)
            counted, expected = measure(cfg), written(cfg)
            assert counted.parameters == expected.parameters, path
            assert counted.flops == pytest.approx(expected.flops, rel=0.01), path
            assert counted.shape == expected.shape, path


def test_structures_that_differ_are_counted_apart(tool: ModuleType) -> None:
    """The counter's memory of what it has seen must not take one model for another."""
    path = ROOT / by_name(ATTO)["Config"]
    measure = tool.counter()
    plain = measure(Config.fromfile(path))
    cfg = Config.fromfile(path)
    cfg.model.backbone.drop_path_rate = 0.7
    assert measure(cfg) is plain
    cfg = Config.fromfile(path)
    cfg.model.head.num_classes = 7
    assert plain.parameters - measure(cfg).parameters == 993 * (320 + 1)


def test_index_lists_every_metafile_and_every_config_has_an_entry() -> None:
    assert {ROOT / path for path in INDEX} == set((ROOT / "configs").glob("*/metafile.yml"))
    recipes = [model for model in MODELS if "Weights" not in model]
    assert sorted(ROOT / model["Config"] for model in recipes) == CONFIGS
    assert all(model["Name"] == Path(model["Config"]).stem for model in recipes)


def test_every_entry_is_well_formed() -> None:
    names = [model["Name"] for model in MODELS]
    assert len(set(names)) == len(names)
    collections = {path: metafile["Collections"][0] for path, metafile in METAFILES.items()}
    assert len({collection["Name"] for collection in collections.values()}) == 4
    for path, metafile in METAFILES.items():
        assert (ROOT / collections[path]["README"]).is_file()
        for model in metafile["Models"]:
            # mmpretrain looks names up in lower case.
            assert re.fullmatch(r"[a-z0-9_-]+", model["Name"]), model
            assert model["In Collection"] == collections[path]["Name"]
            assert (ROOT / model["Config"]).is_file()
            assert Path(model["Config"]).parent == Path(path).parent
            metadata = model["Metadata"]
            assert metadata["Parameters"] > 1e6 and metadata["FLOPs"] > 1e7
            assert metadata["Training Data"]
            assert metadata["License"] == ("CC-BY-NC-4.0" if "Weights" in model else "Apache-2.0")
            assert (model["Results"] is None) or "Weights" in model


def test_modelindex_finds_nothing_to_complain_about() -> None:
    index = load(str(ROOT / "model-index.yml"))
    index.build_models_with_collections()
    assert {model.name for model in index.models} == {model["Name"] for model in MODELS}
    for model in index.models:
        assert not model.check_errors, (model.name, model.check_errors)


def test_urls_end_in_a_hash_that_torch_checks() -> None:
    for model in WITH_WEIGHTS:
        assert re.fullmatch(r"https://[\w./-]+\.pth", model["Weights"]), model["Weights"]
        assert "//" not in model["Weights"].removeprefix("https://")
        found = torch.hub.HASH_REGEX.search(model["Weights"].rsplit("/", 1)[1])
        assert found and len(found.group(1)) == 8, model["Weights"]


# The figures, against others'.


def test_mmpretrains_26_weights_are_all_there() -> None:
    """Names, files, origins, accuracies, parameters and FLOPs, as mmpretrain itself states them."""
    theirs = yaml.safe_load(MMPRETRAIN.read_text())["Models"]
    assert len(theirs) == 26
    assert len(WITH_WEIGHTS) == 27, "and mmdet's one"
    for model in theirs:
        ours = by_name(model["Name"].replace("convnext-v2-", "convnextv2-"))
        # The host is another in each distribution of mmpretrain; the path on it is the same.
        assert ours["Weights"].split("/", 3)[3] == model["Weights"].split("/", 3)[3]
        assert ours["Converted From"] == model["Converted From"]
        assert ours["Results"] == model["Results"]
        assert ours["Metadata"]["Parameters"] == model["Metadata"]["Parameters"]
        flops = model["Metadata"]["FLOPs"]
        assert ours["Metadata"]["FLOPs"] == pytest.approx(flops, rel=0.01)


def test_every_official_file_is_there() -> None:
    """The files that the official repository lists, by its own rule for their names."""
    base = "https://dl.fbaipublicfiles.com/convnext/convnextv2"
    expected = {f"{base}/pt_only/convnextv2_{size}_1k_224_fcmae.pt" for size in SIZES}
    expected |= {f"{base}/im1k/convnextv2_{size}_1k_224_ema.pt" for size in SIZES}
    in22k = [(size, side) for size in SIZES[3:7] for side in (224, 384)]
    in22k += [("huge", 384), ("huge", 512)]
    expected |= {f"{base}/im22k/convnextv2_{size}_22k_{side}_ema.pt" for size, side in in22k}
    origins = [model.get("Converted From", {}).get("Weights") for model in WITH_WEIGHTS]
    assert len(expected) == 26 and {url for url in origins if url} == expected
    assert len(origins) == 27


def test_dense_prediction_agrees_with_the_paper() -> None:
    """Parameters to the printed digit, FLOPs to 1 %."""
    seen = 0
    for group in PUBLISHED["complexity"]:
        for row in group["rows"]:
            if "published" not in row or "options" in row or "config" not in row:
                continue
            model = by_name(Path(row["config"]).stem)
            height, width = row["shape"]
            assert model["Metadata"]["Input Size"] == f"{height}x{width}"
            flops = model["Metadata"]["FLOPs"] / 1e9
            assert flops == pytest.approx(row["published"], rel=0.01), row
            if "parameters" in row:
                parameters = model["Metadata"]["Parameters"] / 1e6
                assert parameters == pytest.approx(row["parameters"], abs=0.51), row
            seen += 1
    assert seen > 15


@pytest.mark.parametrize("size", SIZES)
def test_fcmae_has_its_classifiers_encoder_and_the_papers_decoder(size: str) -> None:
    channels = dict(zip(SIZES, (320, 384, 512, 640, 768, 1024, 1536, 2816), strict=True))[size]
    classifier = by_name(f"convnextv2-{size}_fcmae-pre_3rdparty_in1k")["Metadata"]["Parameters"]
    encoder = classifier - (1000 * channels + 1000) - 2 * channels
    block = (49 * 512 + 512) + 2 * 512 + (512 * 2048 + 2048) + 2 * 2048 + (2048 * 512 + 512)
    decoder = (channels * 512 + 512) + 512 + block + (512 * 3072 + 3072)
    for epochs in (800, 1600):
        model = by_name(f"fcmae_convnextv2-{size}_64xb64-coslr-{epochs}e_in1k")
        assert model["Metadata"]["Parameters"] == encoder + decoder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(config="convnextv2/nowhere.py"), "there is no config"),
        (dict(of=["ConvNeXt V2-A", "FCMAE", 225]), "0 rows"),
        (dict(name="fcmae_convnextv2-atto_64xb64-coslr-800e_in1k"), "occur twice"),
        (dict(name="convnextv2-atto"), "its name has none of"),
    ],
)
def test_bad_data_is_refused(tool: ModuleType, change: dict[str, Any], message: str) -> None:
    weights, results = data()
    weights["publishers"][0]["weights"][8].update(change)
    with pytest.raises(ValueError, match=message):
        tool.render(weights, results, ROOT / "configs", written)


# The names, for our own API and mmpretrain's.


def test_list_and_find() -> None:
    assert list_models() == sorted(model["Name"] for model in MODELS)
    assert len(list_models("*3rdparty*")) == 27
    assert list_models("nothing*") == []
    model = find_model(ATTO)
    assert model.config == config_path(f"convnextv2/{model.config.name}")
    assert model.weights.endswith("-23765f83.pth")
    assert model.license == "CC-BY-NC-4.0"
    assert (model.parameters, model.input_size) == (3_708_400, "224x224")
    assert model.metrics == {"ImageNet-1k": {"Top 1 Accuracy": 76.64, "Top 5 Accuracy": 93.04}}
    recipe = find_model("convnextv2-huge_upernet_8xb2-amp-160k_ade20k-640x640")
    assert recipe.weights is None and recipe.metrics == {} and recipe.license == "Apache-2.0"


def test_two_tasks_of_one_data_set_keep_both_metrics() -> None:
    model = find_model("mask-rcnn_convnextv2-base_fpn_3rdparty-lsj-3x-fcmae_coco")
    assert model.metrics == {"COCO": {"box AP": 52.9, "mask AP": 46.4}}


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(ValueError, match="did you mean .*convnextv2-atto_fcmae-pre_3rdparty_in1k"):
        find_model("convnextv2-ato_fcmae-pre_3rdparty_in1k")


def test_get_config() -> None:
    name = "fcmae_convnextv2-pico_64xb64-coslr-800e_in1k"
    assert get_config(name).model.backbone.arch == "pico"


def test_without_configs_the_error_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert resource_root() in (ROOT, ROOT / "mmconvnextv2" / ".mim")
    package = tmp_path / "mmconvnextv2"
    monkeypatch.setattr(mmconvnextv2, "__file__", str(package / "__init__.py"))
    # Somebody else's top-level `configs`, as some packages leave it in site-packages.
    (tmp_path / "configs").mkdir()
    with pytest.raises(FileNotFoundError, match=r"pip install"):
        resource_root()
    (package / ".mim").mkdir(parents=True)
    (package / ".mim" / "model-index.yml").touch()
    assert resource_root() == package / ".mim"
    with pytest.raises(FileNotFoundError, match=r"no config a/b\.py in .*\.mim/configs: "):
        config_path("a/b.py")


# A model of any task by its name.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fcmae_convnextv2-atto_64xb64-coslr-800e_in1k", "FCMAE"),
        ("mask-rcnn_convnextv2-atto_fpn_8xb4-amp-lsj-3x_coco", "MaskRCNN"),
        ("convnextv2-atto_upernet_8xb2-amp-160k_ade20k-512x512", "EncoderDecoder"),
    ],
)
def test_get_model_builds_every_task_without_weights(name: str, kind: str) -> None:
    model = mmconvnextv2.get_model(name)
    assert type(model).__name__ == kind and not model.training
    assert isinstance(model.backbone, ConvNeXtV2)


def test_get_model_with_weights_computes_what_timm_does(tmp_path: Path) -> None:
    theirs = timm.create_model("convnextv2_atto").eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = mmconvnextv2.get_model(ATTO, pretrained=tmp_path / "timm.pth")
    x_NCHW = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x_NCHW, mode="tensor"), theirs(x_NCHW), rtol=0, atol=1e-4)


def test_get_model_downloads_what_the_zoo_names_and_only_if_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def fetch(location: str) -> Path:
        asked.append(location)
        return tmp_path / "weights.pth"

    monkeypatch.setattr("mmconvnextv2.apis.zoo.fetch_checkpoint", fetch)
    fresh = mmconvnextv2.get_model(ATTO)
    assert asked == []
    torch.save(dict(state_dict=fresh.state_dict()), tmp_path / "weights.pth")
    loaded = mmconvnextv2.get_model(ATTO, pretrained=True)
    assert asked == [by_name(ATTO)["Weights"]]
    assert all(map(torch.equal, loaded.state_dict().values(), fresh.state_dict().values()))


def test_get_model_takes_an_encoder_for_the_backbone_and_nothing_else_in_part(
    tmp_path: Path,
) -> None:
    name = "convnextv2-atto_3rdparty-fcmae_in1k"
    state = mmconvnextv2.get_model(name).state_dict()
    encoder = {k: v for k, v in state.items() if k.startswith(("backbone.d", "backbone.s"))}
    torch.save(dict(state_dict=encoder), tmp_path / "encoder.pth")
    model = mmconvnextv2.get_model(name, pretrained=tmp_path / "encoder.pth")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in encoder.items())
    for file, wrong in (("short", dict(encoder)), ("half", dict(state))):
        del wrong["backbone.stages.0.0.grn.gamma"]
        torch.save(dict(state_dict=wrong), tmp_path / f"{file}.pth")
        with pytest.raises(StateDictMismatch, match=r"stages\.0\.0\.grn\.gamma"):
            mmconvnextv2.get_model(name, pretrained=tmp_path / f"{file}.pth")


def test_get_model_of_a_recipe_has_no_weights_to_download() -> None:
    with pytest.raises(ValueError, match="nobody has published weights"):
        mmconvnextv2.get_model("fcmae_convnextv2-atto_64xb64-coslr-800e_in1k", pretrained=True)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our names in mmpretrain's hub, for one test."""
    monkeypatch.setattr(ModelHub, "_models_dict", dict(ModelHub._models_dict))
    register_models()


def test_mmpretrain_lists_our_names_beside_its_own(registered: None) -> None:
    register_models()
    tasks = ("configs/convnextv2/", "configs/fcmae/")
    ours = {model["Name"] for model in MODELS if model["Config"].startswith(tasks)}
    listed = set(mmpretrain.list_models())
    assert ours <= listed
    assert "convnext-v2-atto_fcmae-pre_3rdparty_in1k" in listed
    assert mmpretrain.list_models("convnextv2-atto*3rdparty") == sorted(
        name for name in ours if name.startswith("convnextv2-atto") and "3rdparty" in name
    )


def test_mmpretrain_builds_by_name(registered: None) -> None:
    assert isinstance(mmpretrain.get_model(ATTO).backbone, ConvNeXtV2)
    model = mmpretrain.get_model("fcmae_convnextv2-atto_64xb64-coslr-800e_in1k")
    assert isinstance(model, FCMAE)


def test_inferencers_take_names(registered: None, tmp_path: Path) -> None:
    """With weights from a file, as nothing is to be downloaded here."""
    classifier = mmpretrain.get_model(ATTO)
    torch.nn.init.normal_(classifier.head.fc.weight)
    torch.save(dict(state_dict=classifier.state_dict()), tmp_path / "weights.pth")
    image = np.random.default_rng(0).integers(0, 256, (240, 260, 3), dtype=np.uint8)
    inferencer = ImageClassificationInferencer(ATTO, pretrained=str(tmp_path / "weights.pth"))
    (result,) = inferencer(image)
    assert len(result["pred_scores"]) == 1000 and isinstance(result["pred_class"], str)
    head = inferencer.model.head.fc.weight
    assert torch.equal(head, classifier.head.fc.weight)
    (features,) = FeatureExtractor(ATTO, pretrained=str(tmp_path / "weights.pth"))(image)
    assert [tuple(feature.shape) for feature in features] == [(320,)]
