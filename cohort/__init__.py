"""Cohorts: the index of a folder, which scans to take, and their download. Knows tables, not networks."""
