"""`Rule`: everything in which Agatston implementations differ; `RULES`: the ones with a name.

`VoltageRule`: one whose threshold and weights go by the tube voltage of the scan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal

from ..errors import InputError
from ..system.nearest import nearest

WEIGHTS: tuple[tuple[int, int], ...] = ((130, 1), (200, 2), (300, 3), (400, 4))
"""(lowest maximum HU, weight) of a lesion; below 130 HU it counts nothing. Agatston et al. 1990 [1]."""

ANY_HU = -32768
"""The lowest HU that there is (int16): a first weight from here on counts every lesion."""

REFERENCE_THICKNESS_MM = 3.0
"""Contiguous 3 mm slices: the protocol for which the score was defined [1]."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How calcium is counted. Frozen; make variants with `dataclasses.replace`.

    Connectivity, seen from voxel ``o`` in its own slice (left) and in the slice above or below (right);
    ``x`` is a neighbour::

        4           8           6                    18                   26
        . x .       x x x       . x .    . . .       x x x    . x .       x x x    x x x
        x o x       x o x       x o x    . x .       x o x    x x x       x o x    x x x
        . x .       x x x       . x .    . . .       x x x    . x .       x x x    x x x

    4 and 8 make lesions that live in one slice; 6, 18 and 26 make lesions through slices.

    Attributes:
        name: Name in reports.
        summary: One line for people.
        threshold: Voxels of the mask count from this HU on; None: every voxel of the mask counts, if the
            maximum of its lesion has a weight.
        connectivity: Which voxels belong to one lesion (see the picture).
        min_area_mm2, min_volume_mm3, min_voxels: Smaller lesions count nothing. An area is only
            meaningful for lesions of one slice (connectivity 4 or 8).
        weight_per: ``"slice"``: each connected piece of a lesion within a slice is weighted by its own
            maximum; ``"lesion"``: one maximum for the whole lesion.
        thickness: What the 3 mm of the reference protocol are compared with: the distance of slice
            positions (``"increment"``), the header's SliceThickness (``"slice-thickness"``), or
            nothing (``"none"``, factor 1).
        round_lesions: Each lesion's score is rounded to a whole number before adding up.
        weights: (lowest maximum HU, weight), both ascending: a lesion has the weight of the last limit that
            its maximum reaches, and counts nothing where it reaches none. A threshold never lies below the
            first limit: lesions between the two would silently count nothing.
        whole_from: The mask only points at calcium: every piece of the CT from this HU on, in a slice and by
            the connectivity there, that it overlaps is taken whole, and nothing else. None: the mask is taken
            as it is.
        unit_digits: What one pixel counts (mm² × thickness factor) is rounded to so many digits; None: not.
        piece_digits: What each weighted piece counts is rounded to so many digits; None: not.
        round_total: The sum is rounded to a whole number, halves to the even one. It is then added up slice
            after slice, in each the piece with the leftmost pixel first, as the published code does, for
            halves hang on that.
    """

    name: str
    summary: str = ""
    threshold: int | None = 130
    connectivity: Literal[4, 8, 6, 18, 26] = 8
    min_area_mm2: float = 0.0
    min_volume_mm3: float = 0.0
    min_voxels: int = 1
    weight_per: Literal["slice", "lesion"] = "slice"
    thickness: Literal["increment", "slice-thickness", "none"] = "increment"
    round_lesions: bool = False
    weights: tuple[tuple[int, int], ...] = WEIGHTS
    whole_from: int | None = None
    unit_digits: int | None = None
    piece_digits: int | None = None
    round_total: bool = False

    def __post_init__(self) -> None:
        if self.connectivity not in (4, 8, 6, 18, 26):
            raise InputError(f"Rule connectivity must be 4, 8, 6, 18 or 26, not {self.connectivity}")
        if self.weight_per not in ("slice", "lesion"):
            raise InputError(f"Rule weight_per must be 'slice' or 'lesion', not {self.weight_per!r}")
        if self.thickness not in ("increment", "slice-thickness", "none"):
            raise InputError(
                f"Rule thickness must be 'increment', 'slice-thickness' or 'none', not {self.thickness!r}"
            )
        self._check_weights()
        if self.whole_from is not None and (self.threshold is not None or not self.per_slice):
            raise InputError(
                "Rule whole_from needs threshold None and lesions within a slice: connectivity 4, 8"
            )
        if self.min_area_mm2 > 0 and not self.per_slice:
            raise InputError("Rule min_area_mm2 needs lesions within a slice: use connectivity 4 or 8")

    def _check_weights(self) -> None:
        if not self.weights:
            raise InputError("Rule weights must name at least one (lowest maximum HU, weight)")
        numbers = [n for pair in self.weights for n in pair]
        if any(len(pair) != 2 for pair in self.weights) or any(type(n) is not int for n in numbers):
            raise InputError(f"Rule weights are pairs of whole numbers (HU, weight), not {self.weights}")
        rising = all(a < c and b < d for (a, b), (c, d) in pairwise(self.weights))
        if not rising or self.weights[0][1] < 1:
            raise InputError(f"Rule weights rise with the HU and begin with 1 or more, not {self.weights}")
        first = self.weights[0][0]
        if self.threshold is not None and self.threshold < first:
            raise InputError(
                f"Rule threshold {self.threshold} HU lies below the first weight's {first} HU, so lesions "
                f"between would count nothing: give weights=(({self.threshold}, 1), …) too"
            )

    @property
    def per_slice(self) -> bool:
        """Whether a lesion lives in one slice only."""
        return self.connectivity in (4, 8)

    @property
    def in_plane(self) -> Literal[4, 8]:
        """The connectivity within a slice."""
        return 4 if self.connectivity in (4, 6) else 8

    @property
    def counts_from(self) -> int | None:
        """HU from which voxels of a mask matter; None: any may."""
        return self.threshold if self.whole_from is None else self.whole_from

    def counts_below(self, hu: int | None) -> bool:
        """Whether voxels of a mask below an HU may matter; None is below everything: False."""
        return hu is not None and (self.counts_from is None or self.counts_from < hu)

    def lacks(self, kvp: float | None) -> str:
        """Why scans at this tube voltage, kV or None, cannot be scored, in words; "": they can."""
        return ""

    def at(self, kvp: float | None) -> Rule:
        """The rule for scans at a tube voltage, kV: itself, unless it goes by the voltage."""
        return self

    def parameters(self) -> dict[str, Any]:
        """All parameters as JSON types, for reports."""
        return {**asdict(self), "weights": [list(pair) for pair in self.weights]}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Rule:
        """The rule that a report's parameters name; whatever else they say is left out.

        Raises:
            InputError: They are no rule's.
        """
        known = {f.name: parameters[f.name] for f in fields(cls) if f.name in parameters}
        try:
            known["weights"] = tuple((low, weight) for low, weight in known["weights"])
            return cls(**known)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"These are no parameters of a scoring rule ({error!r}): score again") from error


@dataclass(frozen=True, kw_only=True)
class VoltageRule(Rule):
    """A rule whose threshold and weights go by the tube voltage.

    Only `at` makes of it a rule that scores. Its own threshold and weights are those of the voltage that has
    the lowest: whoever looks for calcium before the voltage is known must look from there on.

    Attributes:
        by_kvp: (tube voltage, kV; weights as `Rule.weights`). The first limit is the threshold.
    """

    by_kvp: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]

    def lacks(self, kvp: float | None) -> str:
        """As `Rule.lacks`."""
        if kvp is None:
            return f"the rule {self.name} goes by the tube voltage, which is not known or not one"
        if self._weights_at(kvp) is not None:
            return ""
        known = ", ".join(str(voltage) for voltage, _ in self.by_kvp)
        return f"the rule {self.name} has weights for {known} kV, not for {kvp:g} kV"

    def at(self, kvp: float | None) -> Rule:
        """The rule for scans at a tube voltage, of the same name.

        Raises:
            InputError: It has no weights for this voltage.
        """
        weights = None if kvp is None else self._weights_at(kvp)
        if weights is None:
            raise InputError(f"{self.lacks(kvp)}: name the right voltage, or score by the rule agatston")
        same = {f.name: getattr(self, f.name) for f in fields(Rule)}
        return Rule(**{**same, "threshold": weights[0][0], "weights": weights})

    def _weights_at(self, kvp: float) -> tuple[tuple[int, int], ...] | None:
        """The weights at a voltage, to half a kV, as the gate ``kvp`` takes it; None: there are none."""
        return next((w for voltage, w in self.by_kvp if abs(voltage - kvp) <= 0.5), None)


def find_rule(rule: str | Rule) -> Rule:
    """The rule of that name, or `rule` itself.

    Raises:
        InputError: no rule has this name; the message names the nearest one.
    """
    if isinstance(rule, Rule):
        return rule
    known = named_rules()
    if rule in known:
        return known[rule]
    raise InputError(f"No scoring rule is called '{rule}'.{nearest(rule, known)}")


_DEEPCAC2 = Rule(
    name="deepcac2",
    summary="every voxel of the mask, 2D lesions of more than 3 pixels, weight 1 also below 130 HU, slice "
    "increment / 3 mm, rounded: pixel and piece to 3 digits, the sum to a whole number",
    threshold=None,
    min_voxels=4,
    weights=((ANY_HU, 1), *WEIGHTS[1:]),
    unit_digits=3,
    piece_digits=3,
    round_total=True,
)

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            name="agatston",
            summary="mask and >= 130 HU, 2D lesions of >= 1 mm2, slice increment / 3 mm (the default)",
            min_area_mm2=1.0,
        ),
        Rule(
            name="classic",
            summary="as agatston, without the factor for the slice increment",
            min_area_mm2=1.0,
            thickness="none",
        ),
        Rule(
            name="deepcac-v1",
            summary="every voxel of the mask, 2D lesions of more than 3 pixels, slice increment / 3 mm",
            threshold=None,
            min_voxels=4,
        ),
        Rule(
            name="ai-cac",
            summary="every voxel of the mask, 3D face-connected lesions of >= 2 voxels, one maximum for "
            "each, rounded, SliceThickness / 3 mm",
            threshold=None,
            connectivity=6,
            min_voxels=2,
            weight_per="lesion",
            thickness="slice-thickness",
            round_lesions=True,
        ),
        Rule(
            name="van-velzen",
            summary="mask and >= 130 HU, 3D 26-connected lesions of >= 1.5 mm3, slice increment / 3 mm",
            connectivity=26,
            min_volume_mm3=1.5,
        ),
        _DEEPCAC2,
        replace(
            _DEEPCAC2,
            name="deepcac2-mapped",
            summary="as deepcac2, but the pieces >= 130 HU in a slice that the mask overlaps are taken whole",
            whole_from=130,
        ),
    )
}
"""The named rules, but for `VOLTAGE_RULES`.

