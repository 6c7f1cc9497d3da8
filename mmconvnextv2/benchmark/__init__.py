"""Alternatives measured side by side: ``python -m mmconvnextv2.benchmark NAME``.

Needs torch alone; timm, transformers, mmpretrain and MinkowskiEngine take part where they are
installed.
"""
