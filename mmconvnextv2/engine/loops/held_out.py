"""Validation loop of FCMAE: what held-out images say of a model that trains without labels.

Shape suffixes: N images, C channels, H and W pixels of an image or cells of a mask, S stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_gather_object
from mmengine.registry import LOOPS
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch import Tensor
from torch.utils.data import DataLoader

from mmconvnextv2.analysis.feature_statistics import (
    effective_rank,
    leave_one_out_knn,
    stage_diversity,
)
from mmconvnextv2.analysis.knn import FeatureBank, knn_accuracy
from mmconvnextv2.datasets.stateless import StatelessDataset
from mmconvnextv2.engine.plain_model import plain_model
from mmconvnextv2.nn import FCMAE, VisibleCells
from mmconvnextv2.seeding import Stream, derive_seed, seeded_cpu
from mmconvnextv2.visualization.prediction import evaluation_mode

# Epochs of training count from 0, so no sample of a run shares these draws.
_NO_EPOCH = -1
_KNN_DEFAULTS: dict[str, Any] = dict(bank=None, queries=None, k=20, temperature=0.07)


class ImageFigures(NamedTuple):
    """What is measured on one image.

    Attributes:
        loss: reconstruction loss on the removed cells.
        diversity_S: mean cosine distance of the channels, at each stage.
        pooled_C: mean of the last stage's features over the whole image.
        label: class index, or None.
    """

    loss: float
    diversity_S: list[float]
    pooled_C: Tensor
    label: int | None


@LOOPS.register_module()
class HeldOutLoop(BaseLoop):
    """Measure an `FCMAE` on held-out images with fixed crops and fixed masks.

    The figures, in the metrics of every validation:

    - ``held_out_loss``: the training loss. The mask of an image depends on (seed, its position)
      alone; its crop is fixed by `StatelessDataset`. So the figure is the same for any number of
      workers, before and after a resume, and for every checkpoint that is compared; for another
      batch size or number of processes it is the same to rounding.
    - ``feature_diversity_stage1`` to ``4``: mean cosine distance of the channels inside the
      blocks of each stage, on whole images (`stage_diversity`).
    - ``effective_rank``: of the last stage's features, averaged over positions.
    - ``knn_top1``, with `knn`: accuracy of the nearest neighbours in these features, in percent.

    Everything is computed in float32, without autocast. Global random states and the mode of every
    module are afterwards what they were. A config needs ``val_evaluator=[]``, since the Runner asks
    for one.

    Args:
        runner: the Runner.
        dataloader: loader of the held-out images or its config: a `StatelessDataset`, whose
            pipeline may be the training one, read in order: ``sampler=dict(type="DefaultSampler",
            shuffle=False, round_up=False)``.
        evaluator: must be empty; the Runner hands it to every loop.
        seed: of the masks. It is not the run's seed, so that runs can be compared.
        mask_ratio: share of the cells to remove; the model's own when None.
        knn: None for no k-NN accuracy; else ``dict(k=20, temperature=0.07)`` classifies each
            held-out image by all the others, and with ``bank`` and ``queries``, configs of loaders
            in order, the queries by the bank. Images need labels (`SplitImageFolder` makes them of
            sub-folders). k is cut to the number of images.

    Raises:
        TypeError: the model is no FCMAE.
        ValueError: the loader would not give the same images each time, or an argument is outside
            what is allowed.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict[str, Any],
        evaluator: Any,
        seed: int = 0,
        mask_ratio: float | None = None,
        knn: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(runner, dataloader)
        if evaluator:
            raise ValueError(
                f"HeldOutLoop computes its figures: set val_evaluator=[], {evaluator=}"
            )
        _check_order(self.dataloader, "val_dataloader")
        if not isinstance(self.dataloader.dataset, StatelessDataset):
            raise ValueError(
                "HeldOutLoop needs the same crops each time, and the images of "
                f"{type(self.dataloader.dataset).__name__} may differ: wrap the dataset, "
                "val_dataloader.dataset=dict(type='StatelessDataset', dataset=...)"
            )
        self.seed = seed
        self.mask_ratio = mask_ratio
        self.knn = None if knn is None else _complete_knn(knn)
        names = ("bank", "queries") if self._uses_bank else ()
        self._labelled = {name: self._build_labelled(name) for name in names}

    @property
    def _uses_bank(self) -> bool:
        return self.knn is not None and self.knn["bank"] is not None

    def _build_labelled(self, name: str) -> DataLoader:
        assert self.knn is not None
        loader = self.runner.build_dataloader(dict(self.knn[name]), seed=self.runner.seed)
        _check_order(loader, f"knn.{name}")
        return loader

    def run(self) -> dict[str, float]:
        """Measure, and hand the figures to the hooks.

        Returns:
            The figures by name.
        """
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        model = plain_model(self.runner.model)
        if not isinstance(model, FCMAE):
            raise TypeError(f"HeldOutLoop measures an FCMAE, got {type(model).__name__}")
        with seeded_cpu(self.seed), evaluation_mode(model):
            images = self._measure(model)
            metrics = summarize_images(images)
            if self.knn is not None:
                metrics["knn_top1"] = self._knn_accuracy(model, images)
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics

    def _measure(self, model: Any) -> list[ImageFigures]:
        """Figures of all images, of every process, in the order of the dataset."""
        positions = iter(self.dataloader.sampler)
        figures: dict[int, ImageFigures] = {}
        for batch_idx, data_batch in enumerate(self.dataloader):
            self.runner.call_hook("before_val_iter", batch_idx=batch_idx, data_batch=data_batch)
            x_NCHW, data_samples = _prepare(model, data_batch)
            batch_positions = list(islice(positions, len(x_NCHW)))
            mask_NHW = self._masks(model, batch_positions, (x_NCHW.shape[2], x_NCHW.shape[3]))
            batch = measure_images(model, x_NCHW, mask_NHW.to(x_NCHW.device), data_samples)
            figures.update(zip(batch_positions, batch, strict=True))
            self.runner.call_hook("after_val_iter", batch_idx=batch_idx, data_batch=data_batch)
        return _gather_in_order(figures, len(self.dataloader.dataset))

    def _masks(self, model: Any, positions: list[int], image_size: tuple[int, int]) -> Tensor:
        """Masks ``(N, H / 32, W / 32)`` that depend on the seed and each image's position alone."""
        masks = []
        for position in positions:
            generator = torch.Generator()
            generator.manual_seed(derive_seed(self.seed, Stream.SAMPLE, _NO_EPOCH, position))
            masks.append(
                model.data_preprocessor.draw_mask(
                    1, image_size, self.mask_ratio, generator=generator
                )
            )
        return torch.cat(masks)

    def _knn_accuracy(self, model: Any, images: list[ImageFigures]) -> float:
        assert self.knn is not None
        k, temperature = self.knn["k"], self.knn["temperature"]
        if not self._uses_bank:
            pooled_NC = torch.stack([image.pooled_C for image in images])
            labels_N = _labels([image.label for image in images], "val_dataloader")
            return leave_one_out_knn(pooled_NC, labels_N, k, temperature)
        bank_batch, queries = (
            _encode_labelled(model, loader, f"knn.{name}")
            for name, loader in self._labelled.items()
        )
        size = len(bank_batch[1])
        num_classes = int(torch.cat([bank_batch[1], queries[1]]).max()) + 1
        bank = FeatureBank.from_batches([bank_batch], size, num_classes)
        k = min(k, size)
        return knn_accuracy(bank, [queries], (k,), temperature, (1,))[f"k{k}/top1"]


