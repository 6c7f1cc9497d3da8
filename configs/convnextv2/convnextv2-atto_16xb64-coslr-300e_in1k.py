_base_ = "../_base_/convnextv2_supervised.py"

model = _base_.recipes.atto.model
optim_wrapper = _base_.recipes.atto.optim_wrapper
param_scheduler = _base_.recipes.atto.param_scheduler
train_cfg = _base_.recipes.atto.train_cfg
auto_scale_lr = _base_.recipes.atto.auto_scale_lr
recipes = None
