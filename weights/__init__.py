"""Sets of network weights: where they come from, what they are, and whether they are what they claim.

Everything loaded is safetensors with a known sha256; pickles are never opened here except by the
converters (`weights.nnunet_v1`, `weights.nnunet_v2`, `weights.deepcac2`), which read tensors and plain data
only.
"""

from .deepcac2 import convert_deepcac2
from .description import Domain, WeightSet, describe, read_description, write_description
from .manifest import ManifestEntry, bundle, load_manifest, user_folder
from .nnunet_v1 import convert_nnunet_v1
from .nnunet_v2 import convert_nnunet_v2
from .published import fetch
from .store import (
    as_described,
    load_json,
    load_tensors,
    numbers,
    require_window,
    resolve,
    stated_window,
    verify,
)

__all__ = [
    "Domain",
    "ManifestEntry",
    "WeightSet",
    "as_described",
    "bundle",
    "convert_deepcac2",
    "convert_nnunet_v1",
    "convert_nnunet_v2",
    "describe",
    "fetch",
    "load_json",
    "load_manifest",
    "load_tensors",
    "numbers",
    "read_description",
    "require_window",
    "resolve",
    "stated_window",
    "user_folder",
    "verify",
    "write_description",
]