def measure_images(
    model: Any, x_NCHW: Tensor, mask_NHW: Tensor, data_samples: list[Any] | None
) -> list[ImageFigures]:
    """Measure a batch of normalised images under given masks.

    Args:
        model: an `FCMAE` in eval mode.
        x_NCHW: images.
        mask_NHW: True where a cell is removed.
        data_samples: with ``gt_label`` where there are labels.
    """
    prediction_NHWP = model.forward_decoder(
        model.forward_encoder(x_NCHW, VisibleCells.from_mask(mask_NHW)), mask_NHW
    )
    images = [slice(i, i + 1) for i in range(len(x_NCHW))]
    loss_N = torch.stack(
        [model.forward_loss(x_NCHW[i], prediction_NHWP[i], mask_NHW[i]) for i in images]
    )
    diversity_NS, features_NCHW = stage_diversity(model.backbone, model.head.fill_missing(x_NCHW))
    labels = [_label(sample) for sample in data_samples or [None] * len(x_NCHW)]
    return [
        ImageFigures(*figures)
        for figures in zip(
            loss_N.tolist(), diversity_NS.tolist(), _pool(features_NCHW), labels, strict=True
        )
    ]


def summarize_images(images: list[ImageFigures]) -> dict[str, float]:
    """Average the figures of the images, and compute those that need all of them at once."""
    loss_N = torch.tensor([image.loss for image in images], dtype=torch.float64)
    diversity_NS = torch.tensor([image.diversity_S for image in images], dtype=torch.float64)
    diversity = {
        f"feature_diversity_stage{stage}": value
        for stage, value in enumerate(diversity_NS.mean(dim=0).tolist(), start=1)
    }
    pooled_NC = torch.stack([image.pooled_C for image in images])
    return dict(
        held_out_loss=loss_N.mean().item(), **diversity, effective_rank=effective_rank(pooled_NC)
    )


