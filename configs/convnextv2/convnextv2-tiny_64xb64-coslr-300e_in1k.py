_base_ = "../_base_/convnextv2_supervised.py"

model = _base_.recipes.tiny.model
optim_wrapper = _base_.recipes.tiny.optim_wrapper
param_scheduler = _base_.recipes.tiny.param_scheduler
train_cfg = _base_.recipes.tiny.train_cfg
auto_scale_lr = _base_.recipes.tiny.auto_scale_lr
recipes = None
