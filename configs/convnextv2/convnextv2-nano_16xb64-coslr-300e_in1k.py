_base_ = "../_base_/convnextv2_supervised.py"

model = _base_.recipes.nano.model
optim_wrapper = _base_.recipes.nano.optim_wrapper
param_scheduler = _base_.recipes.nano.param_scheduler
train_cfg = _base_.recipes.nano.train_cfg
auto_scale_lr = _base_.recipes.nano.auto_scale_lr
recipes = None
