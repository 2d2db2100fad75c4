"""What any program needs of its machine. Knows no medicine.

Whole-file writes, foreign files within limits, hashes, GPU meters, the nearest name to a typo.
"""
