_base_ = "fcmae_convnextv2-base_cell-32_64xb64-coslr-800e_in1k-256px.py"

model = dict(data_preprocessor=dict(cell_size=64))
