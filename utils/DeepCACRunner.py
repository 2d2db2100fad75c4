"""MHub module: coronary calcium, by the patch 3D U-Net."""

from .computing import computing

DeepCACRunner = computing("DeepCACRunner")
