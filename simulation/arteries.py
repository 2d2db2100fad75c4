"""The coronary arteries of simulator version 2: courses, branches, fat and plaques nearer to patients'.

What version 1 draws (`coronary`) is easier than what patients have: each artery in a round sleeve of fat
several mm below the sac, plaques mostly compact. Measured on the network (docs/decisions/0012), that is what
it learns to ask for. Here the depth below the sac changes along an artery and comes near 0 at the diaphragm,
the fat around it comes and goes, arteries branch, and plaques may be long, on both walls or fill the artery.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .coronary import RIM_MM3, VISIBLE, Deposit, across, beside_trunk, unit
from .heart import Heart
from .shapes import Points, smooth_curve

MEDIAN_SCORE, SPREAD, HIGHEST_SCORE = 220.0, 1.7, 8000.0
"""Agatston score of those who have calcium: 19 % lie above 1000, more than in screening (chosen: what is
rare has to be met to be learnt)."""
ARTERY_SHARE = {"LM": 0.08, "LAD": 0.36, "LCX": 0.22, "RCA": 0.34}
"""How calcium spreads over the arteries; more in RCA and LCX than version 1 has (chosen)."""
NO_CALCIUM_SHARE = 0.15
"""Share of patients without coronary calcium, less than in screening (chosen)."""
BRANCH_SHARE = 0.18
"""Share of the plaques of an artery that lie in its branches (chosen)."""
BARE_SHARE = 0.45
"""Share of the pieces of an artery that run without fat of their own, against muscle or atrium (chosen)."""
DEEP_BARE_SHARE = 0.2
"""The same in version 5 (chosen)."""
PIECE_MM = 18.0
"""Length over which the fat around an artery changes."""
FORMS = {"compact": 0.5, "long": 0.27, "rails": 0.1, "filling": 0.13}
"""Share of the forms of a plaque: compact on a wall; long and thin on a wall; long on two opposite walls
("tram track"); filling the artery's whole width (chosen)."""
LONGEST_MM = 70.0
"""Longest plaque."""
LEFT_MAIN_MM, LEFT_MAIN_SD_MM, LEFT_MAIN_RANGE_MM = 10.5, 5.3, (3.0, 22.0)
"""Length of the left main artery: mean and deviation of 300 adults (Medrano-Gracia et al., EuroIntervention
2016, doi:10.4244/EIJV12I7A139); the limits are chosen."""
FORK_DEGREES, PARTING_MM = 82.0, 9.0
"""Angle at which it divides, between that with and without an intermediate artery (89 and 75, ibid.), and how
long both keep it (chosen). Led around the pulmonary trunk they end with 50 on average."""

APPENDAGE_MM, COVERED_MM, APPENDAGE_GAP_MM = (6.5, 11.0), (6.0, 24.0), (2.5, 8.0)
"""Radius of an atrial appendage at both ends, where along the artery its tip lies, and the gap between the
two (chosen after the real chests with labels)."""
SUNK_MM = (0.0, 8.0)
"""How much deeper than the muscle the right coronary and the circumflex artery lie in version 5: in the
atrioventricular groove, which the chambers as they are drawn hardly have (chosen)."""
SLEEVES_MM, DEEP_SLEEVES_MM = (
    {"LM": 3.2, "LAD": 4.0, "LCX": 4.8, "RCA": 5.2},
    {"LM": 4.2, "LAD": 5.0, "LCX": 6.5, "RCA": 7.0},
)
"""Radius of the fat around the arteries, before version 5 and in it (chosen)."""


def sample_left_main(rng: np.random.Generator) -> float:
    """Length of a patient's left main artery, mm."""
    return float(np.clip(rng.normal(LEFT_MAIN_MM, LEFT_MAIN_SD_MM), *LEFT_MAIN_RANGE_MM))


