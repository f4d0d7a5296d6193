"""Our EfficientDet with effdet's weights gives effdet's outputs: backbone, BiFPN, both heads, and the anchors.

effdet 0.4.1 (Ross Wightman, Apache-2.0) is the implementation that reproduces the paper's published scores.
"""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from foldfuse.errors import InputError
from foldfuse.models import anchors as A
from foldfuse.models.efficientdet import EfficientDet
from foldfuse.models.weights import from_effdet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # effdet calls torch.jit.script, which torch has deprecated
    effdet = pytest.importorskip("effdet")
    from effdet.anchors import Anchors

# Our settings of the models that effdet calls so. D0 adds what Lite0 lacks: fast normalised fusion and SiLU.
OURS: dict[str, dict[str, Any]] = {
    "tf_efficientdet_lite0": {},
    "tf_efficientdet_d0": {"backbone": "tf_efficientnet_b0", "act": nn.SiLU, "weighted": True},
}


def theirs_and_ours(name: str, image_size: int, num_classes: int = 7) -> tuple[nn.Module, EfficientDet, Any]:
    """effdet's model with random weights and batch-norm statistics, ours with the same, and effdet's settings."""
    torch.manual_seed(0)
    config = effdet.get_efficientdet_config(name)
    config.image_size, config.num_classes = (image_size, image_size), num_classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = effdet.EfficientDet(config, pretrained_backbone=False).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    for key, p in theirs.named_parameters():
        if key.endswith("edge_weights"):  # some below 0: the fusion must cut them
            nn.init.uniform_(p, -0.5, 1.5)
    ours = EfficientDet(num_classes, anchor_scale=config.anchor_scale, **OURS[name]).eval()
    ours.load_state_dict(from_effdet(theirs.state_dict()))  # strict: no tensor is left over on either side
    return theirs, ours, config


@pytest.mark.parametrize(
    ("name", "image_size"),
    [("tf_efficientdet_lite0", 320), ("tf_efficientdet_lite0", 512), ("tf_efficientdet_d0", 256)],
)
@torch.no_grad()
def test_same_weights_same_outputs(name, image_size):
    theirs, ours, _ = theirs_and_ours(name, image_size)
    images = torch.rand(2, 3, image_size, image_size)
    logits, codes = theirs((images - ours.mean) / ours.std)
    raw = ours(images)
    for want, got, outputs in ((logits, raw.logits, 7), (codes, raw.codes, 4)):
        flat = torch.cat([level.permute(0, 2, 3, 1).reshape(2, -1, outputs) for level in want], 1)
        assert flat.std() > 0.01, "outputs that hardly differ would agree whatever the wiring"
        torch.testing.assert_close(got, flat, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_exchange_of_two_nodes_would_be_noticed():
    # A check of the test above: the two nodes have tensors of the same shapes.
    theirs, ours, _ = theirs_and_ours("tf_efficientdet_lite0", 128)
    state = from_effdet(theirs.state_dict())
    swapped = {key.replace("layers.1.down.0.", "layers.1.down.9."): t for key, t in state.items()}
    swapped = {key.replace("layers.1.down.1.", "layers.1.down.0."): t for key, t in swapped.items()}
    swapped = {key.replace("layers.1.down.9.", "layers.1.down.1."): t for key, t in swapped.items()}
    images = torch.rand(1, 3, 128, 128)
    before = ours(images).logits
    ours.load_state_dict(swapped)
    assert (ours(images).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize("image_size", [512, 640])
def test_same_anchors_where_every_level_halves(image_size):
    _, _, config = theirs_and_ours("tf_efficientdet_lite0", image_size)
    want = Anchors.from_config(config).boxes[:, [1, 0, 3, 2]]  # theirs are yxyx
    image = (image_size, image_size)
    got = A.as_xyxy(A.anchors(A.level_sizes(image), image, config.anchor_scale))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-3)


def test_same_boxes_from_the_same_codes():
    from effdet.anchors import decode_box_outputs

    torch.manual_seed(0)
    codes, anchor = torch.randn(50, 4), torch.rand(50, 4) * 60 + torch.tensor([100.0, 50, 1, 1])
    want = decode_box_outputs(codes, A.as_xyxy(anchor)[:, [1, 0, 3, 2]], output_xyxy=True)
    torch.testing.assert_close(A.decode(codes, anchor), want, rtol=1e-5, atol=1e-3)


def test_a_state_dict_of_another_model_is_refused():
    with pytest.raises(InputError, match=r"layer1\.weight"):
        from_effdet({"layer1.weight": torch.zeros(1)})
