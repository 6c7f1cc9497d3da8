_base_ = "../../fcmae/fcmae_convnext-v1-base_64xb64-coslr-800e_in1k.py"

# MAE's own size; the paper gives none.
model = dict(neck=dict(type="FCMAETransformerDecoder", depth=8, num_heads=16))