def sample_arteries(
    rng: np.random.Generator, heart: Heart, *, left_main: float | None = None, grooves: bool = False
) -> dict[str, Points]:
    """Centrelines of the arteries and their branches, about 1 mm between points, patient coordinates, mm.

    Keys are ``LM``, ``LAD``, ``LCX``, ``RCA`` and for branches the artery's name, a dot and their own:
    ``LAD.D1``, ``LAD.D2``, ``LCX.OM1``, ``LCX.OM2``, ``RCA.AM``, ``RCA.PDA``, ``RCA.PLV``.

    Args:
        rng: Source of randomness.
        heart: Whose arteries they are.
        left_main: Length of the left main artery, mm, as far as the way to the grooves is as long; None: it
            divides where the grooves part, 7 to 38 mm behind the aorta.
        grooves: The arteries lie at the bottom of their grooves, on the muscle (version 5 of the simulator),
            and not at a depth below the sac.
    """
    apex, right, inferior = heart.axes
    o = heart.origin

    def groove(degrees: Points, along: Points, lie: Points, sunk: float = 0.0) -> Points:
        """Points of a course, `lie` mm below the sac or that share of the way to it from the muscle."""
        angle = np.deg2rad(degrees)[:, None]
        direction = np.cos(angle) * right + np.sin(angle) * inferior
        start = o + along[:, None] * apex + 4.0 * right

        def point(s: Points, d: Points, x: float) -> Points:
            return heart.groove(s, d, x, sunk) if grooves else heart.surface(s[None], d[None], x)

        return np.vstack([point(s, d, float(x)) for s, d, x in zip(start, direction, lie, strict=True)])

    def lies(depth: tuple[float, float], share: tuple[float, float], n: int) -> Points:
        """How an artery lies, changing slowly along it: its depth, mm, or its share of the groove."""
        knots = rng.uniform(*(share if grooves else depth), 3)
        out: Points = np.interp(np.linspace(0, 2, n), np.arange(3), knots)
        return out

    swing = rng.normal(0, 7, 5)
    root = o + np.array([-8.0, -9.0, 17.0]) + rng.normal(0, 1.5, 3)
    n = 10
    turn = np.linspace(-54 + swing[0], 84 + swing[1], n)
    level = rng.normal(-3, 2.5) + np.linspace(rng.normal(3, 2), rng.normal(-4, 2), n)
    deep = np.concatenate(
        [lies((4, 13), (0, 0.3), 3), lies((1.5, 9), (0, 0.4), 4), lies((-1, 6), (0.3, 1.4), 3)]
    )
    sunk = rng.uniform(*SUNK_MM, 2) if grooves else np.zeros(2)
    rca = groove(turn, level, deep, sunk[0])
    bend = -97 + swing[2]
    reach = rng.uniform(0.78, 0.98) * (heart.ventricles[0][0][0] + heart.ventricles[0][1][0])
    lad_turn = bend + np.linspace(0, 6, 9) + rng.normal(0, 2, 9)
    lad_along = np.linspace(2, reach, 9)
    lad = groove(lad_turn, lad_along, lies((1.5, 6.5), (0, 0.7), 9))
    lcx_turn = np.linspace(bend - 16, -215 + 2 * swing[3], 7)
    lcx_along = np.linspace(-1, -5, 7) + rng.normal(0, 1.5)
    lcx = groove(lcx_turn, lcx_along, lies((1.5, 9), (0, 0.4), 7), sunk[1])
    fork = lad[0] * 0.6 + lcx[0] * 0.4 + 0.12 * (root - lad[0])
    left_ostium = root + rng.uniform(13, 17) * unit(fork - root)
    right_ostium = root + rng.uniform(13, 17) * unit(rca[0] - root)
    lad_start, lcx_start = lad[:0], lcx[:0]
    if left_main is not None and left_main < np.linalg.norm(fork - left_ostium):
        ahead = unit(fork - left_ostium)
        fork = left_ostium + left_main * ahead
        aside = lad[1] - lcx[1]
        aside = unit(aside - (aside @ ahead) * ahead) * np.tan(np.deg2rad(FORK_DEGREES / 2))
        lad_start, lcx_start = ((fork + PARTING_MM * unit(ahead + x))[None] for x in (aside, -aside))

    def branch(start: Points, degrees: tuple[float, float], along: tuple[float, float]) -> Points:
        """A branch that begins at `start` and runs over the ventricle."""
        far = groove(np.linspace(*degrees, 6)[1:], np.linspace(*along, 6)[1:], lies((0.5, 5), (0.2, 1), 5))
        return np.vstack([start, far])

    lines = {
        "LM": np.stack([left_ostium, 0.5 * (left_ostium + fork) + rng.normal(0, 1, 3), fork]),
        "LAD": np.vstack([fork, lad_start, lad[1:]]),
        "LCX": np.vstack([fork, lcx_start, lcx]),
        "RCA": np.vstack([right_ostium, rca]),
    }
    for name, i, length in (("LAD.D1", 2, 35.0), ("LAD.D2", 4, 28.0)):
        sideways = rng.uniform(22, 48)
        lines[name] = branch(
            lad[i], (lad_turn[i], lad_turn[i] - sideways), (lad_along[i], lad_along[i] + length)
        )
    for name, i in (("LCX.OM1", 2), ("LCX.OM2", 4)):
        sideways = rng.uniform(-5, 18)
        lines[name] = branch(
            lcx[i], (lcx_turn[i], lcx_turn[i] + sideways), (lcx_along[i], rng.uniform(25, 50))
        )
    i = int(rng.integers(4, 7))
    lines["RCA.AM"] = branch(rca[i], (turn[i], turn[i] - rng.uniform(0, 15)), (level[i], rng.uniform(20, 45)))
    lines["RCA.PDA"] = branch(rca[-1], (turn[-1], 92 + swing[4]), (level[-1], rng.uniform(30, 60)))
    lines["RCA.PLV"] = branch(
        rca[-1], (turn[-1], turn[-1] + rng.uniform(25, 50)), (level[-1], rng.uniform(0, 14))
    )
    out = {name: smooth_curve(lines[name], 1.0) for name in ARTERY_SHARE}
    out |= {name: beside_trunk(out[name], heart) for name in ("LM", "LAD", "LCX")}
    for name in lines.keys() - out.keys():
        trunk, knots = out[name.split(".")[0]], lines[name]
        knots[0] = trunk[np.linalg.norm(trunk - knots[0], axis=1).argmin()]  # led aside with its artery
        out[name] = smooth_curve(knots, 1.0)
    return {name: out[name] for name in lines}


