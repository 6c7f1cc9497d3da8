"""MAE with a ViT of about Atto's size on the built-in sample set: minutes on two CPU cores.

The ViT has 3.7 million parameters, ours in width and depth; so is the narrower decoder.
"""

_base_ = ["_base_/sample.py", "_base_/mae.py"]

# knobs
arch = dict(embed_dims=192, num_layers=8, num_heads=3, feedforward_channels=768)

model = _base_.mae_model
model.backbone.update(arch=arch, img_size=_base_.image_size)
model.neck.update(
    num_patches=(_base_.image_size // _base_.patch_size) ** 2,
    embed_dim=arch["embed_dims"],
    decoder_embed_dim=192,
    decoder_depth=2,
    decoder_num_heads=3,
)
optim_wrapper = _base_.mae_optim_wrapper
