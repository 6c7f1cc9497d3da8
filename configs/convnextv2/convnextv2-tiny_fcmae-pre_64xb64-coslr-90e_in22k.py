_base_ = "../_base_/convnextv2_in22k.py"

model = _base_.recipes.tiny.model
optim_wrapper = _base_.recipes.tiny.optim_wrapper
recipes = None
