"""MHub module: exclusion of scans without coronary calcium."""

from .computing import computing

ScreeningRunner = computing("ScreeningRunner")
