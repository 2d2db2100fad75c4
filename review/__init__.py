"""Results read by a person: what is there to decide on, what was decided, and what is signed.

See docs/review.md. The web page is the dashboard's; the command is `deepcac2 rescore`.
"""
