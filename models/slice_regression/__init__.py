"""Direct scoring: the score read off the slices by a regression network, without segmentation."""
