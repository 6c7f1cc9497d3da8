_base_ = "../_base_/convnextv2_in22k.py"

model = _base_.recipes.base.model
optim_wrapper = _base_.recipes.base.optim_wrapper
recipes = None
