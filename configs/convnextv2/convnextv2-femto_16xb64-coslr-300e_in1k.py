_base_ = "../_base_/convnextv2_supervised.py"

model = _base_.recipes.femto.model
optim_wrapper = _base_.recipes.femto.optim_wrapper
param_scheduler = _base_.recipes.femto.param_scheduler
train_cfg = _base_.recipes.femto.train_cfg
auto_scale_lr = _base_.recipes.femto.auto_scale_lr
recipes = None
