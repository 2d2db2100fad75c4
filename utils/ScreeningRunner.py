"""MHub module: exclusion of scans without coronary calcium."""

from .modules import computing

ScreeningRunner = computing("ScreeningRunner")
