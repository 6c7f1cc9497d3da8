"""Training views in MLflow, with the pictures of every step."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from mmengine.registry import VISBACKENDS
from mmengine.visualization import MLflowVisBackend
from mmengine.visualization.vis_backend import force_init_env

DEFAULT_STORE = "sqlite:///mlflow.db"
"""MLflow's own: in the folder where the run is started, and where ``mlflow ui`` looks."""


@VISBACKENDS.register_module()
class MLflowBackend(MLflowVisBackend):
    """mmengine's backend, writing where MLflow would, and pictures as files of their own.

    mmengine's names a folder as the store, which MLflow no longer takes, and a picture without the
    suffix that tells MLflow its format.

    Args:
        save_dir: folder of the run's logs, given by the visualizer.
        exp_name: name of the experiment that the run belongs to.
        tracking_uri: server or database; ``$MLFLOW_TRACKING_URI`` when None, else `DEFAULT_STORE`.
    """

    def __init__(self, save_dir: str, exp_name: str, tracking_uri: str | None = None) -> None:
        store = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_STORE)
        super().__init__(save_dir, exp_name=exp_name, tracking_uri=store)

    @force_init_env
    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Keep an RGB picture (H, W, 3) as ``name/step.png``."""
        self._mlflow.log_image(image, f"{name}/{step:07d}.png")
