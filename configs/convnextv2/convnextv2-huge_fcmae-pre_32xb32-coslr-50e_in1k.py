_base_ = "../_base_/convnextv2_in1k.py"

model = _base_.recipes.huge.model
optim_wrapper = _base_.recipes.huge.optim_wrapper
param_scheduler = _base_.recipes.huge.param_scheduler
train_cfg = _base_.recipes.huge.train_cfg
recipes = None
