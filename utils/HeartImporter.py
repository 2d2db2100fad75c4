"""MHub module: a heart that exists already."""

from .modules import computing

HeartImporter = computing("HeartImporter")
