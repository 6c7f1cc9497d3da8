_base_ = "../../fcmae/fcmae_convnext-v1-base_64xb64-coslr-800e_in1k.py"

model = dict(sparse_encoder=False)
