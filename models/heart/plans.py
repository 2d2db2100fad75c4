"""nnU-Net's ``plans.json`` and ``dataset.json``, as far as running a network needs them.

nnunetv2's own reader of plans loads all that plans can name, every reader of image files among it: seconds,
in every process that computes. It is asked only about what is rare: plans from before they described the
network, classes that are regions, and label managers of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import WeightsUnsupported


def configuration_of(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration with all that it inherits; its network is described under ``architecture``.

    Args:
        plans: Content of ``plans.json``.
        name: A key of its ``configurations``.

    Raises:
        WeightsUnsupported: Configurations inherit from each other in a circle.
    """
    found: dict[str, Any] = {}
    parent: str | None = name
    seen: list[str] = []
    while parent is not None:
        if parent in seen:
            raise WeightsUnsupported(
                f"the configurations {' and '.join(seen)} of plans.json are each other's"
            )
        seen.append(parent)
        found = {**plans["configurations"][parent], **found}
        parent = plans["configurations"][parent].get("inherits_from")
    if "architecture" not in found:
        from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

        found = ConfigurationManager(found).configuration
    return found


def class_count(plans: dict[str, Any], dataset: dict[str, Any]) -> int:
    """Logits per voxel: one for each class of ``dataset.json``, the background among them.

    Args:
        plans, dataset: Contents of ``plans.json`` and ``dataset.json``.
    """
    labels: dict[str, Any] = dataset["labels"]
    regions = any(isinstance(values, list) and len(values) > 1 for values in labels.values())
    if regions or plans.get("label_manager", "LabelManager") != "LabelManager":
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return int(PlansManager(plans).get_label_manager(dataset).num_segmentation_heads)
    ones = [v[0] if isinstance(v, list) else v for name, v in labels.items() if name != "ignore"]
    return len({int(v) for v in ones})


def intensities(plans: dict[str, Any]) -> dict[str, Any]:
    """``mean``, ``std``, ``percentile_00_5`` and ``percentile_99_5`` of the only channel, HU.

    Args:
        plans: Content of ``plans.json``; older ones call channels modalities.
    """
    new, old = "foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"
    found: dict[str, Any] = plans[new if new in plans or old not in plans else old]["0"]
    return found


def thick_axis(
    separate: bool | None, old: Sequence[float], new: Sequence[float], threshold: float
) -> int | None:
    """The axis along which nnU-Net resamples on its own, as slices are thick there; None: there is none.

    Args:
        separate: nnU-Net's ``force_separate_z``; None: where one spacing is more than `threshold` times
            another.
        old, new: Spacings before and after, mm.
        threshold: nnU-Net's ``separate_z_anisotropy_threshold``.
    """
    if separate is None:
        judged = next((s for s in (old, new) if max(s) / min(s) > threshold), None)
    else:
        judged = old if separate else None
    if judged is None:
        return None
    widest = [axis for axis, s in enumerate(judged) if max(judged) / s == 1]
    return widest[0] if len(widest) == 1 else None