def sample_appendages(rng: np.random.Generator, heart: Heart, arteries: dict[str, Points]) -> Heart:
    """The heart with its atrial appendages.

    The right one lies beside the beginning of the right coronary artery, the left one, seen from the
    pulmonary trunk, behind the beginning of the left anterior descending artery.

    Args:
        rng: Source of randomness.
        heart: Without them.
        arteries: Centrelines, see `sample_arteries`.
    """
    o, trunk = heart.origin, heart.great[1][0]

    def appendage(
        atrium: tuple[Points, Points], corner: tuple[float, float, float], over: str, outward: Points | None
    ) -> tuple[Points, Points, float, float]:
        thick = rng.uniform(*APPENDAGE_MM, 2)
        line = arteries[over]
        tip = line[min(int(rng.uniform(*COVERED_MM)), len(line) - 1)] - o
        away = (tip - trunk) * np.array([1.0, 1.0, 0.3]) if outward is None else outward
        end = tip + (thick[1] + rng.uniform(*APPENDAGE_GAP_MM)) * unit(away)
        return atrium[0] + atrium[1] * np.array(corner), end, float(thick[0]), float(thick[1])

    right, left = heart.atria
    return replace(
        heart,
        appendages=(
            appendage(right, (0.35, -0.55, 0.55), "RCA", np.array([-1.0, -0.3, 0.2])),
            appendage(left, (0.62, -0.45, 0.35), "LAD", None),
        ),
    )


def sample_sleeves(
    rng: np.random.Generator, arteries: dict[str, Points], fat: float, *, grooves: bool = False
) -> dict[str, Points]:
    """Radius (n,) of the fat around each point of the arteries, mm; 0 where there is none.

    Args:
        rng: Source of randomness.
        arteries: Centrelines.
        fat: The heart's, see `Heart.fat`, mm.
        grooves: As in `sample_arteries`: more fat, and less often none.
    """
    wide, bare = (DEEP_SLEEVES_MM, DEEP_BARE_SHARE) if grooves else (SLEEVES_MM, BARE_SHARE)
    out = {}
    for name, line in arteries.items():
        pieces = max(int(len(line) / PIECE_MM) + 2, 2)
        radius = wide[name.split(".")[0]] * (0.7 + 0.12 * fat) * rng.lognormal(-0.05, 0.35, pieces)
        radius[rng.random(pieces) < bare] = 0.0
        out[name] = np.interp(np.linspace(0, pieces - 1, len(line)), np.arange(pieces), radius)
    return out


