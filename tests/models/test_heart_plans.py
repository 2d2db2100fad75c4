"""The part of nnU-Net's plans that is read here, against nnU-Net's own reader."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from deepcac2.errors import WeightsUnsupported
from deepcac2.models.heart.plans import class_count, configuration_of, intensities, thick_axis

OLD = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 32,
    "unet_max_num_features": 320,
    "n_conv_per_stage_encoder": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
    "num_pool_per_axis": [2, 2, 2],
    "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "conv_kernel_sizes": [[3, 3, 3]] * 3,
    "patch_size": [32, 32, 32],
}


def test_a_configuration_holds_what_it_inherits() -> None:
    plans: dict[str, Any] = {
        "configurations": {
            "a": {"spacing": [1, 1, 1], "patch_size": [8, 8, 8], "architecture": {"arch_kwargs": {}}},
            "b": {"inherits_from": "a", "spacing": [2, 2, 2], "batch_size": 2},
            "c": {"inherits_from": "b", "patch_size": [4, 4, 4]},
            "old": OLD,
            "d": {"inherits_from": "e"},
            "e": {"inherits_from": "d"},
        }
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one is old
        for name in ("a", "b", "c", "old"):
            own = PlansManager(plans).get_configuration(name).configuration
            assert configuration_of(plans, name) == own
    assert plans["configurations"]["old"] == OLD
    with pytest.raises(WeightsUnsupported, match=r"d and e of plans\.json are each other's"):
        configuration_of(plans, "d")


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"background": 0, "heart": 1}, None),
        ({"background": 0, "heart": 1, "aorta": 2, "ignore": 3}, None),
        ({"background": 0, "heart": [1], "aorta": [2], "both": 2}, None),
        ({"background": 0, "whole": [1, 2], "inner": 2}, [1, 2]),
    ],
)
def test_classes_are_counted(labels: dict[str, Any], order: list[int] | None) -> None:
    plans = {"label_manager": "LabelManager"}
    dataset = {"labels": labels, "regions_class_order": order}
    assert (
        class_count(plans, dataset) == PlansManager(plans).get_label_manager(dataset).num_segmentation_heads
    )


@pytest.mark.parametrize("channel", ["channel", "modality"])
def test_channels_were_called_modalities(channel: str) -> None:
    plans = {
        f"foreground_intensity_properties_{'per' if channel == 'channel' else 'by'}_{channel}": {
            "0": {"std": 1}
        }
    }
    assert intensities(plans) == PlansManager(plans).foreground_intensity_properties_per_channel["0"]


def test_thick_slices_are_where_nnunet_sees_them() -> None:
    spacings = [
        (5, 1, 1),
        (1, 5, 1),
        (1.1, 1, 5),
        (1, 1, 1),
        (5, 5, 1),
        (3, 1, 1),
        (3.01, 1, 1),
        (0.7, 0.7, 2.2),
    ]
    for old, new in itertools.product(spacings, repeat=2):
        for separate, threshold in itertools.product((None, False, True), (3, 1.5)):
            does, axis = determine_do_sep_z_and_axis(separate, old, new, threshold)
            assert thick_axis(separate, old, new, threshold) == (axis if does else None)
