_base_ = "../_base_/convnextv2_in22k_in1k_384px.py"

model = _base_.recipes.nano.model
optim_wrapper = _base_.recipes.nano.optim_wrapper
train_cfg = _base_.recipes.nano.train_cfg
default_hooks = _base_.recipes.nano.default_hooks
recipes = None
