"""MHub module: coronary calcium, as the published DeepCAC2 finds it."""

from .modules import computing

DeepCAC2Runner = computing("DeepCAC2Runner")
