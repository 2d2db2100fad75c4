"""The released data set: built, verified, compared."""
