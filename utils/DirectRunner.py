"""MHub module: direct scoring, by a regression network."""

from .computing import computing

DirectRunner = computing("DirectRunner")
