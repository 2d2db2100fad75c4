"""MHub module: the score on thicker and softer slices, beside the plain one."""

from .modules import computing

HarmonisedCalculator = computing("HarmonisedCalculator")
