_base_ = "../_base_/convnextv2_in1k.py"

model = _base_.recipes.pico.model
optim_wrapper = _base_.recipes.pico.optim_wrapper
param_scheduler = _base_.recipes.pico.param_scheduler
train_cfg = _base_.recipes.pico.train_cfg
recipes = None
