_base_ = "../_base_/convnextv2_in1k.py"

model = _base_.recipes.base.model
optim_wrapper = _base_.recipes.base.optim_wrapper
param_scheduler = _base_.recipes.base.param_scheduler
train_cfg = _base_.recipes.base.train_cfg
recipes = None
