"""The length of a run counted in optimizer steps, whatever the number of images."""

from __future__ import annotations

from mmengine.config import Config

LONGEST_WARMUP = 50


def set_length(cfg: Config, steps: int) -> None:
    """Give a config a length in steps, in place: runs on any number of images are equally long.

    The rate rises linearly for a tenth of the steps, at most 50, and falls as half a cosine. One
    validation comes at the end, where the config validates.

    Args:
        cfg: config of a training run.
        steps: optimizer steps.

    Raises:
        ValueError: steps is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    cfg.train_cfg = dict(type="ResumableIterLoop", max_iters=steps, val_interval=steps)
    loader = cfg.train_dataloader
    loader.sampler = dict(type="StatelessInfiniteSampler", shuffle=True)
    loader.drop_last = False  # of an endless sequence nothing is left over
    warmup = min(LONGEST_WARMUP, steps // 10)
    warm = dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=warmup)
    fall = dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=warmup, end=steps)
    cfg.param_scheduler = [warm, fall] if warmup else [fall]
    cfg.log_processor = dict(by_epoch=False)
    hooks = cfg.default_hooks
    hooks.logger.update(interval=10, log_metric_by_epoch=False)
    hooks.checkpoint.update(by_epoch=False, interval=-(-steps // 4), max_keep_ckpts=2)
