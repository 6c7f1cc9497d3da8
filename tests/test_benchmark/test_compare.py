"""Who takes part in a comparison, who does not and why; wrong outputs are found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mmconvnextv2.benchmark.compare import Candidate, Settings, check_equal, compare
from mmconvnextv2.benchmark.peers import DENSE_ENCODERS, LeftOut, import_peer, load_ours
from mmconvnextv2.benchmark.steps import ForwardPass, TrainingStep
from mmconvnextv2.nn import ConvNeXtV2

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
QUICK = Settings(batch=2, repeat=2, warmup=0, min_seconds=0.0)


def step_of(module: nn.Module, kind: type[TrainingStep] = TrainingStep) -> TrainingStep:
    x = torch.ones(2, 3)
    return kind(module, lambda: module(x), CPU)


def linear(bias: float = 0.0) -> TrainingStep:
    layer = nn.Linear(3, 4)
    nn.init.ones_(layer.weight)
    nn.init.constant_(layer.bias, bias)
    return step_of(layer)


def unavailable() -> TrainingStep:
    raise LeftOut("it is not installed")


def broken() -> TrainingStep:
    raise AttributeError("module has no\n attribute")


def test_a_row_holds_everything():
    candidates = [Candidate("a", linear, ours=True), Candidate("b", linear, equals="a")]
    found = compare("group", candidates, QUICK, ["missing", "b", "a"])
    assert [row.name for row in found.rows] == ["a", "b"]
    assert found.left_out == []
    first = found.rows[0].as_dict()
    assert first["images"] == 2
    assert len(first["seconds"]["samples"]) == 2
    # Forward and the weight's gradient; the images need none.
    assert (first["flops"], first["matrix_products"]) == (2 * 2 * 3 * 4, 2)
    assert first["memory"]["parameters"] == first["memory"]["gradients"] == 4 * 16
    assert first["baseline"] == "b"
    assert found.rows[1].speedup == 1.0
    ratio = first["seconds"]["median"] / first["floor_seconds"]["median"]
    assert first["time_over_floor"] == pytest.approx(ratio)


def test_what_cannot_run_is_left_out_with_its_reason():
    candidates = [
        Candidate("ours", linear, ours=True),
        Candidate("absent", unavailable),
        Candidate("broken", broken),
        Candidate("other", lambda: linear(bias=1.0), equals="ours"),
    ]
    found = compare("group", candidates, QUICK)
    assert [row.name for row in found.rows] == ["ours"]
    reasons = {entry["name"]: entry["reason"] for entry in found.left_out}
    assert reasons["absent"] == "it is not installed"
    assert reasons["broken"] == "AttributeError: module has no attribute"
    assert "differs by 3.3e-01" in reasons["other"]


def test_a_fault_of_ours_is_an_error():
    with pytest.raises(AttributeError):
        compare("group", [Candidate("a", broken, ours=True)], QUICK)
    wrong = Candidate("b", lambda: linear(bias=1.0), equals="a", ours=True)
    with pytest.raises(RuntimeError, match="b: its output differs"):
        compare("group", [Candidate("a", linear), wrong], QUICK)


@pytest.mark.parametrize(
    ("only", "names"),
    [((), ["a", "ab"]), (("a",), ["a"]), (("a*",), ["a", "ab"]), (("group/ab",), ["ab"])],
)
def test_patterns_choose_who_takes_part(only, names):
    candidates = [Candidate("a", linear), Candidate("ab", linear)]
    found = compare("group", candidates, replace(QUICK, only=only), look_inside=False)
    assert [row.name for row in found.rows] == names


def test_a_forward_pass_keeps_nothing():
    candidate = Candidate("a", lambda: step_of(nn.Linear(3, 4), ForwardPass))
    (row,) = compare("group", [candidate], QUICK).rows
    assert row.flops == 2 * 3 * 4
    assert (row.memory.saved, row.memory.gradients) == (0, 0)


def test_a_step_starts_with_fresh_gradients_and_updates_its_weights():
    layer = nn.Linear(3, 4)
    step = TrainingStep(layer, lambda: layer(torch.ones(2, 3)).square().sum(), CPU)
    step()
    once = layer.weight.grad.clone()
    step()
    torch.testing.assert_close(layer.weight.grad, once)
    before = layer.weight.detach().clone()
    step.optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    step()
    torch.testing.assert_close(layer.weight.detach(), before - 0.5 * once)


@pytest.mark.parametrize("factor", [float("nan"), 1.1])
def test_unequal_outputs_are_refused(factor):
    expected = torch.randn(3, 4)
    check_equal(expected + 1e-6, expected, 1e-3)
    with pytest.raises(LeftOut, match="its output differs by"):
        check_equal(expected * factor, expected, 1e-3)
    with pytest.raises(LeftOut, match=r"its output is \(3, 3\), not \(3, 4\)"):
        check_equal(expected[:, :3], expected, 1e-3)


@pytest.mark.parametrize("name", DENSE_ENCODERS)
def test_peers_compute_what_ours_does_and_other_weights_show(name, tiny_arch, randomize_grn):
    pytest.importorskip(name, reason=f"{name} is the peer compared with")
    ours = ConvNeXtV2(tiny_arch, gap_before_final_norm=False, output_norms=False)
    randomize_grn(ours)
    peer = DENSE_ENCODERS[name](ours, "tiny")
    x_NCHW = torch.randn(2, 3, 64, 96)
    expected = ours(x_NCHW)[-1]
    check_equal(peer(x_NCHW), expected, 1e-5)
    weight = next(p for key, p in peer.named_parameters() if "grn" in key)
    with torch.no_grad():
        weight.add_(0.5)
    with pytest.raises(LeftOut, match="its output differs"):
        check_equal(peer(x_NCHW), expected, 1e-5)


def test_a_peer_with_other_tensors_is_left_out(tiny_arch):
    ours = ConvNeXtV2(tiny_arch, gap_before_final_norm=False, output_norms=False)
    twin = ConvNeXtV2(tiny_arch, gap_before_final_norm=False, output_norms=False)
    load_ours(twin, ours, "mmpretrain", prefix="backbone.")
    assert torch.equal(twin.downsample_layers[0][0].weight, ours.downsample_layers[0][0].weight)
    twin.register_parameter("scale", nn.Parameter(torch.ones(1)))
    with pytest.raises(LeftOut, match="not those of mmpretrain's files: .* 1 missing: scale"):
        load_ours(twin, ours, "mmpretrain", prefix="backbone.")
    with pytest.raises(LeftOut, match=r"unexpected: backbone\.downsample_layers"):
        load_ours(twin, ours, "mmpretrain")


def test_absent_packages_are_named():
    with pytest.raises(LeftOut, match=r"^no_such_peer is not installed \(pip install peer\)$"):
        import_peer("no_such_peer.models", "peer")


def test_packages_that_fail_to_import_are_named(tmp_path, monkeypatch):
    (tmp_path / "stale_peer.py").write_text("import torch\ntorch.no_such_function()\n")
    (tmp_path / "needy_peer.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LeftOut, match="stale_peer cannot be imported: AttributeError: .*no_such"):
        import_peer("stale_peer")
    with pytest.raises(LeftOut, match="needy_peer cannot be imported: .*no_such_dependency"):
        import_peer("needy_peer")
