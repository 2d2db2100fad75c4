"""Pulmonary vessels: branching trees that fill each lung."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .body import Body
from .shapes import Points


@dataclass(frozen=True, kw_only=True)
class VesselTree:
    """A tree of straight pieces, patient coordinates, mm.

    Attributes:
        points: (n, 3) nodes; node 0 is the root at the hilum.
        parent: (n,) index of each node's parent, always smaller than its own; the root's is 0.
        radius: (n,) vessel radius at each node.
    """

    points: Points
    parent: npt.NDArray[np.int64]
    radius: Points


def grow(rng: np.random.Generator, root: Points, targets: Points, *, tip: float) -> VesselTree:
    """Connect each target to the nearest place on the tree so far, nearest targets first.

    Radii follow Murray's law, generalised: the parent's radius to the power 2.6 is the sum of its
    children's (2.6 rather than 3 gives the calibres seen on CT).

    Args:
        rng: Source of randomness.
        root: (3,) start.
        targets: (n, 3) tips to reach.
        tip: Radius of the thinnest vessels, mm.
    """
    order = np.argsort(np.linalg.norm(targets - root, axis=1))
    points = np.empty((len(targets) * 6 + 1, 3))
    parent = np.zeros(len(points), dtype=np.int64)
    points[0] = root
    n = 1
    for target in targets[order]:
        d = np.linalg.norm(points[:n] - target, axis=1)
        # reaching back towards the root keeps the branches long and stretched outwards
        near = int(np.argmin(d + 0.35 * np.linalg.norm(points[:n] - root, axis=1)))
        start = points[near]
        pieces = int(np.clip(d[near] / 14, 1, 6))
        sag = rng.normal(0, 0.06 * d[near], 3)
        previous = near
        for i in range(1, pieces + 1):
            t = i / pieces
            points[n] = start + t * (target - start) + np.sin(np.pi * t) * sag
            parent[n] = previous
            previous = n
            n += 1
    points, parent = points[:n], parent[:n]
    flow = np.zeros(n)
    has_child = np.zeros(n, dtype=bool)
    has_child[parent[1:]] = True
    flow[~has_child] = tip**2.6
    for i in range(n - 1, 0, -1):
        flow[parent[i]] += flow[i]
    return VesselTree(points=points, parent=parent, radius=np.minimum(flow ** (1 / 2.6), 6.5))


def sample_vessels(rng: np.random.Generator, body: Body, hilum: Points) -> tuple[VesselTree, ...]:
    """One tree per lung, spread through the rib cage; fewer and thinner vessels in emphysema."""
    trees = []
    for side in (-1.0, 1.0):
        p = rng.uniform((0.16, -0.92, -20.0), (0.97, 0.92, body.apex), (1600, 3))
        taper = np.sqrt(np.clip(1 - (np.maximum(p[:, 2], 0) / body.apex) ** body.rate, 0, 1))
        keep = (p[:, 0] ** 2 + p[:, 1] ** 2 < 0.9 * taper**2) & (p[:, 2] > -10 + 50 * (1 - p[:, 0]))
        p = p[keep][: int(rng.uniform(380, 560) * (1 - 0.4 * body.emphysema))]
        front, back = body.front(p[:, 2]), body.back(p[:, 2])
        p[:, 0] *= side * body.half_width
        p[:, 1] = 0.5 * (front + back) + 0.5 * (back - front) * p[:, 1]
        root = hilum + np.array([side * 46, 18.0, 34.0])
        trees.append(grow(rng, root, p, tip=float(rng.uniform(0.5, 0.75))))
    return tuple(trees)
