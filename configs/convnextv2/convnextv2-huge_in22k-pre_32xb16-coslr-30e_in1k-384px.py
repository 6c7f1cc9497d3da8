_base_ = "../_base_/convnextv2_in22k_in1k_384px.py"

model = _base_.recipes.huge.model
optim_wrapper = _base_.recipes.huge.optim_wrapper
train_cfg = _base_.recipes.huge.train_cfg
default_hooks = _base_.recipes.huge.default_hooks
recipes = None

model.backbone.init_cfg.checkpoint = (
    "work_dirs/convnextv2-huge_fcmae-pre_64xb64-coslr-90e_in22k-384px/epoch_90.pth"
)
