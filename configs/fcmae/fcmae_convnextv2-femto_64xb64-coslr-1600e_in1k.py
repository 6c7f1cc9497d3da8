_base_ = "fcmae_convnextv2-femto_64xb64-coslr-800e_in1k.py"

max_epochs = 1600
train_cfg = dict(max_epochs=max_epochs)
