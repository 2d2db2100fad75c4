"""The networks: one family per module, each an architecture and a predictor from `Volume` to mask.

Import the module of a family (`models.heart`, `models.calcium`); nothing is loaded here, because torch and
nnunetv2 take seconds.
"""
