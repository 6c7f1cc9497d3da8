_base_ = "../_base_/convnextv2_in1k.py"

model = _base_.recipes.tiny.model
optim_wrapper = _base_.recipes.tiny.optim_wrapper
param_scheduler = _base_.recipes.tiny.param_scheduler
train_cfg = _base_.recipes.tiny.train_cfg
recipes = None
