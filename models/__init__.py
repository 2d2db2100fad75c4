"""The methods, one folder each: `network` (architecture and predictor) and `step` (its step of the chain).

Nothing is loaded here, and `step` loads no network: torch and nnunetv2 take seconds.
"""
