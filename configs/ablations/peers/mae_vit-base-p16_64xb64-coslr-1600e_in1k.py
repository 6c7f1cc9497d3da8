"""MAE (https://arxiv.org/abs/2111.06377) with ViT-B: mmpretrain's algorithm and recipe.

Images, batch, optimizer and schedule are those of FCMAE, which took them from here.
"""

_base_ = ["_base_/pretraining.py", "_base_/mae.py"]

# knobs
max_epochs = 1600

model = _base_.mae_model
model.backbone.arch = "b"
model.neck.update(embed_dim=768, decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16)
optim_wrapper = _base_.mae_optim_wrapper
train_cfg = dict(max_epochs=max_epochs)
