"""`torch.compile`, block by block."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmconvnextv2.nn import Block


@HOOKS.register_module()
class CompileBlocksHook(Hook):
    """Compile each ConvNeXt V2 block of the model before training.

    mmengine's ``compile=True`` compiles the whole training step, which breaks at every data
    dependent operation. A block has none, all blocks of a stage share one compiled graph, and
    compiling in place leaves the keys of the state_dict alone.

    Args:
        mode: mode of `torch.compile`.
    """

    def __init__(self, mode: str = "default") -> None:
        self.mode = mode

    def before_train(self, runner: Runner) -> None:
        """Compile the blocks; the first steps are slow while kernels are built.

        Args:
            runner: the runner of the training process.
        """
        blocks = [module for module in runner.model.modules() if isinstance(module, Block)]
        for block in blocks:
            # Shapes are the same in every step. Dynamic ones, which torch tries as soon as encoder
            # and decoder differ, make inductor fail on the sizes of a small map.
            block.compile(mode=self.mode, dynamic=False)
        runner.logger.info(f"torch.compile: {len(blocks)} blocks")
