"""A crop rescorer in files names its network; files from before it did are those of EfficientNet-Lite0."""

from __future__ import annotations

import json

import numpy as np
import pytest

from foldfuse.errors import InputError
from foldfuse.inference.crop_encoder import DEFAULT_NETWORK
from foldfuse.inference.crop_features import imagenet_encoder
from foldfuse.inference.rescorer_file import SETTINGS, read_rescorer, write_rescorer
from submission_samples import crop_rescorer

CLASSES = ("red", "blue")


@pytest.fixture
def folder(tmp_path):
    """The folder of a stored rescorer."""
    write_rescorer(tmp_path, crop_rescorer(), CLASSES, ["hash"])
    return tmp_path


def change(folder, **values):
    """Changes rescorer.json; a value of None takes the entry out."""
    settings = json.loads((folder / SETTINGS).read_text()) | values
    (folder / SETTINGS).write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def features(encoder):
    """What it makes of one image."""
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    return encoder.encode(images)


def test_the_rescorer_that_is_read_has_the_network_of_the_one_that_was_written(folder):
    rescorer, learnt = read_rescorer(folder, CLASSES, device="cpu")
    assert rescorer.encoder.network == crop_rescorer().encoder.network == DEFAULT_NETWORK
    assert learnt == {"hash"}
    np.testing.assert_array_equal(features(rescorer.encoder), features(crop_rescorer().encoder))


def test_a_file_of_an_earlier_version_has_the_network_of_that_version(folder):
    change(folder, network=None, format=1)
    rescorer, _ = read_rescorer(folder, CLASSES, device="cpu")
    assert rescorer.encoder.network == "tf_efficientnet_lite0"
    earlier = imagenet_encoder("tf_efficientnet_lite0", device="cpu")
    np.testing.assert_array_equal(features(rescorer.encoder), features(earlier))
    assert not np.allclose(features(rescorer.encoder), features(crop_rescorer().encoder), atol=0.1)


def test_a_network_that_the_package_does_not_have_is_refused(folder):
    change(folder, network="resnet50")
    with pytest.raises(InputError, match="holds a value out of its range"):
        read_rescorer(folder, CLASSES, device="cpu")