Sources: agatston, classic: Agatston et al. 1990 [1], the increment factor as in Ohnesorge et al.
2002 [2]; deepcac-v1: Zeleznik et al. 2021 [3] (its rounding of the voxel volume to three digits is left out);
ai-cac: Hagopian et al. 2025 [4]; van-velzen: van Velzen et al. 2020 [5]; deepcac2, deepcac2-mapped: the code
of Nuernberg et al. 2026 [6], github.com/MHubAI/models, pull request 111.

[1] doi:10.1016/0735-1097(90)90282-T  [2] doi:10.1007/s00330-002-1340-8  [3] doi:10.1038/s41467-021-20966-2
[4] doi:10.1056/AIoa2400937  [5] doi:10.1148/radiol.2020191621  [6] arXiv:2603.24633
"""

VOLTAGE_WEIGHTS: tuple[tuple[int, tuple[tuple[int, int], ...]], ...] = (
    (70, ((207, 1), (318, 2), (477, 3), (636, 4))),
    (80, ((177, 1), (271, 2), (408, 3), (544, 4))),
    (100, ((145, 1), (222, 2), (334, 3), (446, 4))),
    (120, WEIGHTS),
    (135, ((119, 1), (183, 2), (274, 3), (364, 4))),
)
"""Tube voltage, kV, and weights: Gräni et al., Eur Heart J Cardiovasc Imaging 2018;19:1362."""

VOLTAGE_RULES: dict[str, VoltageRule] = {
    rule.name: rule
    for rule in (
        VoltageRule(
            name="agatston-kvp",
            summary="as agatston, with threshold and weights for the scan's tube voltage: 70, 80, 100, 120, "
            "135 kV",
            min_area_mm2=1.0,
            threshold=119,
            weights=VOLTAGE_WEIGHTS[-1][1],
            by_kvp=VOLTAGE_WEIGHTS,
        ),
    )
}
"""The named rules that go by the tube voltage, too. Not for kernels that correct for it already (Sa36)."""


def named_rules() -> dict[str, Rule]:
    """Every rule that has a name."""
    return {**RULES, **VOLTAGE_RULES}


def register_rule(rule: Rule) -> Rule:
    """Make a rule known by its name.

    Raises:
        ValueError: Another one has its name.
    """
    if RULES.setdefault(rule.name, rule) != rule:
        raise ValueError(f"there are two scoring rules {rule.name}")
    return rule
