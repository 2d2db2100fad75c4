"""Figures and pages (Markdown, HTML) of evaluations, cohorts and methods."""
