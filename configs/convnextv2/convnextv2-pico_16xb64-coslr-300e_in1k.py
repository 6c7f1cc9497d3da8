_base_ = "../_base_/convnextv2_supervised.py"

model = _base_.recipes.pico.model
optim_wrapper = _base_.recipes.pico.optim_wrapper
param_scheduler = _base_.recipes.pico.param_scheduler
train_cfg = _base_.recipes.pico.train_cfg
auto_scale_lr = _base_.recipes.pico.auto_scale_lr
recipes = None
