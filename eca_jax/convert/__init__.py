"""Weights across frameworks: the authors', torchvision's and timm's state dicts, in and out."""
