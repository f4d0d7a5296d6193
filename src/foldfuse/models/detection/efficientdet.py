"""EfficientDet and its family (D0-D7, Lite0-Lite4) at any image size that is a multiple of the stride.

Source: Tan, Pang & Le, "EfficientDet", arXiv:1911.09070, table 1 (D0-D7) and section 3.3. The paper leaves some facts open (the
Lite variants, anchor scales, DropPath of the backbone, plain sums in D6 and D7 "for training stability"); these are facts of
the authors' released models, as effdet 0.4.1 (Apache-2.0) lists them.
Checked against effdet 0.4.1: the same tensor names, and the same outputs with the same weights.
Where we differ: the losses, see `dense_prediction`.

Shapes: B images, K classes, A anchors of all levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from foldfuse.errors import InputError
from foldfuse.models.backbones.transformer_layers import require_multiple
from foldfuse.models.cpu.fast_layers import ReLU6, SiLU, use_fast_cpu_layers
from foldfuse.models.cpu.fold_batch_norm import Unregistered, fold_batch_norms
from foldfuse.models.detection.bifpn import BiFPN, init_convs
from foldfuse.models.detection.dense_prediction import DenseOutput
from foldfuse.models.detection.heads import AnchorPrediction, HeadNet, init_head_nets, sizes_of
from foldfuse.models.pretrained.effdet import load_effdet_coco
from foldfuse.models.pretrained.imagenet import load_backbone
from foldfuse.models.pretrained.published import coco_licence
from foldfuse.models.registry import entry


class EfficientDet(AnchorPrediction, nn.Module):
    """Backbone -> BiFPN -> class and box heads.

    Args:
        num_classes: K.
        backbone: timm's name.
        width: channels of the BiFPN and of the heads.
        repeats: BiFPN layers.
        head_repeats: number of convolutions of a head before the last one, which predicts.
        act: makes the activation of the BiFPN and of the heads.
        weighted: fast normalized fusion instead of plain sums.
        anchor_scale: side of a level's smallest anchor, in strides.
        mean, std: mean and standard deviation of the RGB channels; `forward` normalises the images.
        drop_path: rate of the backbone's last block; it grows linearly up to there.
        image_size: pixels, the side of the square that the model was published with; any multiple of `stride` works.
    """

    mean: Tensor
    std: Tensor
    stride = 32  # image height and width must be multiples of this
    published_anchor_scale: float | None = None  # of COCO's checkpoints

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "tf_efficientnet_lite0",
        width: int = 64,
        repeats: int = 3,
        head_repeats: int = 3,
        act: Callable[[], nn.Module] = ReLU6,
        weighted: bool = False,
        anchor_scale: float = 3.0,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        drop_path: float = 0.0,
        image_size: int = 320,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.image_size = image_size
        self.anchor_scale = anchor_scale
        self.backbone = timm.create_model(backbone, features_only=True, out_indices=(2, 3, 4), drop_path_rate=drop_path)
        self.fpn = BiFPN(
            self.backbone.feature_info.channels(), width=width, repeats=repeats, act=act, weighted=weighted
        )
        self.class_net = HeadNet(width, repeats=head_repeats, outputs=num_classes, num_levels=5, act=act)
        self.box_net = HeadNet(width, repeats=head_repeats, outputs=4, num_levels=5, act=act)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        init_convs(self.fpn.convs())
        init_head_nets(self.class_net, self.box_net)
        use_fast_cpu_layers(self.backbone)
        self._level_stages = [int(f["module"].split(".")[1]) for f in self.backbone.feature_info.get_dicts()]
        self._frozen: Unregistered | None = None
        self._num_frozen = 0

    def forward(self, images: Tensor) -> DenseOutput:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of `stride` -> DenseOutput.

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        require_multiple(images, self.stride)
        levels = self.fpn(self._features((images - self.mean) / self.std))
        image = (images.shape[-2], images.shape[-1])
        return DenseOutput(self.class_net(levels), self.box_net(levels), sizes_of(levels), image)

    def _features(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the backbone's levels P3, P4, P5."""
        if self._frozen is None:
            return list(self.backbone(x))
        levels = []
        with torch.no_grad():
            x = self._frozen(x)
        for i, stage in enumerate(self.backbone.blocks):
            if i >= self._num_frozen:
                x = stage(x)
            if i in self._level_stages and i >= self._num_frozen - 1:
                levels.append(x)
        return levels

    def freeze(self, stages: int) -> None:
        """Training mode, except that the backbone's stem and first `stages` stages (0..3) are frozen; 0 trains everything.

        These stages have the most pixels and the most general features. They run as one folded copy, without gradients.
        """
        self.train()
        self._frozen, self._num_frozen = None, stages
        self.backbone.requires_grad_(not stages)
        if not stages:
            return
        assert stages <= self._level_stages[0] + 1, "the levels after the first must come from stages that are trained"
        stem, blocks = [self.backbone.conv_stem, self.backbone.bn1], list(self.backbone.blocks)
        for part in [*stem, *blocks[:stages]]:
            part.eval()
        for stage in blocks[stages:]:
            stage.requires_grad_(True)
        self._frozen = Unregistered(fold_batch_norms(nn.Sequential(*stem, *blocks[:stages])))

    def load_coco(self, path: Path, classes: Sequence[str]) -> str:
        """Load effdet's COCO checkpoint of this model, and return a sentence for the log; see `load_effdet_coco`.

        Raises:
            InputError: the file is of another model, or the anchors are not those of the checkpoint.
        """
        if self.published_anchor_scale not in (None, self.anchor_scale):
            raise InputError(
                f"anchor_scale is {self.anchor_scale:g}, and the COCO weights of this detector were trained with "
                f"{self.published_anchor_scale:g}. Take --set anchor_scale={self.published_anchor_scale:g}."
            )
        return load_effdet_coco(path, self, classes)


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE_MEAN, LITE_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Scaling:
    """The scaling of one model of the family.

    Attributes:
        backbone: timm's name.
        image_size: pixels, the side of the square that the model was published with.
        width: channels of the BiFPN and of the heads.
        repeats: BiFPN layers.
        head_repeats: number of convolutions of a head before the last one, which predicts.
        fusion: "weighted" (fast normalised fusion) or "sum".
        anchor_scale: side of a level's smallest anchor, in strides.
        drop_path: rate of the backbone's last block; it grows linearly up to there.
    """

    backbone: str
    image_size: int
    width: int
    repeats: int
    head_repeats: int
    fusion: str
    anchor_scale: float
    drop_path: float

    @property
    def lite(self) -> bool:
        """Whether the model is made for quantised inference: ReLU6 for SiLU, no squeeze-excite, inputs in -1..1."""
        return "lite" in self.backbone


