_base_ = "../_base_/convnextv2_in1k.py"

model = _base_.recipes.large.model
optim_wrapper = _base_.recipes.large.optim_wrapper
param_scheduler = _base_.recipes.large.param_scheduler
train_cfg = _base_.recipes.large.train_cfg
recipes = None
