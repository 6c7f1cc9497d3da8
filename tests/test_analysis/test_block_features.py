"""What `visit_blocks` shows, against mmpretrain's own modules and their own hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmpretrain.models import ConvNeXt, SwinTransformer, VisionTransformer
from mmpretrain.models.selfsup import MAEViT
from torch import Tensor, nn

from mmconvnextv2.analysis.block_features import BlockName, block_names, visit_blocks
from mmconvnextv2.analysis.feature_statistics import block_diversity, stage_diversity
from mmconvnextv2.nn import ConvNeXtV2

pytestmark = pytest.mark.unit

ARCH = dict(depths=[1, 2, 1, 1], channels=[8, 16, 24, 32])
VIT = dict(
    arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=24),
    img_size=32,
    patch_size=8,
)
X = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def visited(backbone: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    seen: dict[str, list[Tensor]] = dict(activation=[], hidden=[], output=[])

    def keep(place: str):
        def visit(i: int, features: Tensor) -> None:
            assert i == len(seen[place])
            seen[place].append(features.clone())

        return visit

    with torch.no_grad():
        visit_blocks(backbone, x, **{place: keep(place) for place in seen})
    return seen


def make_peer(use_grn: bool, linear: bool = True) -> ConvNeXt:
    peer = ConvNeXt(
        arch=ARCH,
        use_grn=use_grn,
        layer_scale_init_value=0.0 if use_grn else 0.3,
        linear_pw_conv=linear,
        gap_before_final_norm=False,
    )
    peer.eval()  # returns nothing
    return peer


def expected_of_peer(peer: ConvNeXt, x: Tensor) -> dict[str, list[Tensor]]:
    """By hooks on the activation, the norm after it and the block, of 1x1 convolutions or not."""
    seen: dict[str, list[Tensor]] = dict(activation=[], hidden=[], output=[])
    last = nn.Linear if peer.stages[0][0].linear_pw_conv else nn.Conv2d

    def keep(place: str, wide: bool = True):
        def hook(module: nn.Module, inputs: tuple, out: Tensor) -> None:
            seen[place].append(out.movedim(-1, 1) if wide and last is nn.Linear else out)

        return hook

    handles = []
    for block in (block for stage in peer.stages for block in stage):
        wide = block.act if block.grn is None else block.grn
        handles.append(block.act.register_forward_hook(keep("activation")))
        handles.append(wide.register_forward_hook(keep("hidden")))
        handles.append(block.register_forward_hook(keep("output", wide=False)))
    with torch.no_grad():
        peer(x)
    for handle in handles:
        handle.remove()
    return seen


def assert_same(actual: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> None:
    for place, features in expected.items():
        assert len(actual[place]) == len(features)
        for a, b in zip(actual[place], features, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_grn", [True, False], ids=["V2", "V1"])
def test_convnext_of_both_makers(use_grn: bool, randomize_grn) -> None:
    peer = randomize_grn(make_peer(use_grn))
    expected = expected_of_peer(peer, X)
    assert len(expected["output"]) == 5 and expected["hidden"][0].shape == (2, 32, 16, 24)
    assert torch.equal(expected["activation"][1], expected["hidden"][1]) != use_grn
    assert_same(visited(peer, X), expected)
    scale = 0.0 if use_grn else 0.3
    ours = ConvNeXtV2(ARCH, out_indices=3, use_grn=use_grn, layer_scale_init_value=scale).eval()
    ours.load_state_dict(peer.state_dict())
    assert_same(visited(ours, X), expected)
    names = [BlockName(1, 1), BlockName(2, 1), BlockName(2, 2), BlockName(3, 1), BlockName(4, 1)]
    assert block_names(ours) == block_names(peer) == names


def test_pointwise_layers_as_convolutions(randomize_grn) -> None:
    peer = randomize_grn(make_peer(use_grn=True, linear=False))
    assert_same(visited(peer, X), expected_of_peer(peer, X))


def test_each_layer_runs_once_and_no_compiled_block_is_called(monkeypatch) -> None:
    ours = ConvNeXtV2(ARCH).eval()
    calls: list[nn.Module] = []
    layers = [m for m in ours.stages.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: calls.append(module))
    for stage in ours.stages:
        for block in stage:
            # What block.compile() sets, and what calling the block would run.
            monkeypatch.setattr(block, "_compiled_call_impl", lambda *_: pytest.fail("called"))
    visited(ours, X)
    assert len(layers) == 15 and sorted(map(id, calls)) == sorted(map(id, layers))


@pytest.mark.parametrize("kind", [VisionTransformer, MAEViT])
def test_tokens_of_a_transformer_become_maps(kind: type, randomize_grn) -> None:
    backbone = randomize_grn(kind(**VIT))
    backbone.eval()
    outputs: list[Tensor] = []
    gelus: list[Tensor] = []
    for layer in backbone.layers:
        layer.register_forward_hook(lambda _, inputs, out: outputs.append(out))
        layer.ffn.layers[0][1].register_forward_hook(lambda _, inputs, out: gelus.append(out))
    seen = visited(backbone, X)
    assert block_names(backbone) == [BlockName(1, 1), BlockName(1, 2)]
    for place, tokens in (("output", outputs), ("hidden", gelus), ("activation", gelus)):
        assert len(seen[place]) == len(tokens) == 2
        for features_NCHW, x_NTC in zip(seen[place], tokens, strict=True):
            assert features_NCHW.shape == (2, x_NTC.shape[2], 8, 12)
            for row, column in ((0, 0), (0, 11), (3, 5), (7, 11)):
                patch = x_NTC[:, 1 + 12 * row + column]
                assert torch.equal(features_NCHW[:, :, row, column], patch)


def test_other_backbones_are_refused() -> None:
    swin = SwinTransformer(arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]))
    for backbone in (nn.Linear(2, 2), swin):
        with pytest.raises(TypeError, match=f"blocks of a {type(backbone).__name__} are not known"):
            block_names(backbone)


def test_hooks_are_gone_after_an_error() -> None:
    ours = ConvNeXtV2(ARCH).eval()

    def fail(i: int, features: Tensor) -> None:
        raise RuntimeError("visitor")

    with pytest.raises(RuntimeError, match="visitor"):
        visit_blocks(ours, X, activation=fail, hidden=fail)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in ours.modules())


def test_diversity_of_blocks_and_stages_by_definition(randomize_grn) -> None:
    peer = randomize_grn(make_peer(use_grn=True))
    expected = expected_of_peer(peer, X)
    ours = ConvNeXtV2(ARCH).eval()
    ours.load_state_dict(peer.state_dict())
    by_hand = np.zeros((2, 5))
    for b, hidden in enumerate(expected["hidden"]):
        for n, maps in enumerate(hidden.flatten(2).double().numpy()):
            directions = maps / np.linalg.norm(maps, axis=1, keepdims=True)
            by_hand[n, b] = np.mean((1 - directions @ directions.T) / 2)
    with torch.no_grad():
        np.testing.assert_allclose(block_diversity(ours, X).numpy(), by_hand, atol=1e-5)
        stages, last = stage_diversity(ours, X)
    by_stage = [by_hand[:, 0], by_hand[:, 1:3].mean(1), by_hand[:, 3], by_hand[:, 4]]
    np.testing.assert_allclose(stages.numpy(), np.stack(by_stage, 1), atol=1e-5)
    torch.testing.assert_close(last, expected["output"][-1], rtol=1e-4, atol=1e-5)