def _check_order(loader: DataLoader, name: str) -> None:
    sampler: Any = loader.sampler
    if type(sampler) is not DefaultSampler or sampler.shuffle or loader.drop_last:
        raise ValueError(
            f"{name} has to give every image once, in order, to any number of processes: set "
            "sampler=dict(type='DefaultSampler', shuffle=False, round_up=False), drop_last=False "
            f"and no batch_sampler; got a {type(sampler).__name__}, "
            f"shuffle={getattr(sampler, 'shuffle', None)}, drop_last={loader.drop_last}"
        )


def _complete_knn(knn: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**_KNN_DEFAULTS, **knn}
    both_or_none = (settings["bank"] is None) == (settings["queries"] is None)
    if set(settings) != set(_KNN_DEFAULTS) or not both_or_none or settings["k"] < 1:
        raise ValueError(
            f"knn may hold {', '.join(_KNN_DEFAULTS)}, bank and queries both or neither, and k of "
            f"at least 1; got {dict(knn)}"
        )
    return settings


def _prepare(model: Any, data_batch: dict[str, Any]) -> tuple[Tensor, list[Any] | None]:
    # The preprocessor draws a mask as well, from the global generator; it is not used.
    data = model.data_preprocessor(data_batch, False)
    return data["inputs"], data["data_samples"]


def _pool(features_NCHW: Tensor) -> list[Tensor]:
    """Average over positions; every row has memory of its own, which pickles alone."""
    return [pooled_C.clone() for pooled_C in features_NCHW.float().mean(dim=(2, 3)).cpu()]


def _gather_in_order(part: dict[int, Any], total: int) -> list[Any]:
    """What all processes have measured, by position; a position that two have counts once."""
    whole: dict[int, Any] = {}
    for other in all_gather_object(part):
        whole.update(other)
    assert sorted(whole) == list(range(total)), "the sampler gives every position to some process"
    return [whole[position] for position in range(total)]


def _encode_labelled(model: Any, loader: DataLoader, name: str) -> tuple[Tensor, Tensor]:
    """Pooled features ``(N, C)`` and labels ``(N,)`` of a loader's images."""
    positions, dataset = iter(loader.sampler), cast(Sized, loader.dataset)
    part: dict[int, tuple[Tensor, int | None]] = {}
    for data_batch in loader:
        x_NCHW, data_samples = _prepare(model, data_batch)
        pooled = _pool(model(x_NCHW, mode="tensor")[-1])
        for pooled_C, sample in zip(pooled, data_samples or [None] * len(x_NCHW), strict=True):
            part[next(positions)] = (pooled_C, _label(sample))
    images = _gather_in_order(part, len(dataset))
    pooled_NC = torch.stack([pooled_C for pooled_C, _ in images])
    return pooled_NC, _labels((label for _, label in images), name)


def _label(sample: Any) -> int | None:
    return int(sample.gt_label) if sample is not None and "gt_label" in sample else None


def _labels(labels: Iterable[int | None], name: str) -> Tensor:
    known = list(labels)
    if None in known:
        raise ValueError(
            f"knn needs a label for each image of {name}, and {known.count(None)} of {len(known)} "
            "have none: set label_by_folder=True where the data set is a SplitImageFolder, or "
            "leave knn out"
        )
    return torch.tensor(known)
