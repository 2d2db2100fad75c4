"""What is asked of masks, against the same over the whole array."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from deepcac2.imaging import Geometry
from deepcac2.imaging.masks import dilated


def test_widening_looks_only_around_the_mask_and_finds_the_same() -> None:
    rng = np.random.default_rng(7)
    for _ in range(6):
        shape = (int(rng.integers(30, 60)), int(rng.integers(40, 90)), int(rng.integers(40, 90)))
        spacing = (float(rng.uniform(0.6, 5)), float(rng.uniform(0.5, 1)), float(rng.uniform(0.5, 1)))
        mask = np.zeros(shape, dtype=bool)
        for _ in range(2):
            corner = [int(rng.integers(n - 7)) for n in shape]
            mask[tuple(slice(c, c + 7) for c in corner)] = True
        geometry = Geometry(shape=shape, spacing=spacing, origin=(0.0, 0.0, 0.0))
        steps = [max(1, round(3.0 / s)) for s in spacing]
        padded = np.pad(mask, [(0, -n % s) for n, s in zip(shape, steps, strict=True)])
        (a, p), (b, q), (c, r) = ((n // s, s) for n, s in zip(padded.shape, steps, strict=True))
        blocks = padded.reshape(a, p, b, q, c, r).any(axis=(1, 3, 5))
        far = ndimage.distance_transform_edt(
            ~blocks, sampling=[s * n for s, n in zip(spacing, steps, strict=True)]
        )
        for margin in (0.0, 4.0, 12.0):
            expected = np.kron(far <= margin, np.ones(steps, dtype=bool))
            expected = expected[: shape[0], : shape[1], : shape[2]]
            np.testing.assert_array_equal(dilated(mask, geometry, margin), expected)
    assert not dilated(np.zeros(shape, dtype=bool), geometry, 4.0).any()
