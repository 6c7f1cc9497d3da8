"""ConvNeXt V2 as an OpenMMLab backbone."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from mmengine.logging import print_log
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import Tensor

from mmconvnextv2 import nn
from mmconvnextv2.checkpoint import fetch_checkpoint, read_checkpoint, to_our_names
from mmconvnextv2.checkpoint.inflation import INFLATION_MODES, STEM, inflate_stem
from mmconvnextv2.checkpoint.loading import (
    GRN_KEY,
    OUTPUT_NORM,
    StateDictMismatch,
    backbone_state_dict,
    load_strictly,
)
from mmconvnextv2.nn.arguments import is_whole_number
from mmconvnextv2.nn.convnextv2 import Arch
from mmconvnextv2.nn.response_norms import ResponseNormConfig

_INIT_CFG_KEYS = {"checkpoint", "prefix", "output_norms", "inflate_stem", "grn"}
_INIT_CFG_CHOICES = dict(inflate_stem=INFLATION_MODES, grn=("drop", "add"))


@MODELS.register_module()
class ConvNeXtV2(nn.ConvNeXtV2, BaseBackbone):
    """`mmconvnextv2.nn.ConvNeXtV2` with frozen stages and OpenMMLab's weight loading.

    Args:
        arch: a name of `mmconvnextv2.nn.ARCHITECTURES`, or ``dict(depths=..., channels=...)``.
        in_channels: channels of the images.
        out_indices: stages to return, 0 to 3; negative numbers count from the last.
        drop_path_rate: drop path of the last block; it grows linearly from 0 at the first.
        gap_before_final_norm: average over positions before the output norms, as a classifier
            wants; set it False for dense prediction.
        output_norms: apply a LayerNorm to each returned stage.
        frozen_stages: number of stages, 0 to 4, kept fixed and in evaluation mode, each with the
            stem or downsampling before it.
        with_cp: activation checkpointing: recompute each block in the backward pass.
        mask_layout: where visible cells live in a masked call: "packed", "masked", "minkowski"
            or "triton".
        use_grn: V2's GRN; False for V1.
        layer_scale_init_value: start of V1's LayerScale, 1e-6 there; 0 for none, as in V2.
        response_norm: what stands in GRN's place in every block, for ablations: a name of
            `mmconvnextv2.nn.response_norms.RESPONSE_NORMS`, or ``dict(type=name, ...)``.
        init_cfg: None, or ``dict(type='Pretrained', checkpoint=...)``, which is loaded strictly:
            see `init_weights`. Random initialisation belongs to the constructor alone.

    Raises:
        ValueError: an argument is outside what is allowed.
    """

    is_init: bool

    def __init__(
        self,
        arch: Arch = "tiny",
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        drop_path_rate: float = 0.0,
        gap_before_final_norm: bool = True,
        output_norms: bool = True,
        frozen_stages: int = 0,
        with_cp: bool = False,
        mask_layout: str = "packed",
        use_grn: bool = True,
        layer_scale_init_value: float = 0.0,
        response_norm: ResponseNormConfig | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        # One cooperative call reaches BaseBackbone as well: a second BaseModule.__init__ would
        # throw the modules away.
        super().__init__(
            arch=arch,
            in_channels=in_channels,
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            gap_before_final_norm=gap_before_final_norm,
            output_norms=output_norms,
            with_cp=with_cp,
            mask_layout=mask_layout,
            use_grn=use_grn,
            layer_scale_init_value=layer_scale_init_value,
            response_norm=response_norm,
        )
        if not (is_whole_number(frozen_stages) and 0 <= frozen_stages <= len(self.stages)):
            raise ValueError(
                f"frozen_stages must lie between 0 (none) and {len(self.stages)}, "
                f"got {frozen_stages!r}"
            )
        if init_cfg is not None and not (
            isinstance(init_cfg, dict)
            and init_cfg.get("type") == "Pretrained"
            and {"checkpoint"} <= set(init_cfg) - {"type"} <= _INIT_CFG_KEYS
        ):
            raise ValueError(
                f"init_cfg must be None or dict(type='Pretrained', checkpoint=...) with the "
                f"optional keys {sorted(_INIT_CFG_KEYS - {'checkpoint'})}, got {init_cfg}"
            )
        for key, choices in _INIT_CFG_CHOICES.items():
            if init_cfg is not None and init_cfg.get(key) not in (None, *choices):
                raise ValueError(
                    f"init_cfg.{key} must be one of {', '.join(choices)}, got {init_cfg[key]!r}"
                )
        self.frozen_stages = frozen_stages
        self.init_cfg = copy.deepcopy(init_cfg)
        self._freeze_stages()

    def init_weights(self) -> None:
        """Load the checkpoint that `init_cfg` names, strictly; draw nothing.

        The file may be any publisher's, by path, URL or hub id (docs/checkpoints.md). `init_cfg`
        may say more than ``checkpoint``: ``prefix``, what the backbone's keys begin with
        (recognised where it is left out); ``inflate_stem``, "mean" or "sum", how a file for images
        of another number of channels is made to fit (`mmconvnextv2.checkpoint.inflation`);
        ``output_norms``, whether to take the output norms that the file has; and ``grn``, "drop"
        for a backbone without GRN and a file with it, "add" for the reverse, where GRN starts
        fresh (paper, table 2f). By default a classifier takes the output norms; in dense
        prediction they start fresh, as in ConvNeXt V1's official code, since a classifier's norm
        has seen averages only.

        Raises:
            FileNotFoundError: there is no such file.
            StateDictMismatch: the file does not fit; the message lists every key concerned. Only
                output norms may be missing or superfluous, and GRN where ``grn`` says so: then
                the file has to have it ("drop"), or to be without it ("add").
            ValueError: the file is not a checkpoint of tensors.
        """
        if self.init_cfg is not None and not self.is_init:
            path = self.init_cfg["checkpoint"]
            state_dict = to_our_names(read_checkpoint(fetch_checkpoint(path)))
            tensors = backbone_state_dict(state_dict, self.init_cfg.get("prefix"))
            if not self.init_cfg.get("output_norms", self.gap_before_final_norm):
                tensors = {k: v for k, v in tensors.items() if not OUTPUT_NORM.match(k)}
            tensors, inflated = self._fit_stem(tensors)
            tensors, optional, dropped = self._fit_grn(tensors)
            summary = load_strictly(self, tensors, optional, what="backbone tensors")
            print_log(f"{path}: {summary}{inflated}{dropped}", "current")
        self.is_init = True

    def _fit_stem(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
        """Inflate the stem where the file has another number of channels, and say so."""
        stem = tensors.get(STEM)
        if stem is None or stem.ndim != 4 or stem.shape[1] == self.in_channels:
            return tensors, ""
        assert self.init_cfg is not None  # there is a file
        mode = self.init_cfg.get("inflate_stem")
        change = f"from {stem.shape[1]} to {self.in_channels} channels"
        if mode is None:
            raise StateDictMismatch(
                f"the stem would have to go {change}: init_cfg=dict(..., inflate_stem='mean') "
                f"keeps the response to the first channels, 'sum' that to equal ones"
            )
        fitted = {**tensors, STEM: inflate_stem(stem, self.in_channels, mode)}
        return fitted, f"; stem inflated {change} ({mode})"

    def _fit_grn(
        self, tensors: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], re.Pattern[str], str]:
        """Drop the file's GRN, or let this one's start fresh, where `init_cfg` says so.

        Returns:
            The tensors to load, the keys that may be missing or superfluous, and what to say.
        """
        assert self.init_cfg is not None  # there is a file
        mode = self.init_cfg.get("grn")
        num_found = sum(1 for key in tensors if GRN_KEY.match(key))
        if mode == "drop":
            if num_found == 0:
                raise StateDictMismatch("init_cfg says grn='drop', and the file has no GRN")
            kept = {key: value for key, value in tensors.items() if not GRN_KEY.match(key)}
            return kept, OUTPUT_NORM, f"; dropped: {num_found} tensors of GRN"
        if mode == "add":
            if num_found > 0 or not any(GRN_KEY.match(key) for key in self.state_dict()):
                owner = "the file has GRN already" if num_found else "this backbone has no GRN"
                raise StateDictMismatch(f"init_cfg says grn='add', and {owner}")
            return tensors, re.compile(f"{OUTPUT_NORM.pattern}|{GRN_KEY.pattern}"), ""
        return tensors, OUTPUT_NORM, ""

    def train(self, mode: bool = True) -> ConvNeXtV2:
        """Set the mode of everything that is not frozen, and return the module itself."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        for downsample, stage in zip(
            self.downsample_layers[: self.frozen_stages],
            self.stages[: self.frozen_stages],
            strict=True,
        ):
            downsample.eval()
            stage.eval()
            for parameter in chain(downsample.parameters(), stage.parameters()):
                parameter.requires_grad = False
