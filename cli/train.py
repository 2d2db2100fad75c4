"""`deepcac2 train`: train the heart or the calcium network by a recipe."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "train",
        help="train the heart or the calcium network",
        description="Train a network by a recipe (config/train/*.yml). Everything lands in the work folder: "
        "data, checkpoints, log, and at the end the set of weights, which 'run' takes by --weights. "
        "The same command again goes on where it was stopped.",
    )
    parser.add_argument("role", choices=["heart", "calcium"])
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="recipe (default: the bundled weights' own)"
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="work folder")
    parser.add_argument(
        "--extra",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="heart only: more cases with masks (docs/training.md); repeatable",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train and print where the weights are."""
    import torch

    from ..pipeline.chain import choose_device
    from ..training.recipe import bundled_recipe, load_recipe

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    config = args.config or bundled_recipe(args.role)
    if args.role == "calcium":
        from ..training.calcium import CalciumRecipe, train_calcium

        folder = train_calcium(load_recipe(config, CalciumRecipe), args.work, device=device)
    else:
        from ..training.heart import HeartRecipe, train_heart

        recipe = load_recipe(config, HeartRecipe)
        folder = train_heart(recipe, args.work, extra=tuple(args.extra), device=device)
    sys.stdout.write(f"weights: {folder}\n")
    return 0
