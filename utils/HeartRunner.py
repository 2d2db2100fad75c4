"""MHub module: the heart."""

from .computing import computing

HeartRunner = computing("HeartRunner")
