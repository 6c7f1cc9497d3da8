_base_ = "../../fcmae/fcmae_convnextv2-base_64xb64-coslr-800e_in1k.py"

mask_ratio = 0.7
model = dict(data_preprocessor=dict(mask_ratio=mask_ratio))
