_base_ = "../_base_/convnextv2_in22k_in1k.py"

model = _base_.recipes.base.model
optim_wrapper = _base_.recipes.base.optim_wrapper
train_cfg = _base_.recipes.base.train_cfg
default_hooks = _base_.recipes.base.default_hooks
recipes = None
