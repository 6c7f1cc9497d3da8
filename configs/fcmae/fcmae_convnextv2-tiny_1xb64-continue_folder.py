"""Continue FCMAE from published weights on any folder of images, on one GPU.

`tools/continue_pretraining.py FOLDER --init CHECKPOINT` fills in the folder, the weights, the
architecture, the channels and what suits the number of images (`mmconvnextv2.apis.settings`). The
encoder comes from the checkpoint; the decoder starts fresh and learns alone at first. A share of
the images is held out, and the loss on them says whether it helps to go on.
"""

_base_ = "fcmae_convnextv2-tiny_1xb64-coslr-400e_folder.py"

# knobs
data_root = "data/images"
checkpoint = "hf://timm/convnextv2_tiny.fcmae"
in_channels = 3
inflate_stem = "mean"  # for in_channels other than the checkpoint's: "mean" or "sum"
batch_size_per_gpu = 64
base_batch_size = 64
max_epochs = 200
val_interval = 10  # epochs
held_out_share = 0.1
decoder_warmup_iters = 500  # the encoder is fixed
warmup_iters = 500  # the rate rises again, now for both
base_lr = 1.6e-3  # of the decoder, per 256 images
encoder_rate = 0.25  # of the encoder's last layer, compared with the decoder
layer_decay = 0.9  # from each layer of the encoder to the one before it

model = dict(
    backbone=dict(
        in_channels=in_channels,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint, inflate_stem=inflate_stem),
    ),
    neck=dict(image_channels=in_channels),
)

train_dataloader = dict(
    batch_size=batch_size_per_gpu,
    dataset=dict(
        dataset=dict(
            type="SplitImageFolder",
            data_root=data_root,
            split=None,
            part="train",
            held_out_share=held_out_share,
        )
    ),
)
# Read by plain indices, a StatelessDataset gives the same crops each time.
val_dataloader = dict(
    batch_size=batch_size_per_gpu,
    num_workers=_base_.num_workers,
    persistent_workers=_base_.num_workers > 0,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="StatelessDataset",
        dataset=dict(
            type="SplitImageFolder",
            data_root=data_root,
            split=None,
            part="held_out",
            held_out_share=held_out_share,
            pipeline=_base_.train_pipeline,
        ),
    ),
)
val_cfg = dict(type="HeldOutLoop")
val_evaluator = []

optim_wrapper = dict(
    optimizer=dict(lr=base_lr * base_batch_size / 256),
    constructor="LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(scheme="single", decay_rate=layer_decay, encoder_rate=encoder_rate),
)
# The rate rises twice: AdamW's first steps are as large as its rate, whatever the gradient.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-8, by_epoch=False, begin=0, end=decoder_warmup_iters),
    dict(
        type="LinearLR",
        start_factor=1e-8,
        by_epoch=False,
        begin=decoder_warmup_iters,
        end=decoder_warmup_iters + warmup_iters,
    ),
    dict(
        type="CosineAnnealingLR",
        eta_min=0.0,
        by_epoch=False,
        begin=decoder_warmup_iters + warmup_iters,
    ),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=val_interval)
auto_scale_lr = dict(base_batch_size=base_batch_size)
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=val_interval, save_best="held_out_loss", rule="less"),
)
# mmengine logs the mean of the last ten of all that is called loss; held-out figures are few.
log_processor = dict(mean_pattern=r"^(?!held_out).*(loss|time|data_time|grad_norm)")
custom_hooks = _base_.custom_hooks
# A fixed encoder takes less time.
next(h for h in custom_hooks if h.type == "PlanHook").warmup = decoder_warmup_iters + 20
custom_hooks[-1].interval = val_interval
custom_hooks += [
    dict(type="DecoderWarmupHook", num_iters=decoder_warmup_iters),
    dict(type="TrainingSignalHook"),
]
# During the decoder's warm-up the encoder has no gradients.
find_unused_parameters = True
