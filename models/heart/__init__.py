"""The heart, by nnU-Net."""
