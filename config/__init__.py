"""Workflows in MHub's format and training recipes; data only."""
