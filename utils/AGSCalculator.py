"""MHub module: Agatston score and risk group."""

from .modules import computing

AGSCalculator = computing("AGSCalculator")
