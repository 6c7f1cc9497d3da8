"""A pre-trained FCMAE behind the page: a picture and a mask in, four pictures out.

Shape suffixes: N images, C channels, H and W pixels, h and w cells, P panels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mmconvnextv2.apis.reconstruct import training_pipeline, training_size
from mmconvnextv2.apis.run_config import build_model
from mmconvnextv2.checkpoint import load_strictly, read_checkpoint, to_our_names
from mmconvnextv2.models import FCMAE
from mmconvnextv2.nn import CELL_SIZE
from mmconvnextv2.visualization.reconstruction import reconstruction_panels
from mmconvnextv2.web.runs import Run


class Reconstructor:
    """A pre-trained FCMAE that fills in one picture after the other.

    Args:
        run: A run of pre-training on pictures of 8 bits.
        device: Where the model runs.

    Attributes:
        size_HW: Height and width that pictures must have, those of the training crops.
        grid_hw: Cells in a column and in a row of such a picture.
        mask_ratio: Share of cells that training removed.
        cell_scale: Side in cells of the squares that training removed.

    Raises:
        ValueError: The checkpoint does not fit the config, or the run read rasters.
    """

    def __init__(self, run: Run, device: torch.device) -> None:
        pipeline = training_pipeline(run.config)
        if any(step["type"] == "LoadRaster" for step in pipeline):
            raise ValueError(
                f"{run.checkpoint} was trained on images of any depth, and the page takes pictures "
                "of 8 bits: use `mmconvnextv2 reconstruct`"
            )
        self.size_HW = training_size(pipeline)
        self.grid_hw = (self.size_HW[0] // CELL_SIZE, self.size_HW[1] // CELL_SIZE)
        self._model = build_model(run.config)
        if not isinstance(self._model, FCMAE):
            raise ValueError(f"a {type(self._model).__name__} does not reconstruct; FCMAE does")
        load_strictly(self._model, to_our_names(read_checkpoint(run.checkpoint)))
        self._model.to(device).eval()
        preprocessor: Any = self._model.data_preprocessor
        self.mask_ratio: float = preprocessor.mask_ratio
        self.cell_scale: int = preprocessor.cell_size // CELL_SIZE
        self._preprocessor = preprocessor
        self._device = device

    @torch.no_grad()
    def reconstruct(
        self, picture_HWC: NDArray[np.uint8], mask_hw: NDArray[np.bool_]
    ) -> NDArray[np.uint8]:
        """Fill in what a mask removes.

        Args:
            picture_HWC: RGB picture of the size `size_HW`.
            mask_hw: True = removed; at least one cell is visible.

        Returns:
            uint8 array (4, H, W, 3), RGB: original, masked, prediction, composite.
        """
        if self._preprocessor.mean.numel() == 1:
            picture_HWC = np.asarray(Image.fromarray(picture_HWC).convert("L"))[..., None]
        bgr_HWC = picture_HWC[..., ::-1].copy()  # as OpenMMLab's pipelines read files
        inputs_NCHW = torch.from_numpy(bgr_HWC).to(self._device).permute(2, 0, 1)[None]
        x_NCHW = self._preprocessor.normalize(inputs_NCHW)
        mask_Nhw = torch.from_numpy(mask_hw).to(self._device)[None]
        (sample,) = self._model(x_NCHW, mask=mask_Nhw, mode="predict")
        panels_NPHWC = reconstruction_panels(
            x_NCHW,
            sample.reconstruction[None],
            mask_Nhw,
            self._preprocessor.mean,
            self._preprocessor.std,
        )
        return panels_NPHWC[0]
