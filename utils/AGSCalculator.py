"""MHub module: Agatston score and risk group."""

from .computing import computing

AGSCalculator = computing("AGSCalculator")
