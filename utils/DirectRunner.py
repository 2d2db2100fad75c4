"""MHub module: direct scoring, by a regression network."""

from .modules import computing

DirectRunner = computing("DirectRunner")
