"""MHub module: coronary calcium, by the patch 3D U-Net."""

from .modules import computing

DeepCACRunner = computing("DeepCACRunner")
