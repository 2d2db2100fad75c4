"""MHub module: the heart."""

from .modules import computing

HeartRunner = computing("HeartRunner")
