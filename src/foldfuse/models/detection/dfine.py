"""D-FINE N, S and M: the network, its loss and its decoding, with this package's contract.

Source: Peng et al., "D-FINE", arXiv:2410.13842; transformers 5 (Apache-2.0), whose layers and terms of the loss are used as they
are. `dfine_library` makes transformers' network and reads its files.

Where we differ from transformers:
* Only the backbone and the encoder run in half precision. The decoder and its anchors compute in single precision: bfloat16 has
  three digits, so an anchor at 640 px would be off by up to 2 px.
* A small input has fewer cells than there are queries; then every cell is a query.
* The loss pairs each decoder layer's scores and boxes with the layer's own distributions, as the paper does. transformers 5.24
  pairs them with the next layer's, and trains neither the scores of the last layer but one nor the distributions of the last.
* There are no denoising queries, which `forward` cannot make without the annotations.
As in transformers, each layer has matches of its own; the paper unites the layers' matches for the box terms (section 4.2).

Shapes: B images, Q queries, K classes, L decoder layers, N bins of a distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foldfuse.detections import Annotations, Detections
from foldfuse.errors import InputError
from foldfuse.models.backbones.transformer_layers import require_multiple
from foldfuse.models.detection.dfine_library import QUERIES, SIZES, Size, library_state, new_library_model
from foldfuse.models.detection.hungarian import CostWeights, Pairs, match_layers
from foldfuse.models.detection.normalizers import BatchTotal, at_least_float32, own_total
from foldfuse.models.detection.postprocess import select_detections
from foldfuse.models.pretrained.checkpoint import read_safetensors
from foldfuse.models.pretrained.class_layer import ClassLayer
from foldfuse.models.pretrained.coco import load_coco_state
from foldfuse.models.pretrained.published import coco_licence
from foldfuse.models.registry import entry

STRIDE = 32
_TERMS = {"loss_vfl": "class", "loss_bbox": "box", "loss_giou": "giou", "loss_fgl": "fine", "loss_ddf": "distill"}


class DFineOutput(NamedTuple):
    """What `forward` gives; boxes are cxcywh, as shares of the input. The last six are None in eval mode.

    Attributes:
        logits: (B, Q, K) of the last decoder layer.
        boxes: (B, Q, 4) of the last decoder layer.
        size: height and width of the input in pixels.
        layer_logits: (B, 1 + L, Q, K) of the first box head and of each decoder layer.
        layer_boxes: (B, 1 + L, Q, 4), likewise.
        corners: (B, L, Q, 4 N): logits of the distributions of each side.
        references: (B, L, Q, 4): the boxes that the distributions refine.
        encoder_logits: (B, Q, K) of the encoder's best cells.
        encoder_boxes: (B, Q, 4), likewise.
    """

    logits: Tensor
    boxes: Tensor
    size: tuple[int, int]
    layer_logits: Tensor | None = None
    layer_boxes: Tensor | None = None
    corners: Tensor | None = None
    references: Tensor | None = None
    encoder_logits: Tensor | None = None
    encoder_boxes: Tensor | None = None


class DFine(nn.Module):
    """D-FINE of one size.

    Args:
        size: a row of the table.
        num_classes: K.

    Raises:
        InputError: transformers is not installed.
    """

    is_exportable = False  # transformers checks shapes by an operation that ONNX does not have

    def __init__(self, size: Size, num_classes: int) -> None:
        super().__init__()
        body = new_library_model(size, num_classes).model
        self.backbone: Any = body.backbone.model
        body.backbone = nn.Identity()
        for name in ("up", "reg_scale"):  # constants that transformers keeps as parameters
            value = getattr(body.decoder, name).detach()
            delattr(body.decoder, name)
            body.decoder.register_buffer(name, value)
        body.decoder.register_forward_pre_hook(_shapes_on_cpu, with_kwargs=True)
        self.body: Any = body
        self.size = size
        self.stride, self.image_size, self.num_classes = STRIDE, 640, num_classes

    def forward(self, images: Tensor) -> DFineOutput:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of `stride` -> the decoder's output.

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        from transformers.modeling_outputs import BaseModelOutput

        require_multiple(images, self.stride)
        height, width = images.shape[-2:]
        levels = self.backbone(images).feature_maps
        projected = [project(level) for project, level in zip(self.body.encoder_input_proj, levels, strict=True)]
        encoded = self.body.encoder(projected).last_hidden_state
        queries = min(QUERIES, sum((height // s) * (width // s) for s in self.size.strides))
        if self.body.config.num_queries != queries:
            self.body.config.num_queries = queries
        kind = images.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            encoded = [at_least_float32(level) for level in encoded]
            out = self.body(None, inputs_embeds=encoded[0], encoder_outputs=BaseModelOutput(last_hidden_state=encoded))
        logits, boxes = out.intermediate_logits, out.intermediate_reference_points
        last = DFineOutput(logits[:, -1], boxes[:, -1], (height, width))
        if not self.training:
            return last
        corners, references = out.intermediate_predicted_corners, out.initial_reference_points
        return last._replace(
            layer_logits=logits,
            layer_boxes=boxes,
            corners=corners,
            references=references,
            encoder_logits=out.enc_topk_logits,
            encoder_boxes=out.enc_topk_bboxes,
        )

    def freeze(self, stages: int) -> None:
        """Training mode, except that the backbone up to stride 2^stages (0..3) is frozen; 0 trains everything."""
        self.train().requires_grad_(True)
        parts = [self.backbone.embedder, *self.backbone.encoder.stages]  # strides 4, 4, 8, 16, 32
        for part in parts[:stages]:
            part.eval().requires_grad_(False)

    def loss(
        self, raw: DFineOutput, targets: Sequence[Annotations], *, batch_total: BatchTotal = own_total
    ) -> dict[str, Tensor]:
        """Terms to be summed, each a scalar, over all layers: class, box, giou, fine, distill (the paper's section 4).

        Args:
            raw: the output of `forward` in training mode, for B images.
            targets: B Annotations in input pixels, without crowd regions.
            batch_total: turns counts over these images into counts over the whole batch, of which they may be a share.
        """
        assert raw.layer_logits is not None, "the loss needs an output of training mode"
        assert raw.layer_boxes is not None
        assert raw.encoder_logits is not None
        assert raw.encoder_boxes is not None
        logits = torch.cat([raw.layer_logits, raw.encoder_logits[:, None]], 1).transpose(0, 1)
        boxes = torch.cat([raw.layer_boxes, raw.encoder_boxes[:, None]], 1).transpose(0, 1).clamp(0, 1)
        logits, boxes = at_least_float32(logits), at_least_float32(boxes)
        wanted = _library_targets(targets, raw.size, boxes)
        labels, objects = [each["class_labels"] for each in wanted], [each["boxes"] for each in wanted]
        matches = match_layers(logits.detach(), boxes.detach(), labels, objects, CostWeights())
        counts = torch.tensor([sum(map(len, labels)), len(targets)], dtype=logits.dtype)
        num_objects, num_images = batch_total(counts.to(logits.device, non_blocking=True)).clamp(min=1)
        terms = dict.fromkeys(_TERMS.values(), logits.new_zeros(()))
        criterion = self._criterion(logits.device)
        for output, pairs in zip(self._layers(raw, logits, boxes), matches, strict=True):
            for name, value in _library_terms(criterion, output, wanted, pairs, num_objects).items():
                terms[name] = terms[name] + value
        terms["distill"] = terms["distill"] * (len(targets) / num_images)  # a mean over these images
        return terms

    def _layers(self, raw: DFineOutput, logits: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
        """The outputs of the first box head, of each decoder layer and of the encoder, as transformers' loss takes them."""
        assert raw.corners is not None
        assert raw.references is not None
        layers: list[dict[str, Tensor]] = [
            {"logits": one, "pred_boxes": other} for one, other in zip(logits, boxes, strict=True)
        ]
        corners, references = raw.corners.to(logits.dtype), raw.references.to(logits.dtype)
        for i, layer in enumerate(layers[1:-1]):
            layer["pred_corners"], layer["ref_points"] = corners[:, i], references[:, i]
            layer["teacher_corners"], layer["teacher_logits"] = corners[:, -1], layers[-2]["logits"]
        return layers

    def _criterion(self, device: torch.device) -> Any:
        from transformers.loss.loss_d_fine import DFineLoss

        return DFineLoss(self.body.config).to(device)

    @torch.no_grad()
    def decode(
        self,
        raw: DFineOutput,
        *,
        score_threshold: float = 0.001,
        nms_iou: float = 1.0,
        max_detections: int = 300,
        pre_nms_topk: int = 300,
    ) -> list[Detections]:
        """B Detections in input pixels, best first; a query has a box for each class whose score is high enough.

        Args:
            raw: the output of `forward`.
            score_threshold: detections with lower scores are left out.
            nms_iou: see `select_detections`; at 1, as here, there is no non-maximum suppression, which a DETR does not need.
            max_detections: the largest number of detections in an image.
            pre_nms_topk: the best (query, class) pairs that are looked at.
        """
        height, width = raw.size
        scores = raw.logits.float().sigmoid()
        centre, side = torch.split(raw.boxes.float(), 2, -1)
        side = side.clamp(min=0)
        corners = torch.cat([centre - side / 2, centre + side / 2], -1)
        corners = corners * corners.new_tensor([width, height, width, height])
        return [
            select_detections(
                image_scores,
                partial(torch.index_select, image_corners, 0),
                image=raw.size,
                score_threshold=score_threshold,
                nms_iou=nms_iou,
                max_detections=max_detections,
                pre_nms_topk=pre_nms_topk,
            )
            for image_scores, image_corners in zip(scores, corners, strict=True)
        ]

    def class_layers(self) -> list[ClassLayer]:
        """The layers whose rows belong to classes: the encoder's and each decoder layer's."""
        decoder = [ClassLayer(f"body.decoder.class_embed.{i}") for i in range(len(self.body.decoder.class_embed))]
        return [ClassLayer("body.enc_score_head"), *decoder]

    def load_coco(self, path: Path, classes: Sequence[str]) -> str:
        """Load published weights for COCO's 80 classes, and return a sentence for the log.

        Args:
            path: a model.safetensors of transformers, of this size.
            classes: names of the model's classes, by label.

        Raises:
            InputError: the file is damaged or is of another network.
        """
        state = library_state(read_safetensors(path), self.size, source=str(path))
        own = self.state_dict()
        state |= {key: t for key, t in own.items() if key.endswith("num_batches_tracked")}
        return load_coco_state(self, state, classes=classes, source=str(path))


def _shapes_on_cpu(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A hook before the decoder: its layers check the levels' shapes, for which a GPU would have to be waited for."""
    if not torch.compiler.is_compiling():
        kwargs["spatial_shapes"] = torch.tensor(kwargs["spatial_shapes_list"], device="cpu")
    return args, kwargs


def _library_targets(targets: Sequence[Annotations], size: tuple[int, int], like: Tensor) -> list[dict[str, Tensor]]:
    """The objects of each image as transformers' loss takes them, from one copy to the device."""
    height, width = size
    rows = torch.cat([torch.from_numpy(each.boxes) for each in targets]).to(like)
    rows = rows / rows.new_tensor([width, height, width, height])
    rows = torch.cat([(rows[:, :2] + rows[:, 2:]) / 2, rows[:, 2:] - rows[:, :2]], 1)
    labels = torch.cat([torch.from_numpy(each.labels) for each in targets]).to(like.device)
    counts = [len(each) for each in targets]
    return [
        {"class_labels": one, "boxes": other}
        for one, other in zip(torch.split(labels, counts), torch.split(rows, counts), strict=True)
    ]


def _library_terms(
    criterion: Any, output: Mapping[str, Tensor], wanted: list[dict[str, Tensor]], pairs: Pairs, num_objects: Tensor
) -> dict[str, Tensor]:
    """The weighted terms of one layer, by our names."""
    found: dict[str, Tensor] = {}
    for kind in criterion.losses:
        for key, value in criterion.get_loss(kind, output, wanted, pairs, num_objects).items():
            found[_TERMS[key]] = value * criterion.weight_dict[key]
    return found


def make_dfine(name: str, num_classes: int, *, anchor_scale: float | None = None, pretrained: bool = True) -> DFine:
    """A new D-FINE of one of `SIZES`; `anchor_scale` has no effect.

    Raises:
        InputError: `pretrained` is asked for, since only weights of the whole detector are published; or transformers is missing.
    """
    if pretrained:
        raise InputError(
            f"{name} has no ImageNet weights of its own. Start from its COCO weights with --set init_weights=coco, or "
            "from random ones with --set init_weights=none."
        )
    return DFine(SIZES[name], num_classes)


FAMILY: Mapping[str, Callable[..., DFine]] = {
    name: entry(
        partial(make_dfine, name),
        f"D-FINE-{name[-1].upper()}: {row.backbone}, {len(row.strides)} levels, {QUERIES} queries, "
        f"{row.decoder_layers} decoder layers. foldfuse[transformers]; {coco_licence(name)}",
    )
    for name, row in SIZES.items()
}
