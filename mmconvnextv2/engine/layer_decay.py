"""Learning rates that shrink towards the stem: four schemes as data, and the groups they make."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmconvnextv2.engine.optim_constructors import build_optim_wrapper, is_decayed
from mmconvnextv2.engine.plain_model import plain_model
from mmconvnextv2.nn import ConvNeXtV2

SCHEMES = ("single", "group", "layer_wise", "stage_wise")
"""How blocks share layer ids; `layer_ids` says what each name means."""


@dataclass(frozen=True)
class LayerIds:
    """The layer id of each part of a backbone, and of everything else in the model.

    A parameter of layer ``i`` learns at ``decay_rate ** (rest - i)`` times the base rate.

    Args:
        downsample: ids of the stem and of the three downsampling layers.
        blocks: ids of the blocks, a tuple for each stage.
        rest: id of everything else, the highest: output norms, neck, heads.
    """

    downsample: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    rest: int

    def of(self, name: str) -> int:
        """Look up the layer id of a parameter.

        Args:
            name: its name inside the backbone, such as ``stages.0.1.norm.weight``.
        """
        match name.split("."):
            case ["downsample_layers", i, *_]:
                return self.downsample[int(i)]
            case ["stages", i, j, *_]:
                return self.blocks[int(i)][int(j)]
            case _:
                return self.rest


def layer_ids(depths: Sequence[int], scheme: str, num_layers: int | None = None) -> LayerIds:
    """Number the layers of a backbone by one of the published schemes.

    ``single`` gives each block its own id, and a downsampling layer that of the block behind it
    (appendix A.2 of the paper; all sizes but Base and Large). ``group`` makes 12 ids for 27 blocks
    in stage 3, three blocks an id (Base and Large). ``layer_wise``, of ConvNeXt's COCO code, is the
    same with any number of ids, 6 for the small depths. ``stage_wise``, of its ADE20K code, gives
    each stage one id, and 0 to the stem and all downsampling layers.

    Args:
        depths: blocks of the four stages.
        scheme: a name of `SCHEMES`.
        num_layers: highest id inside the backbone, for ``layer_wise`` and ``stage_wise``; 12 when
            None. The other schemes have their own.

    Raises:
        ValueError: the scheme is unknown, `num_layers` is given where it has no meaning, or there
            are more layers than ids.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"layer decay scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if scheme in ("single", "group") and num_layers is not None:
        raise ValueError(f"layer decay scheme {scheme!r} takes no num_layers, got {num_layers}")
    if scheme == "single":
        return _single(depths)
    num_layers = 12 if num_layers is None else num_layers
    ids = _by_stage(depths, num_layers) if scheme == "stage_wise" else _by_three(depths, num_layers)
    highest = max(*ids.downsample, *(i for stage in ids.blocks for i in stage))
    if highest > num_layers:
        raise ValueError(
            f"layer decay scheme {scheme!r} needs ids up to {highest} for depths {tuple(depths)}, "
            f"but has {num_layers}: blocks would learn as fast as the head or faster. Raise "
            f"num_layers, or use scheme 'single'"
        )
    return ids


def _single(depths: Sequence[int]) -> LayerIds:
    first = list(accumulate(depths, initial=1))
    return LayerIds(
        downsample=tuple(first[:-1]),
        blocks=tuple(tuple(range(i, i + n)) for i, n in zip(first[:-1], depths, strict=True)),
        rest=first[-1],
    )


