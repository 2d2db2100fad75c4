"""`deepcac2 train`: train the heart network, the calcium network, or both by a recipe."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .screen import log_to_screen, say

if TYPE_CHECKING:
    import torch


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "train",
        help="train the heart or the calcium network",
        description="Train a network by a recipe (config/train/*.yml). Everything lands in the work folder: "
        "data, checkpoints, logs, an evaluation, and at the end the set of weights, which 'run' takes by "
        "--weights. The same command again goes on where it was stopped.",
    )
    parser.add_argument(
        "role",
        choices=["heart", "calcium", "bundled", "screening", "direct"],
        help="screening: the exclusion's three networks; direct: direct scoring; bundled: the heart "
        "(--work DIR/heart, with the scans of --data), then the calcium (DIR/calcium, and DIR/refine, which "
        "begins with it), as the bundled weights were made",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="recipe (default: config/train/bundled.yml, screening.yml or direct.yml)",
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="work folder")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="annotated scans: DICOM with SEG, nnU-Net's layout, or NRRD (docs/training.md); repeatable",
    )
    parser.add_argument(
        "--backgrounds",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="calcium: DICOM chest CT without coronary calcium, into whose hearts the recipe puts simulated "
        "calcium; repeatable",
    )
    parser.add_argument(
        "--heart-weights",
        default="bundled",
        metavar="NAME|PATH",
        help="calcium only: finds the hearts that are not annotated (default: %(default)s)",
    )
    parser.add_argument(
        "--start",
        default="",
        metavar="NAME|PATH",
        help="calcium only: weights to begin with, such as bundled (default: random ones)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.set_defaults(run=run, goes_on=True)


def run(args: argparse.Namespace) -> int:
    """Train and print where the weights are."""
    import torch

    from ..pipeline.chain import choose_device
    from ..training.calcium import train_calcium
    from ..training.calcium_recipe import CalciumRecipe
    from ..training.heart import HeartRecipe, train_heart
    from ..training.recipe import BUNDLED, load_recipe

    log_to_screen(logging.INFO, "%(asctime)s %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    own = BUNDLED.with_name(f"{args.role}.yml")
    config = args.config or (own if args.role in ("screening", "direct") else BUNDLED)
    work: Path = args.work
    if args.role == "heart":
        recipe = load_recipe(config, HeartRecipe, role="heart")
        folders = [train_heart(recipe, work, extra=tuple(args.data), device=device)]
    elif args.role == "calcium":
        folders = [
            train_calcium(
                load_recipe(config, CalciumRecipe, role="calcium"),
                work,
                data=args.data,
                backgrounds=args.backgrounds,
                heart_weights=args.heart_weights,
                device=device,
                start=args.start,
            )
        ]
    elif args.role in ("screening", "direct"):
        folders = [_train_other(args, config, device)]
    else:
        # All parts are read before the first training, so that a mistake in the last shows at once.
        recipe = load_recipe(config, HeartRecipe, role="heart")
        parts = {p: load_recipe(config, CalciumRecipe, role=p) for p in ("calcium", "refine")}
        heart = train_heart(recipe, work / "heart", extra=tuple(args.data), device=device)
        calcium = ""
        for name, part in parts.items():
            calcium = str(
                train_calcium(
                    part,
                    work / name,
                    backgrounds=args.backgrounds,
                    heart_weights=str(heart),
                    device=device,
                    start=calcium,
                )
            )
        folders = [heart, Path(calcium)]
    for folder in folders:
        say(f"weights: {folder}")
    return 0


def _train_other(args: argparse.Namespace, config: Path, device: torch.device) -> Path:
    """The exclusion's networks or those of direct scoring."""
    from ..training.direct import DirectRecipe, train_direct
    from ..training.recipe import load_recipe
    from ..training.screening import ScreeningRecipe, train_screening

    means: dict[str, Any] = {
        "device": device,
        "data": args.data,
        "backgrounds": args.backgrounds,
        "heart_weights": args.heart_weights,
    }
    if args.role == "screening":
        recipe = load_recipe(config, ScreeningRecipe, role="screening")
        return train_screening(recipe, args.work, **means)
    return train_direct(load_recipe(config, DirectRecipe, role="direct"), args.work, **means)
