"""The head of a trained network carried over to other classes: rows by name, everything else as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from foldfuse.errors import InputError
from foldfuse.models import make_classifier, make_detector
from foldfuse.models.detection.yolov5_head import BOX_ROWS
from foldfuse.models.pretrained.class_layer import class_layers
from foldfuse.models.pretrained.class_rows import load_by_class_name

KNOWN, OTHER = ("cat", "dog", "bird"), ("bird", "fox", "cat")
DETECTORS = (
    "lite0_fpn",
    "efficientdet_lite0",
    "yolov5n",
    "compose:timm:tf_efficientnet_lite0+fpn+efficientdet",
    "compose:timm:tf_efficientnet_lite0+pan+yolov5",
    "swin_tiny_fpn",
    "vit_tiny_pyramid",
)
CLASSIFIERS = (
    "vit_tiny",
    "swin_tiny",
    "timm:tf_efficientnet_lite0",
    "timm:resnet18",
    "timm:deit_tiny_distilled_patch16_224",
)


def trained(model: nn.Module, seed: int) -> nn.Module:
    """The model with random weights in every layer, as if it had been trained, ready to predict."""
    generator = torch.Generator().manual_seed(seed)
    for name, t in model.state_dict().items():
        if t.is_floating_point() and "anchors" not in name:
            t.copy_(torch.rand(t.shape, generator=generator) * 0.1 + ("var" in name))
    return model.eval()


def logits(model: Any, images: torch.Tensor) -> torch.Tensor:
    """(B, A, ...) of a detector, or (B, K) of a classifier."""
    with torch.no_grad():
        raw = model(images)
    return raw if isinstance(raw, torch.Tensor) else raw.logits


def new(name: str, classes: tuple[str, ...], seed: int) -> Any:
    if name in CLASSIFIERS:
        return trained(make_classifier(name, len(classes), pretrained=False), seed)
    return trained(make_detector(name, len(classes), pretrained=False), seed)


@pytest.mark.parametrize("name", [*DETECTORS, *CLASSIFIERS])
def test_the_same_classes_in_another_order_predict_the_same(name):
    order = ("bird", "cat", "dog")
    one, other = new(name, KNOWN, 1), new(name, order, 2)
    said = load_by_class_name(other, one.state_dict(), known=KNOWN, classes=order, source="run")
    assert said == "run: all weights were loaded; the classes of the head were matched by name (3 of 3)."
    images = torch.rand(1, 3, *(224, 224) if "224" in name or "_tiny" in name else (64, 64))
    first = BOX_ROWS if "yolov5" in name else 0
    found, expected = logits(other, images), logits(one, images)
    torch.testing.assert_close(found[..., :first], expected[..., :first])
    torch.testing.assert_close(found[..., first:], expected[..., [first + KNOWN.index(c) for c in order]])


@pytest.mark.parametrize("name", [*DETECTORS, *CLASSIFIERS])
def test_an_unknown_class_begins_anew_and_the_rest_is_carried_over(name):
    one, other = new(name, KNOWN, 1), new(name, (*OTHER, "hen"), 2)
    before = {key: t.clone() for key, t in other.state_dict().items()}
    said = load_by_class_name(other, one.state_dict(), known=KNOWN, classes=(*OTHER, "hen"), source="run")
    assert said == (
        "run: all weights were loaded; the classes of the head were matched by name (2 of 4), random initial values for fox, "
        "hen, without dog of the trained run."
    )
    layers, after, theirs = class_layers(other), other.state_dict(), one.state_dict()
    parts = {f"{layer.name}.{part}": layer for layer in layers for part in ("weight", "bias")}
    assert parts
    for key, t in after.items():
        if key not in parts:
            assert torch.equal(t, theirs[key]), key
            continue
        layer = parts[key]
        now, was, of = (x.view(layer.groups, -1, *x.shape[1:]) for x in (t, before[key], theirs[key]))
        assert torch.equal(now[:, : layer.first], of[:, : layer.first]), key
        for label, source in ((0, 2), (2, 0)):
            assert torch.equal(now[:, layer.first + label], of[:, layer.first + source]), key
        for label in (1, 3):
            assert torch.equal(now[:, layer.first + label], was[:, layer.first + label]), key


def test_the_class_rows_of_a_yolov5_with_one_class_were_never_trained():
    one, other = new("yolov5n", ("cat",), 1), new("yolov5n", ("dog", "cat"), 2)
    before = other.head.predict[0].weight.clone().view(3, 7, -1)
    load_by_class_name(other, one.state_dict(), known=("cat",), classes=("dog", "cat"), source="run")
    after = other.head.predict[0].weight.view(3, 7, -1)
    assert torch.equal(after[:, :5], one.head.predict[0].weight.view(3, 6, -1)[:, :5])
    assert torch.equal(after[:, 5:], before[:, 5:])


def test_names_are_compared_by_their_letters():
    one, other = new("lite0_fpn", ("M\u00fcll",), 1), new("lite0_fpn", ("Mu\u0308ll",), 2)
    assert "all weights were loaded." in load_by_class_name(
        other, one.state_dict(), known=("M\u00fcll",), classes=("Mu\u0308ll",), source="run"
    )


@pytest.mark.parametrize(
    ("known", "classes", "message"),
    [
        (KNOWN, ("cat", "dog", "cat"), "the data: has two classes called 'cat'"),
        (("a", "a", "b"), KNOWN, "run: has two classes called 'a'"),
        ((), KNOWN, "run: names no classes"),
        (("a", "b"), KNOWN, r"class_head.weight has the shape 3 x 64"),
    ],
)
def test_what_cannot_be_matched_is_refused(known, classes, message):
    one, other = new("lite0_fpn", KNOWN, 1), new("lite0_fpn", ("x", "y", "z", "w")[: len(classes) + 1], 2)
    before = {key: t.clone() for key, t in other.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_by_class_name(other, one.state_dict(), known=known, classes=classes, source="run")
    assert all(torch.equal(t, before[key]) for key, t in other.state_dict().items())


def test_another_network_is_named_by_its_tensor():
    one, other = new("lite0_fpn", KNOWN, 1), new("lite0_fpn", KNOWN, 2)
    state = one.state_dict() | {"backbone.ls1.gamma": torch.ones(3)}
    with pytest.raises(InputError, match=r"has a tensor that the network does not have, backbone\.ls1\.gamma"):
        load_by_class_name(other, state, known=KNOWN, classes=KNOWN, source="run")