def _by_three(depths: Sequence[int], num_layers: int) -> LayerIds:
    return LayerIds(
        downsample=(0, 2, 3, num_layers),
        blocks=(
            (1,) * depths[0],
            (2,) * depths[1],
            tuple(3 + j // 3 for j in range(depths[2])),
            (num_layers,) * depths[3],
        ),
        rest=num_layers + 1,
    )


def _by_stage(depths: Sequence[int], num_layers: int) -> LayerIds:
    return LayerIds(
        downsample=(0,) * len(depths),
        blocks=tuple((i + 1,) * n for i, n in enumerate(depths)),
        rest=num_layers + 1,
    )


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor:
    """Build an optimizer whose rates shrink from the head towards the stem.

    The model holds one ConvNeXt V2, under any name; what is outside of it, and its output norms,
    learn at the base rate. An encoder rate slows all the rest down, so that pre-trained weights
    move less than a fresh decoder. Biases, norms, GRN and the mask token are not decayed
    (`is_decayed`). Frozen parameters are left out. Parameters of equal rate and weight decay share
    a group, which carries ``lr``, ``weight_decay``, ``lr_scale`` and ``group_name``. The groups are
    printed.

    Args:
        optim_wrapper_cfg: config of the wrapper; its ``optimizer`` states lr and weight_decay.
        paramwise_cfg: ``dict(scheme=..., decay_rate=...)``, and ``num_layers`` where the scheme
            takes it: arguments of `layer_ids`, and the factor between one id and the next in
            (0, 1]. ``encoder_rate``, in (0, 1] and 1 where it is left out, is a further factor of
            every layer of the backbone.

    Raises:
        ValueError: an argument is missing, unknown or outside what is allowed.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        settings = dict(paramwise_cfg or {})
        required = {"scheme", "decay_rate"}
        if not required <= set(settings) <= required | {"num_layers", "encoder_rate"}:
            raise ValueError(
                f"LayerDecayOptimWrapperConstructor needs paramwise_cfg=dict(scheme=..., "
                f"decay_rate=...), encoder_rate if wanted and, for some schemes, num_layers; got "
                f"{settings}"
            )
        self.scheme: str = settings["scheme"]
        self.decay_rate: float = settings["decay_rate"]
        self.encoder_rate: float = settings.get("encoder_rate", 1.0)
        self.num_layers: int | None = settings.get("num_layers")
        for name in ("decay_rate", "encoder_rate"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        self.optim_wrapper_cfg = copy.deepcopy(optim_wrapper_cfg)
        self.optimizer_cfg = self.optim_wrapper_cfg.pop("optimizer")
        missing = [key for key in ("lr", "weight_decay") if key not in self.optimizer_cfg]
        if missing:
            raise ValueError(f"layer decay scales what optimizer states: add {', '.join(missing)}")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer of a model, wrapped for distributed training or not.

        Raises:
            ValueError: the scheme is unknown or does not fit the depths, or the model does not
                hold exactly one ConvNeXt V2.
        """
        model = plain_model(model)
        groups = self.parameter_groups(model)
        title = f"layer decay {self.scheme!r}, {self.decay_rate:g} a layer"
        if self.encoder_rate != 1.0:
            title += f", encoder at {self.encoder_rate:g}"
        print_log(f"{title}\n{group_table(groups)}", "current")
        return build_optim_wrapper(self.optim_wrapper_cfg, self.optimizer_cfg, groups)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Sort the trainable parameters of a model into the optimizer's groups, stem first."""
        prefix, backbone = _find_backbone(model)
        ids = layer_ids(backbone.depths, self.scheme, self.num_layers)
        members: dict[tuple[float, float], list[tuple[int, nn.Parameter]]] = {}
        for module_name, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                path = f"{module_name}.{name}" if module_name else name
                layer = ids.of(path.removeprefix(prefix)) if path.startswith(prefix) else ids.rest
                scale = self.decay_rate ** (ids.rest - layer)
                if layer != ids.rest:
                    scale *= self.encoder_rate
                decay = self.optimizer_cfg["weight_decay"] if is_decayed(module, name) else 0.0
                members.setdefault((scale, decay), []).append((layer, parameter))
        return [
            dict(
                params=[parameter for _, parameter in members[scale, decay]],
                lr=self.optimizer_cfg["lr"] * scale,
                weight_decay=decay,
                lr_scale=scale,
                group_name=_group_name([i for i, _ in members[scale, decay]], decay),
            )
            for scale, decay in sorted(members)
        ]


def _find_backbone(model: nn.Module) -> tuple[str, ConvNeXtV2]:
    """Return what the names of the backbone's parameters begin with, and the backbone."""
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, ConvNeXtV2)]
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise ValueError(
            f"layer decay needs a model with exactly one ConvNeXt V2 backbone, and "
            f"{type(model).__name__} holds {len(found)} ({names}): use type='mmpretrain.ConvNeXtV2'"
            f", or another optimizer constructor"
        )
    name, backbone = found[0]
    return (f"{name}." if name else ""), backbone


def _group_name(layers: Sequence[int], decay: float) -> str:
    first, last = min(layers), max(layers)
    layer = f"{first}" if first == last else f"{first}-{last}"
    return f"layer_{layer}_{'decay' if decay else 'no_decay'}"


def group_table(groups: Sequence[dict[str, Any]]) -> str:
    """Write parameter groups as a table: layer id, rates, weight decay, tensors, parameters.

    Args:
        groups: what `LayerDecayOptimWrapperConstructor.parameter_groups` returns.
    """
    lines = [
        f"{'layer':>7} {'lr scale':>10} {'lr':>10} {'decay':>8} {'tensors':>8} {'parameters':>12}"
    ]
    for group in groups:
        layer = group["group_name"].split("_")[1]
        count = sum(parameter.numel() for parameter in group["params"])
        lines.append(
            f"{layer:>7} {group['lr_scale']:>10.4g} {group['lr']:>10.4g} "
            f"{group['weight_decay']:>8.3g} {len(group['params']):>8} {count:>12,}"
        )
    return "\n".join(lines)
