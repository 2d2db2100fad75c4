"""The exclusion of scans without coronary calcium, by three 2D networks."""
