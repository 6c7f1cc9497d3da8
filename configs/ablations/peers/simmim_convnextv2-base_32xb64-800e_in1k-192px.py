"""SimMIM with ConvNeXt V2: SimMIM's recipe around this project's encoder, dense."""

_base_ = "_base_/simmim.py"

model = dict(
    type="ConvNetSimMIM",
    backbone=dict(type="ConvNeXtV2", arch="base", gap_before_final_norm=False, output_norms=False),
)
