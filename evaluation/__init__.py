"""How good results are where the truth is known: cases, metrics, methods compared. Trains nothing."""
