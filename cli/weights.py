"""`deepcac2 weights`: list, verify, fetch and convert sets of network weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from .screen import say, say_json

if TYPE_CHECKING:
    from ..weights import ManifestEntry, WeightSet


_WIDTH = 80
"""Letters of a line of the list: what every terminal has."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its actions to the parser."""
    parser = subparsers.add_parser(
        "weights",
        help="list, verify, fetch and convert network weights",
        description="Sets of network weights: what there is, whether the files are unaltered, how to get "
        "published ones, and how to convert nnU-Net folders and DeepCAC2's file. Weights are safetensors "
        "with known sha256; pickles are never loaded.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="show the known sets", description="Show the known sets.")
    listing.add_argument("--json", action="store_true", help="print JSON, with citation and training data")
    listing.set_defaults(run=_list)

    verify = actions.add_parser(
        "verify",
        help="compare files with their sha256",
        description="Compare every file of a set with its sha256; without a name, of all sets that are here.",
    )
    verify.add_argument("weights", metavar="NAME_OR_PATH", nargs="*", help="set in the manifest, or a path")
    verify.set_defaults(run=_verify)

    fetch = actions.add_parser(
        "fetch",
        help="download a published set and convert it",
        description="Download a published set of the manifest and convert it, so that its name can be given "
        "to --weights. The archive's sha256 must be known: from the manifest, or given with --sha256.",
    )
    fetch.add_argument("name", metavar="NAME", help="set in the manifest: platipy-heart, deepcac2")
    fetch.add_argument("--accept-licence", action="store_true", help="accept the set's licence")
    fetch.add_argument("--sha256", metavar="HEX", help="sha256 that the archive must have")
    fetch.add_argument(
        "--trust-first", action="store_true", help="take the archive as it comes and record its sha256"
    )
    fetch.add_argument("--from", dest="source", type=Path, metavar="FILE", help="file downloaded before")
    fetch.add_argument(
        "--to", type=Path, metavar="FOLDER", help="where to put the set (default: found by name)"
    )
    fetch.add_argument("--url", metavar="URL", help="mirror to download from")
    fetch.set_defaults(run=_fetch)

    for version, checkpoint in (("v1", "model_final_checkpoint"), ("v2", "checkpoint_final.pth")):
        convert = actions.add_parser(
            f"convert-nnunet-{version}",
            help=f"convert a folder of nnU-Net {version} results",
            description=f"Convert a heart network of nnU-Net {version} into a folder for --weights. "
            "Checkpoints are pickles: tensors and plain data are read, anything else is refused.",
        )
        convert.add_argument("source", metavar="SRC", type=Path, help="folder with the plans and fold_*")
        convert.add_argument("destination", metavar="DST", type=Path, help="new folder")
        convert.add_argument("--name", metavar="NAME", help="name of the set in reports")
        convert.add_argument(
            "--checkpoint", default=checkpoint, metavar="NAME", help="checkpoint (default: %(default)s)"
        )
        convert.add_argument(
            "--heart-label",
            type=int,
            action="append",
            metavar="N",
            help="class that is heart; may be repeated",
        )
        convert.add_argument("--licence", default="as the source", metavar="TEXT", help="licence to record")
        if version == "v1":
            convert.add_argument(
                "--configuration", choices=("3d_lowres", "3d_fullres"), help="which one, where SRC holds both"
            )
            convert.add_argument(
                "--folds",
                choices=("all", "each"),
                help="where SRC holds both: the network in 'all', trained on everything, or those of fold_*",
            )
        convert.set_defaults(run=_convert, version=version)

    own = actions.add_parser(
        "convert-deepcac2",
        help="convert the published calcium network of DeepCAC2",
        description="Convert the file that the authors of DeepCAC2 publish (vivid-haze-6_model.pt, a "
        "state_dict) into a folder for --weights. It is a pickle: tensors are read, all else is refused.",
    )
    own.add_argument("source", metavar="FILE", type=Path, help="the published file")
    own.add_argument("destination", metavar="DST", type=Path, help="new folder")
    own.add_argument("--name", metavar="NAME", help="name of the set in reports (default: deepcac2)")
    own.set_defaults(run=_convert_own)


def _state(entry: ManifestEntry) -> str:
    from ..errors import WeightsError
    from ..weights import resolve

    try:
        resolve(entry.name, entry.role)
    except WeightsError as error:
        return "not here" if error.code == "weights-missing" else error.code
    return "bundled" if entry.folder is not None else "fetched"


def _list(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ..weights import load_manifest

    entries = list(load_manifest().values())
    if args.json:
        rows: list[dict[str, Any]] = [{**asdict(e), "state": _state(e)} for e in entries]
        say_json(rows)
        return 0
    heads = [(e.name, e.role, _state(e), e.licence) for e in entries]
    widths = [max(map(len, column)) for column in zip(*heads, strict=True)]
    for e, head in zip(entries, heads, strict=True):
        say("  ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True)).rstrip())
        measured = "; ".join(f"{k}: {_words(v)}" for k, v in e.measured.items()) or "not by this project"
        say(*wrap(f"measured: {measured}", _WIDTH, initial_indent="    ", subsequent_indent="      "))
    return 0


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _verify(args: argparse.Namespace) -> int:
    from ..weights import load_manifest, resolve, verify

    manifest = load_manifest()
    names: list[str] = args.weights or [n for n, e in manifest.items() if _state(e) != "not here"]
    for name in names:
        found = resolve(name)
        verify(found)
        say(f"{found.name}: {len(found.files)} files unaltered, {found.hash}")
    if not names:
        say("no set is here yet; see: deepcac2 weights list")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from ..weights import fetch, load_manifest

    entry = load_manifest().get(args.name)
    if entry is not None and args.accept_licence:
        say(f"{entry.name}: {entry.licence}. {entry.citation}")
    found = fetch(
        args.name,
        accept_licence=args.accept_licence,
        sha256=args.sha256,
        trust_first=args.trust_first,
        source=args.source,
        url=args.url,
        destination=args.to,
    )
    origin = found.metadata.get("fetched", {})
    if origin:
        say(f"archive sha256 {origin['sha256']} (known from: {origin['sha256_known_from']})")
    return _done(found)


def _convert(args: argparse.Namespace) -> int:
    from ..weights import convert_nnunet_v1, convert_nnunet_v2

    given = {
        "name": args.name,
        "checkpoint": args.checkpoint,
        "labels": args.heart_label,
        "licence": args.licence,
    }
    if args.version == "v1":
        given |= {"configuration": args.configuration, "folds": args.folds}
    convert = convert_nnunet_v1 if args.version == "v1" else convert_nnunet_v2
    return _done(convert(args.source, args.destination, **given))


def _convert_own(args: argparse.Namespace) -> int:
    from ..weights import convert_deepcac2

    return _done(convert_deepcac2(args.source, args.destination, name=args.name))


def _done(found: WeightSet) -> int:
    say(f"{found.name}: {found.path} ({found.hash})")
    return 0