SCALINGS: Mapping[str, Scaling] = {
    #                                 backbone                 size width repeats head  fusion  anchors drop_path
    "efficientdet_d0": Scaling("tf_efficientnet_b0", 512, 64, 3, 3, "weighted", 4.0, 0.2),
    "efficientdet_d1": Scaling("tf_efficientnet_b1", 640, 88, 4, 3, "weighted", 4.0, 0.2),
    "efficientdet_d2": Scaling("tf_efficientnet_b2", 768, 112, 5, 3, "weighted", 4.0, 0.2),
    "efficientdet_d3": Scaling("tf_efficientnet_b3", 896, 160, 6, 4, "weighted", 4.0, 0.2),
    "efficientdet_d4": Scaling("tf_efficientnet_b4", 1024, 224, 7, 4, "weighted", 4.0, 0.2),
    "efficientdet_d5": Scaling("tf_efficientnet_b5", 1280, 288, 7, 4, "weighted", 4.0, 0.2),
    "efficientdet_d6": Scaling("tf_efficientnet_b6", 1280, 384, 8, 5, "sum", 4.0, 0.2),
    "efficientdet_d7": Scaling("tf_efficientnet_b6", 1536, 384, 8, 5, "sum", 5.0, 0.2),
    "efficientdet_lite0": Scaling("tf_efficientnet_lite0", 320, 64, 3, 3, "sum", 3.0, 0.0),
    "efficientdet_lite1": Scaling("tf_efficientnet_lite1", 384, 88, 4, 3, "sum", 3.0, 0.2),
    "efficientdet_lite2": Scaling("tf_efficientnet_lite2", 448, 112, 5, 3, "sum", 3.0, 0.2),
    "efficientdet_lite3": Scaling("tf_efficientnet_lite3", 512, 160, 6, 4, "sum", 4.0, 0.2),
    "efficientdet_lite4": Scaling("tf_efficientnet_lite4", 640, 224, 7, 4, "sum", 4.0, 0.2),
}


def make_efficientdet(
    scaling: Scaling, num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True
) -> EfficientDet:
    """A new EfficientDet of this scaling.

    Args:
        scaling: a row of the table.
        num_classes: the number of classes in the data.
        anchor_scale: None for the table's.
        pretrained: begin with ImageNet weights in the backbone.

    Raises:
        InputError: the weights are not available.
    """
    model = EfficientDet(
        num_classes,
        backbone=scaling.backbone,
        width=scaling.width,
        repeats=scaling.repeats,
        head_repeats=scaling.head_repeats,
        act=ReLU6 if scaling.lite else SiLU,
        weighted=scaling.fusion == "weighted",
        anchor_scale=scaling.anchor_scale if anchor_scale is None else anchor_scale,
        mean=LITE_MEAN if scaling.lite else IMAGENET_MEAN,
        std=LITE_STD if scaling.lite else IMAGENET_STD,
        drop_path=scaling.drop_path,
        image_size=scaling.image_size,
    )
    model.published_anchor_scale = scaling.anchor_scale
    if pretrained:
        load_backbone(model.backbone, scaling.backbone)
    return model


FAMILY: Mapping[str, Callable[..., EfficientDet]] = {
    name: entry(
        partial(make_efficientdet, row),
        f"EfficientNet-{row.backbone.removeprefix('tf_efficientnet_').capitalize()}, {row.repeats} BiFPN layers of {row.width} "
        f"channels ({'plain sums' if row.fusion == 'sum' else 'weighted fusion'}), heads of {row.head_repeats}. "
        + coco_licence(name),
    )
    for name, row in SCALINGS.items()
}
