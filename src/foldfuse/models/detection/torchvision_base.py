"""What the detectors of torchvision share here: normalisation, frozen stages, anchors, targets in torchvision's form.

Source: torchvision 0.24 to 0.29 (BSD-3-Clause). A detector takes torchvision's own backbone and heads, which its public
functions make, so it has torchvision's tensor names, and published checkpoints load by name. GeneralizedRCNNTransform is left
out: images are letterboxed before the network (`data.images.Letterbox`) and normalised in `forward`.
Checked against torchvision 0.29: the same detections from the same weights (`tests/parity/test_torchvision_detectors.py`).

Shapes: B images, A anchors of all levels, N objects of an image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foldfuse.detections import Annotations
from foldfuse.models.backbones.transformer_layers import require_multiple
from foldfuse.models.cpu.fold_batch_norm import Unregistered, fold_batch_norms
from foldfuse.models.pretrained.class_layer import ClassLayer
from foldfuse.models.pretrained.torchvision import load_torchvision

Sizes = tuple[tuple[int, int], ...]  # (height, width) of each level

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Stages:
    """Where the parts of a backbone end: the parts are layers that run one after the other.

    Attributes:
        ends: number of parts up to the features of stride 2, 4 and 8, which `freeze(1)`, `freeze(2)` and `freeze(3)` freeze.
        levels: indices of the parts whose outputs are levels.
    """

    ends: tuple[int, int, int]
    levels: tuple[int, ...]


RESNET = Stages(ends=(3, 5, 6), levels=(5, 6, 7))  # conv1, bn1, relu, maxpool, layer1, layer2, layer3, layer4
MOBILENET_V3 = Stages(ends=(2, 4, 7), levels=(13, 16))  # the stem, 15 blocks, the last convolution
# The stem, 12 blocks, the first layer of the 13th, the rest, four more blocks: SSD's levels begin within a block.
MOBILENET_V3_SSD = Stages(ends=(2, 4, 7), levels=(13, 14, 15, 16, 17, 18))


class TorchvisionDetector(nn.Module):
    """Base of torchvision's detectors: (B, 3, H, W) -> levels, with frozen stages.

    With frozen stages all batch norms of a backbone with a feature pyramid keep their weights and statistics, as torchvision
    trains FCOS and Faster R-CNN from pre-trained weights (FrozenBatchNorm2d): a batch of few images has poor statistics.

    Args:
        net: torchvision's model, whose modules become this model's.
        num_classes: K, without background.
        image_size: pixels, the side of the square that the detector was published with.
        stages: the parts of the backbone.
        mean, std: mean and standard deviation of the RGB channels; `forward` normalises the images.
        fixed_norms: whether the backbone's batch norms are not trained where stages are frozen.
    """

    mean: Tensor
    std: Tensor
    stride = 32  # image height and width must be multiples of this

    def __init__(
        self,
        net: Any,
        num_classes: int,
        *,
        image_size: int,
        stages: Stages,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        fixed_norms: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.image_size = image_size
        self.backbone = net.backbone
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._stages = stages
        self._fixed_norms = fixed_norms
        self._frozen: Unregistered | None = None
        self._num_frozen = 0

    def freeze(self, stages: int) -> None:
        """Training mode, except that the backbone up to the features of stride 2^stages (0..3) is frozen; 0 trains everything.

        The frozen parts run as one folded copy, without gradients.
        """
        self.train().requires_grad_(True)
        self._frozen, self._num_frozen = None, 0
        if not stages:
            return
        if self._fixed_norms:
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval().requires_grad_(False)
        self._num_frozen = self._stages.ends[stages - 1]
        parts = self._parts()[: self._num_frozen]
        for part in parts:
            part.eval().requires_grad_(False)
        self._frozen = Unregistered(fold_batch_norms(nn.Sequential(*parts)))

    def class_layers(self) -> list[ClassLayer]:
        """The layers whose rows belong to classes."""
        raise NotImplementedError

    def load_coco(self, path: Path, classes: Sequence[str]) -> str:
        """Load torchvision's COCO checkpoint of this detector, and return a sentence for the log; see `load_torchvision`."""
        return load_torchvision(path, self, classes)

    def _parts(self) -> list[nn.Module]:
        """The layers of the backbone in the order in which they run, without its feature pyramid."""
        return list(self.backbone.body.values())

    def _levels(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [0, 1] -> the outputs of the backbone's levels, finest first.

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        require_multiple(images, self.stride)
        x, levels = (images - self.mean) / self.std, []
        if self._frozen is not None:
            with torch.no_grad():
                x = self._frozen(x)
        for i, part in enumerate(self._parts()):
            if i >= self._num_frozen:
                x = part(x)
            if i in self._stages.levels and i >= self._num_frozen - 1:
                levels.append(x)
        return levels

    def _pyramid(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(B, 3, H, W) in [0, 1] -> {torchvision's name: (B, C, H_i, W_i)} of the feature pyramid's levels, finest first."""
        levels = self._levels(images)
        named: OrderedDict[str, Tensor] = self.backbone.fpn(OrderedDict((str(i), x) for i, x in enumerate(levels)))
        return named


def grid_anchors(generator: Any, sizes: Sizes, image: tuple[int, int], device: torch.device) -> Tensor:
    """(A, 4) float32 xyxy of the anchors that torchvision's AnchorGenerator has for levels of these sizes, in input pixels.

    The positions are computed here in floats, so that an export has them for any size; the cells' anchors are torchvision's.
    """
    if generator.cell_anchors[0].device != device:
        generator.set_cell_anchors(torch.float32, device)
    levels = []
    for size, cell in zip(sizes, generator.cell_anchors, strict=True):
        y, x = (
            torch.arange(n, device=device).float() * torch.full((), whole // n, dtype=torch.float32, device=device)
            for whole, n in zip(image, size, strict=True)
        )
        corners = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)  # (H_i, W_i, 2)
        levels.append((corners.repeat(1, 1, 2)[:, :, None] + cell).reshape(-1, 4))
    return torch.cat(levels)


def torchvision_targets(
    targets: Sequence[Annotations], device: torch.device, *, first_label: int = 0
) -> list[dict[str, Tensor]]:
    """Annotations in the form of torchvision's losses: float32 boxes and int64 labels, on `device`.

    Args:
        targets: Annotations in input pixels, without crowd regions.
        device: the device of the network's output.
        first_label: 1 for a detector whose class 0 is the background.
    """
    return [
        {
            "boxes": torch.from_numpy(target.boxes).to(device, torch.float32),
            "labels": torch.from_numpy(target.labels).to(device) + first_label,
        }
        for target in targets
    ]
