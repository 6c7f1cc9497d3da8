_base_ = "../_base_/convnextv2_in22k_in1k_384px.py"

model = _base_.recipes.large.model
optim_wrapper = _base_.recipes.large.optim_wrapper
train_cfg = _base_.recipes.large.train_cfg
default_hooks = _base_.recipes.large.default_hooks
recipes = None
