"""MHub module: the calcium mask mapped onto the CT, and its score."""

from .modules import computing

CACMapping = computing("CACMapping")
