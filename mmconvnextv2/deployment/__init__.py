"""From a config and a checkpoint to an ONNX or torch.export file that runs without this package."""

from mmconvnextv2.deployment.check import CheckFailed, Comparison
from mmconvnextv2.deployment.export import Export, MissingPackages, export
from mmconvnextv2.deployment.modules import Deployable, load_deployable
from mmconvnextv2.deployment.precision import use_float16

__all__ = [
    "CheckFailed",
    "Comparison",
    "Deployable",
    "Export",
    "MissingPackages",
    "export",
    "load_deployable",
    "use_float16",
]
