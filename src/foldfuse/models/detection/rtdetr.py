"""RT-DETRv2 with a ResNet-18: the network and its loss, with this package's contract.

Source: Lv et al., "RT-DETRv2", arXiv:2407.17140, and "RT-DETR", arXiv:2304.08069; transformers 5 (Apache-2.0), whose layers and
terms of the loss are used as they are; widths and depths are those of the published r18vd checkpoint.

Where we differ from transformers, besides what `detr` says: batch norms that no file sets begin with a scale of 1; transformers
5.24 draws their scales from a normal distribution around 0 with a deviation of 0.01. As in transformers, a layer's box has no
gradient through the box of the layer before it, where the authors train through one earlier box.

Shapes: B images, Q queries, K classes, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foldfuse.detections import Annotations
from foldfuse.models.detection.detr import (
    PRIOR,
    QUERIES,
    Detr,
    DetrOutput,
    Layers,
    layer_terms,
    refuse_imagenet,
    require_transformers,
)
from foldfuse.models.detection.normalizers import BatchTotal, own_total
from foldfuse.models.pretrained.published import coco_licence
from foldfuse.models.registry import entry

STRIDES = (8, 16, 32)
_TERMS = {"loss_vfl": "class", "loss_bbox": "box", "loss_giou": "giou"}


@dataclass(frozen=True)
class Size:
    """One size of RT-DETRv2.

    Attributes:
        backbone: what the summary calls the ResNet.
        stem: output channels of the stem.
        stages, depths: output channels and number of blocks of the four stages, each of two 3x3 convolutions.
        width: channels of encoder and decoder.
        ffn: channels of their MLPs.
        decoder_layers: L.
        expansion: of the encoder's blocks.
    """

    backbone: str
    stem: int
    stages: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    width: int
    ffn: int
    decoder_layers: int
    expansion: float


SIZES: Mapping[str, Size] = {
    "rtdetr_r18": Size("ResNet-18", 64, (64, 128, 256, 512), (2, 2, 2, 2), 256, 1024, 3, 0.5),
}


class RTDetr(Detr):
    """RT-DETRv2 of one size.

    Args:
        size: a row of the table.
        num_classes: K.

    Raises:
        InputError: transformers is not installed.
    """

    family = "RT-DETRv2"

    def __init__(self, size: Size, num_classes: int) -> None:
        super().__init__(new_library_model(size, num_classes).model, STRIDES, num_classes)
        self.size = size

    def loss(
        self, raw: DetrOutput, targets: Sequence[Annotations], *, batch_total: BatchTotal = own_total
    ) -> dict[str, Tensor]:
        """Terms to be summed, each a scalar, over all layers: class (varifocal), box (L1) and giou.

        Args:
            raw: the output of `forward` in training mode, for B images.
            targets: B Annotations in input pixels, without crowd regions.
            batch_total: turns counts over these images into counts over the whole batch, of which they may be a share.
        """
        return layer_terms(
            raw,
            targets,
            names=_TERMS,
            criterion_of=self._criterion,
            add_to_layers=_add_nothing,
            batch_total=batch_total,
        )[0]

    def _criterion(self, device: torch.device) -> Any:
        from transformers.loss.loss_rt_detr import RTDetrLoss

        return RTDetrLoss(self.body.config).to(device)

    def library_model(self, num_classes: int) -> Any:
        """transformers' whole network of this size, with random weights."""
        return new_library_model(self.size, num_classes)


def _add_nothing(_: Layers) -> None:
    """The loss takes nothing but logits and boxes of a layer."""


def new_library_model(size: Size, num_classes: int) -> Any:
    """transformers' RT-DETRv2 of this size with random weights.

    Raises:
        InputError: transformers is not installed.
    """
    require_transformers("RT-DETRv2")
    from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

    backbone = RTDetrResNetConfig(
        embedding_size=size.stem,
        hidden_sizes=list(size.stages),
        depths=list(size.depths),
        layer_type="basic",
        out_indices=[2, 3, 4],
    )
    config = RTDetrV2Config(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        num_labels=num_classes,
        initializer_bias_prior_prob=PRIOR,
        num_denoising=0,
        num_queries=QUERIES,
        encoder_in_channels=list(size.stages[1:]),
        encoder_hidden_dim=size.width,
        encoder_ffn_dim=size.ffn,
        d_model=size.width,
        decoder_in_channels=[size.width] * len(STRIDES),
        decoder_ffn_dim=size.ffn,
        decoder_layers=size.decoder_layers,
        hidden_expansion=size.expansion,
        tie_word_embeddings=False,  # each decoder layer has a class and a box head of its own
    )
    model = RTDetrV2ForObjectDetection(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return model


def make_rtdetr(name: str, num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True) -> RTDetr:
    """A new RT-DETRv2 of one of `SIZES`; `anchor_scale` has no effect.

    Raises:
        InputError: `pretrained` is asked for, since only weights of the whole detector are published; or transformers is missing.
    """
    if pretrained:
        raise refuse_imagenet(name)
    return RTDetr(SIZES[name], num_classes)


FAMILY: Mapping[str, Callable[..., RTDetr]] = {
    name: entry(
        partial(make_rtdetr, name),
        f"RT-DETRv2: {row.backbone}, {len(STRIDES)} levels, {QUERIES} queries, {row.decoder_layers} decoder layers. "
        f"foldfuse[transformers]; {coco_licence(name)}",
    )
    for name, row in SIZES.items()
}
