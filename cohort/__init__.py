"""Cohorts: which scans to take, the released data set, agreement and survival. Knows tables, not networks."""
