"""D-FINE N, S and M: the network, its loss and its decoding, with this package's contract.

Source: Peng et al., "D-FINE", arXiv:2410.13842; transformers 5 (Apache-2.0), whose layers and terms of the loss are used as they
are. `dfine_library` makes transformers' network and reads its files.

Where we differ from transformers, besides what `detr` says:
* The loss pairs each decoder layer's scores and boxes with the layer's own distributions, as the paper does. transformers 5.24
  pairs them with the next layer's, and trains neither the scores of the last layer but one nor the distributions of the last.
As in transformers, each layer has matches of its own; the paper unites the layers' matches for the box terms (section 4.2).

Shapes: B images, Q queries, K classes, L decoder layers, N bins of a distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foldfuse.detections import Annotations
from foldfuse.models.detection.detr import QUERIES, Detr, DetrOutput, Layers, layer_terms, refuse_imagenet
from foldfuse.models.detection.dfine_library import SIZES, Size, new_library_model
from foldfuse.models.detection.normalizers import BatchTotal, own_total
from foldfuse.models.pretrained.published import coco_licence
from foldfuse.models.registry import entry

_TERMS = {"loss_vfl": "class", "loss_bbox": "box", "loss_giou": "giou", "loss_fgl": "fine", "loss_ddf": "distill"}


class DFine(Detr):
    """D-FINE of one size.

    Args:
        size: a row of the table.
        num_classes: K.

    Raises:
        InputError: transformers is not installed.
    """

    family = "D-FINE"

    def __init__(self, size: Size, num_classes: int) -> None:
        body = new_library_model(size, num_classes).model
        for name in ("up", "reg_scale"):  # constants that transformers keeps as parameters
            value = getattr(body.decoder, name).detach()
            delattr(body.decoder, name)
            body.decoder.register_buffer(name, value)
        super().__init__(body, size.strides, num_classes)
        self.size = size

    def loss(
        self, raw: DetrOutput, targets: Sequence[Annotations], *, batch_total: BatchTotal = own_total
    ) -> dict[str, Tensor]:
        """Terms to be summed, each a scalar, over all layers: class, box, giou, fine, distill (the paper's section 4).

        Args:
            raw: the output of `forward` in training mode, for B images.
            targets: B Annotations in input pixels, without crowd regions.
            batch_total: turns counts over these images into counts over the whole batch, of which they may be a share.
        """
        terms, num_images = layer_terms(
            raw,
            targets,
            names=_TERMS,
            criterion_of=self._criterion,
            add_to_layers=partial(self._add_distributions, raw),
            batch_total=batch_total,
        )
        terms["distill"] = terms["distill"] * (len(targets) / num_images)  # a mean over these images
        return terms

    def _add_distributions(self, raw: DetrOutput, layers: Layers) -> None:
        """Adds the distributions of each decoder layer, and those of the last one, which teach the others."""
        assert raw.corners is not None
        assert raw.references is not None
        kind = layers[0]["logits"].dtype
        corners, references = raw.corners.to(kind), raw.references.to(kind)
        for i, layer in enumerate(layers[1:-1]):
            layer["pred_corners"], layer["ref_points"] = corners[:, i], references[:, i]
            layer["teacher_corners"], layer["teacher_logits"] = corners[:, -1], layers[-2]["logits"]

    def _criterion(self, device: torch.device) -> Any:
        from transformers.loss.loss_d_fine import DFineLoss

        return DFineLoss(self.body.config).to(device)

    def library_model(self, num_classes: int) -> Any:
        """transformers' whole network of this size, with random weights."""
        return new_library_model(self.size, num_classes)


def make_dfine(name: str, num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True) -> DFine:
    """A new D-FINE of one of `SIZES`; `anchor_scale` has no effect.

    Raises:
        InputError: `pretrained` is asked for, since only weights of the whole detector are published; or transformers is missing.
    """
    if pretrained:
        raise refuse_imagenet(name)
    return DFine(SIZES[name], num_classes)


FAMILY: Mapping[str, Callable[..., DFine]] = {
    name: entry(
        partial(make_dfine, name),
        f"D-FINE-{name[-1].upper()}: {row.backbone}, {len(row.strides)} levels, {QUERIES} queries, "
        f"{row.decoder_layers} decoder layers. foldfuse[transformers]; {coco_licence(name)}",
    )
    for name, row in SIZES.items()
}
