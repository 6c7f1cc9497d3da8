"""What every run shares: imports, seeds, hooks, logs."""

custom_imports = dict(
    imports=["mmconvnextv2.models", "mmconvnextv2.engine", "mmconvnextv2.datasets"],
    allow_failed_imports=False,
)

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=100),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="DurableCheckpointHook", interval=20, max_keep_ckpts=3),
    # The sampler of this project gets its epoch from here, as mmengine's own do.
    sampler_seed=dict(type="DistSamplerSeedHook"),
)

custom_hooks = [
    dict(type="StatelessSeedHook"),
    dict(type="FiniteHook"),
    dict(type="ConsolidateOptimizerHook"),
    dict(type="AccumulatedGradientsHook"),
    dict(type="AnnotationCheckHook"),
    dict(type="LearningRateTermsHook"),
    dict(type="PlanHook"),
    dict(type="PortableCheckpointHook"),
    dict(type="StrictLoadingHook"),
    dict(type="ProgressHook"),
    dict(type="StopOnSignalHook"),
]

# A resumed run draws what the uninterrupted one would have drawn: nothing but the seed, the epoch
# and the index of an image decides.
randomness = dict(seed=0, deterministic=False)

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl", timeout=600),  # seconds; a process that hangs ends the job
)

vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="Visualizer", vis_backends=vis_backends)

log_level = "INFO"
load_from = None
resume = False
find_unused_parameters = False
