_base_ = "../_base_/convnextv2_supervised.py"

model = _base_.recipes.base_100e.model
optim_wrapper = _base_.recipes.base_100e.optim_wrapper
param_scheduler = _base_.recipes.base_100e.param_scheduler
train_cfg = _base_.recipes.base_100e.train_cfg
auto_scale_lr = _base_.recipes.base_100e.auto_scale_lr
recipes = None
