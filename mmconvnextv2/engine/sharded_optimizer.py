"""Optimizer state in shares, one for each process (ZeRO, stage 1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.registry import OPTIMIZERS
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer


class ShardedOptimizer(ZeroRedundancyOptimizer):
    """torch's ZeroRedundancyOptimizer, in a form that mmengine's Runner can save and resume.

    Every process has all weights and gradients; the optimizer's state of a parameter lives in one
    of them, which updates it and sends it to the others (Rajbhandari et al., 2020, P_os). The
    arithmetic is that of the plain optimizer. Its attribute ``state`` is this process's share.

    What `state_dict` gives, after `consolidate_state_dict` was called in all processes, is whole
    and the same as the plain optimizer's: it can be loaded with another number of processes, and
    into the plain optimizer.

    mmengine's own class of the name collects the shares inside of `state_dict`. Its Runner asks for
    that in the first process alone, which then waits for the others for ever; here
    `ConsolidateOptimizerHook` collects them.

    Args:
        params: parameters or groups of them.
        optimizer_class: the optimizer that each process runs on its share.
        **settings: its arguments.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        optimizer_class: type[Optimizer],
        **settings: Any,
    ) -> None:
        super().__init__(params, optimizer_class, **settings)
        self.state = self.optim.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take this process's share out of a whole state.

        torch's own keeps a second reference to what it loads, and puts the step counters of fused
        optimizers where their kernels cannot read them.

        Args:
            state_dict: the state of the plain optimizer over the same parameters in the same order.

        Raises:
            ValueError: its groups have other numbers of parameters.
        """
        sizes = [len(group["params"]) for group in self.param_groups]
        saved = [len(group["params"]) for group in state_dict["param_groups"]]
        if sizes != saved:
            raise ValueError(
                f"the saved optimizer has groups of {saved} parameters, and this one of {sizes}: "
                f"resume with the config of the run"
            )
        parameters = _parameters(self.param_groups)
        place = {parameter: index for index, parameter in enumerate(parameters)}
        places = [place[parameter] for parameter in _parameters(self.optim.param_groups)]
        numbers = iter(range(len(places)))
        groups = [
            {**group, "params": [next(numbers) for _ in own["params"]]}
            for group, own in zip(state_dict["param_groups"], self.optim.param_groups, strict=True)
        ]
        whole = state_dict["state"]
        share = {number: whole[i] for number, i in enumerate(places) if i in whole}
        self.optim.load_state_dict(dict(state=share, param_groups=groups))
        self.state = self.optim.state
        for group, own in zip(self.param_groups, self.optim.param_groups, strict=True):
            group.update({name: value for name, value in own.items() if name != "params"})

    def forget_shares(self) -> None:
        """Let go of what `consolidate_state_dict` collected, which is out of date after a step.

        `state_dict` then refuses until it is called again.
        """
        self._all_state_dicts: list[dict[str, Any]] = []


@OPTIMIZERS.register_module(name="ShardedOptimizer")
def build_sharded_optimizer(
    params: Iterable[Tensor] | Iterable[dict[str, Any]], optimizer_type: str, **settings: Any
) -> Optimizer:
    """Build an optimizer whose state is shared among the processes.

    A config says ``optimizer=dict(type="ShardedOptimizer", optimizer_type="AdamW", ...)`` and needs
    a `ConsolidateOptimizerHook`, which every run of this project has. One process alone has nothing
    to share: it gets the plain optimizer, and the log says so.

    Args:
        params: parameters or groups of them.
        optimizer_type: name of a class of `torch.optim`.
        **settings: its arguments.

    Raises:
        ValueError: there is no such class.
    """
    optimizer_class = getattr(torch.optim, optimizer_type, None)
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        raise ValueError(
            f"ShardedOptimizer: optimizer_type must name an optimizer of torch.optim, such as "
            f"AdamW, got {optimizer_type!r}"
        )
    if get_world_size() == 1:
        print_log(f"ShardedOptimizer: one process, so {optimizer_type} stays whole", "current")
        return optimizer_class(params, **settings)
    return ShardedOptimizer(params, optimizer_class, **settings)


def _parameters(groups: Sequence[dict[str, Any]]) -> Iterable[Tensor]:
    return chain.from_iterable(group["params"] for group in groups)
