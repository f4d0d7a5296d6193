"""What tests of the DETRs share: annotated objects, a hub's cache with published weights, and the start from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from foldfuse.detections import Annotations
from foldfuse.models.pretrained.coco import COCO_CLASSES


def annotated(boxes: list[list[float]], labels: list[int]) -> Annotations:
    """Objects at (n, 4) xyxy boxes."""
    array = np.array(boxes, np.float64).reshape(-1, 4)
    return Annotations(array, np.array(labels, np.int64), np.zeros(len(boxes), bool), np.ones(len(boxes)))


TARGETS = [annotated([[10, 20, 90, 60], [40, 8, 70, 90]], [2, 0]), annotated([], []), annotated([[0, 0, 64, 64]], [1])]


def copy_heads(model: torch.nn.Module, num_layers: int) -> None:
    """Gives the decoder of transformers' network the heads of the whole network, which has them twice."""
    for i in range(num_layers):
        model.model.decoder.class_embed[i].load_state_dict(model.class_embed[i].state_dict())
        model.model.decoder.bbox_embed[i].load_state_dict(model.bbox_embed[i].state_dict())


def put_in_hub_cache(model: torch.nn.Module, folder: Path, name: str) -> Path:
    """The model as the hub's cache keeps the repository "owner/name"; returns the folder of its files."""
    at = folder / f"models--{name.replace('/', '--')}"
    (at / "refs").mkdir(parents=True)
    (at / "refs" / "main").write_text("abc123")
    model.save_pretrained(at / "snapshots" / "abc123")
    return at / "snapshots" / "abc123"


def check_start(ours: torch.nn.Module, theirs: torch.nn.Module, before: Mapping[str, torch.Tensor]) -> None:
    """Checks that a network of three classes, the last two of which are COCO's cell phone and dog, began from theirs."""
    expected, rows = theirs.model.state_dict(), [COCO_CLASSES.index(name) for name in ("cell phone", "dog")]
    heads = {part for layer in ours.class_layers() for part in layer.tensors}
    for key, t in ours.state_dict().items():
        name = (
            key.replace("backbone.", "backbone.model.", 1) if key.startswith("backbone.") else key.removeprefix("body.")
        )
        if key in heads:
            assert torch.equal(t[1:], expected[name][rows]), key
            assert torch.equal(t[0], before[key][0]), key
        else:
            assert torch.equal(t, expected[name]), key
