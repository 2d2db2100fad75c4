"""The coronary calcium, by a patch 3D U-Net (the DeepCAC2 paper)."""
