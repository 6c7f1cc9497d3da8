"""The MLflow backend beside a stand-in of MLflow that is as strict as the package."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.visualization import Visualizer

from mmconvnextv2.engine.mlflow_backend import DEFAULT_STORE

pytestmark = pytest.mark.unit


class MLflow(SimpleNamespace):
    """Notes what it is told; refuses stores and file names as MLflow does."""

    MlflowException = OSError

    def __init__(self) -> None:
        super().__init__(store="", experiment="", images=[], metrics=[])

    def set_tracking_uri(self, uri: str) -> None:
        if uri.startswith("file:"):
            raise self.MlflowException("the filesystem tracking backend is in maintenance mode")
        self.store = uri

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str, artifact_location: str | None) -> None:
        pass

    def set_experiment(self, name: str) -> None:
        self.experiment = name

    def log_image(self, image: np.ndarray, file: str) -> None:
        if not Path(file).suffix:
            raise ValueError("unknown file extension: ")
        self.images.append((file, image.copy()))

    def log_metric(self, name: str, value: float, step: int) -> None:
        self.metrics.append((name, value, step))

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@pytest.mark.parametrize("server", [None, "https://tracking.example.org"])
def test_scalars_and_pictures(
    server: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = MLflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    # mmengine would reopen the streams that pytest has closed behind the runs of other tests.
    monkeypatch.setattr(MMLogger, "get_current_instance", lambda: logging.getLogger("quiet"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if server is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    backends = [dict(type="MLflowBackend", exp_name="mine")]
    visualizer = Visualizer(vis_backends=backends, save_dir=str(tmp_path))
    visualizer.add_config(Config(dict(a=1)))
    visualizer.add_scalar("loss", 0.5, step=3)
    grids = [np.full((2, 2, 3), value, np.uint8) for value in (1, 2)]
    for step, grid in zip((5, 10), grids, strict=True):
        visualizer.add_image("reconstruction", grid, step=step)
    assert mlflow.store == (server or DEFAULT_STORE) and mlflow.experiment == "mine"
    assert mlflow.metrics == [("loss", 0.5, 3)]
    names, images = zip(*mlflow.images, strict=True)
    assert names == ("reconstruction/0000005.png", "reconstruction/0000010.png")
    assert np.array_equal(images, grids)
