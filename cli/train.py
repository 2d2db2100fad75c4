"""`deepcac2 train`: train the networks of a method by a recipe."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .screen import log_to_screen, say

if TYPE_CHECKING:
    from ..training.recipe import Inputs

BUNDLED = "bundled"
"""Trains what the bundled weights of the default workflow hold, one after the other."""


class Networks:
    """What can be trained, asked of the steps only when it is needed: ``deepcac2 --help`` loads none."""

    def __iter__(self) -> Iterator[str]:
        from ..training.recipe import trainable

        return iter([*trainable(), BUNDLED])

    def __contains__(self, name: object) -> bool:
        return name in list(self)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "train",
        help="train the heart or the calcium network",
        description="Train a network by a recipe (config/train/*.yml). Everything lands in the work folder: "
        "data, checkpoints, logs, an evaluation, and at the end the set of weights, which 'run' takes by "
        "--weights. The same command again goes on where it was stopped.",
    )
    role = parser.add_argument(
        "role",
        help="screening: the exclusion's three networks; direct: direct scoring; bundled: the heart "
        "(--work DIR/heart, with the scans of --data), then the calcium (DIR/calcium, and DIR/refine, which "
        "begins with it), as the bundled weights were made",
    )
    role.choices = Networks()
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="recipe (default: that of this name in config/train/, else bundled.yml)",
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="work folder")
    annotated = "annotated scans: DICOM with SEG, nnU-Net's layout, or NRRD (docs/training.md); repeatable"
    without = "calcium: DICOM chest CT without coronary calcium, into whose hearts the recipe puts simulated "
    for name, text in (("--data", annotated), ("--backgrounds", f"{without}calcium; repeatable")):
        parser.add_argument(name, type=Path, action="append", default=[], metavar="DIR", help=text)
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
        help="heart, calcium and direct only: weights to begin with, such as bundled (default: random ones)",
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="calcium only: make the weights of the checkpoint that did best on what is held out, not of the "
        "last; also after a finished training, in the same work folder",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads (default: as many as cores are free for it)"
    )
    parser.set_defaults(run=run, goes_on=True)


def run(args: argparse.Namespace) -> int:
    """Train and print where the weights are."""
    import torch

    from ..pipeline.chain import choose_device
    from ..system.cores import threads_each
    from ..training.recipe import RECIPES, Inputs, prepared

    log_to_screen(logging.INFO, "%(asctime)s %(message)s")
    torch.set_num_threads(args.threads or threads_each(1))
    inputs = Inputs(
        device=choose_device(args.device),
        data=args.data,
        backgrounds=args.backgrounds,
        heart_weights=args.heart_weights,
        start=args.start,
        best=args.best,
    )
    own = RECIPES / f"{args.role}.yml"
    config = args.config or (own if own.exists() else RECIPES / f"{BUNDLED}.yml")
    if args.role == BUNDLED:
        folders = _bundled(config, args.work, inputs)
    else:
        folders = [prepared(config, args.role)(args.work, inputs)]
    for folder in folders:
        say(f"weights: {folder}")
    return 0


def _bundled(config: Path, work: Path, inputs: Inputs) -> list[Path]:
    """The heart with the annotated scans; the calcium with that heart; the calcium again, from there on."""
    from ..training.recipe import REFINE, prepared

    # All parts are read before the first training, so that a mistake in the last shows at once.
    train_heart, train_calcium = prepared(config, "heart"), prepared(config, "calcium")
    refine = prepared(config, "calcium", part=REFINE)
    heart = train_heart(work / "heart", inputs)
    inputs = replace(inputs, data=(), heart_weights=str(heart), start="")
    calcium = train_calcium(work / "calcium", inputs)
    return [heart, refine(work / REFINE, replace(inputs, start=str(calcium)))]