def sample_plaques(
    rng: np.random.Generator, arteries: dict[str, Points], radius: float
) -> tuple[float, tuple[Deposit, ...]]:
    """The patient's intended Agatston score and plaques that make up about that much.

    Args:
        rng: Source of randomness.
        arteries: Centrelines, see `sample_arteries`.
        radius: Radius of the arteries, mm.

    Returns:
        (score aimed at, plaques); (0.0, ()) for a patient without calcium.
    """
    if rng.random() < NO_CALCIUM_SHARE:
        return 0.0, ()
    target = float(np.clip(MEDIAN_SCORE * np.exp(rng.normal(0, SPREAD)), 1, HIGHEST_SCORE))
    names = list(ARTERY_SHARE)
    preference = np.array([ARTERY_SHARE[n] for n in names]) * rng.gamma(2.0, 0.5, 4)
    preference /= preference.sum()
    out: list[Deposit] = []
    left, count = target, 0
    while left > 0.5 and count < 60:
        count += 1
        share = float(np.clip(left * rng.uniform(0.08, 0.7), min(left, 2.0), 1500))
        faint = share > 5 and rng.random() < 0.15  # spread out, just above the threshold
        hu = 230.0 if faint else 560 + 170 * np.log10(1 + share)
        hu = float(np.clip(hu * rng.lognormal(0, 0.3), 170, 1600))
        weight = 4.0 if hu > 520 else 3.0 if hu > 400 else 2.0 if hu > 280 else 1.0
        volume = share * 3.0 / weight * VISIBLE + RIM_MM3
        artery = str(rng.choice(names, p=preference))
        branches = [n for n in arteries if n.startswith(artery + ".")]
        line = arteries[str(rng.choice(branches)) if branches and rng.random() < BRANCH_SHARE else artery]
        form = str(rng.choice(list(FORMS), p=list(FORMS.values())))
        out += _plaque(rng, line, artery, volume, hu, radius, "long" if faint else form)
        left -= share
    return target, tuple(out)


def _plaque(
    rng: np.random.Generator, line: Points, artery: str, volume: float, hu: float, radius: float, form: str
) -> list[Deposit]:
    """A plaque of `volume` mm³ in one artery, of one of the `FORMS`; two pieces for rails."""
    thickest = radius + 0.5 if form == "filling" else 0.8 * radius + 0.6
    if form == "compact":
        thick = float(np.clip(0.55 * volume ** (1 / 3) * rng.uniform(0.55, 1.0), 0.45, thickest))
    else:
        wanted = min(float(rng.lognormal(np.log(16), 0.7)), LONGEST_MM, 0.8 * len(line))
        rails = 2 if form == "rails" else 1
        thick = float(np.clip(np.sqrt(volume / rails / (np.pi * wanted)), 0.4, thickest))
        volume /= rails
    length = float(
        np.clip(volume / (np.pi * thick**2) - 4 / 3 * thick, 0.2, min(LONGEST_MM, len(line) - 1.0))
    )
    # more in the near half of the left arteries; the right one calcifies along its whole length
    place = rng.beta(1.2, 1.5) if artery == "RCA" else rng.random() if artery == "LM" else rng.beta(1.2, 2.2)
    at = float(place * (len(line) - 1))
    n = max(int(np.ceil(length / 1.2)) + 1, 2)
    index = np.clip(at + np.linspace(-length / 2, length / 2, n), 0, len(line) - 1)
    centre = np.stack([np.interp(index, np.arange(len(line)), line[:, i]) for i in range(3)], axis=1)
    u, v = across(line[min(int(at) + 2, len(line) - 1)] - line[max(int(at) - 2, 0)])
    angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.normal(0, 0.02) * length, n)[:, None]
    out = []
    for half in (0.0, np.pi) if form == "rails" else (0.0,):
        aside = 0.25 * radius if form == "filling" else max(radius - 0.5 * thick, 0.3)
        offset = aside * (np.cos(angle + half) * u + np.sin(angle + half) * v)
        uneven = np.clip(
            1
            + 0.3 * np.interp(np.arange(n), np.arange(0, n + 4, 4), rng.normal(size=len(range(0, n + 4, 4)))),
            0.5,
            1.5,
        )
        out.append(
            Deposit(
                kind=artery,
                points=centre + offset + rng.normal(0, 0.12 * thick, (n, 3)),
                radii=np.maximum(thick * uneven, 0.3),
                hu=hu,
            )
        )
    return out
