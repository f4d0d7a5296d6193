"""What the DETRs of the package transformers share here: forward pass, loss over layers, decoding, the weights in their files.

The layers, the terms of the loss and the names of tensors are those of transformers 5 (Apache-2.0).

Where we differ from transformers:
* Only the backbone and the encoder run in half precision. The decoder and its anchors compute in single precision: bfloat16 has
  three digits, so an anchor at 640 px would be off by up to 2 px.
* A small input has fewer cells than there are queries; then every cell is a query.
* There are no denoising queries, which `forward` cannot make without the annotations.

Shapes: B images, Q queries, K classes, L decoder layers, N bins of a distribution.
"""

from __future__ import annotations

import importlib.util
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
from foldfuse.models.detection.hungarian import CostWeights, Pairs, match_layers
from foldfuse.models.detection.normalizers import BatchTotal, at_least_float32
from foldfuse.models.detection.postprocess import select_detections
from foldfuse.models.pretrained.checkpoint import read_safetensors
from foldfuse.models.pretrained.class_layer import ClassLayer
from foldfuse.models.pretrained.coco import COCO_CLASSES, load_coco_state

QUERIES = 300
STRIDE = 32
PRIOR = 0.01  # the score that an untrained class head gives
_OUTER_HEADS = ("class_embed.", "bbox_embed.")  # the decoder's heads once more, which the network does not use

Layers = list[dict[str, Tensor]]  # the outputs of each layer, as transformers' loss takes them


def require_transformers(family: str) -> None:
    """Raises InputError where the package transformers is not installed, which a family of detectors needs."""
    if importlib.util.find_spec("transformers") is None:
        raise InputError(f"{family} needs the package transformers. Install it: pip install 'foldfuse[transformers]'.")


def refuse_imagenet(name: str) -> InputError:
    """The error for a detector that is asked for ImageNet weights: only weights of the whole detector are published."""
    return InputError(
        f"{name} has no ImageNet weights of its own. Start from its COCO weights with --set init_weights=coco, or "
        "from random ones with --set init_weights=none."
    )


class DetrOutput(NamedTuple):
    """What `forward` gives; boxes are cxcywh, as shares of the input. All after `size` are None in eval mode.

    Attributes:
        logits: (B, Q, K) of the last decoder layer.
        boxes_cxcywh: (B, Q, 4) of the last decoder layer.
        size: height and width of the input in pixels.
        layer_logits: (B, L, Q, K) of each decoder layer; D-FINE has the first box head before them.
        layer_boxes: (B, L, Q, 4), likewise.
        corners: D-FINE's (B, L, Q, 4 N): logits of the distributions of each side.
        references: D-FINE's (B, L, Q, 4): the boxes that the distributions refine.
        encoder_logits: (B, Q, K) of the encoder's best cells.
        encoder_boxes: (B, Q, 4), likewise.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    size: tuple[int, int]
    layer_logits: Tensor | None = None
    layer_boxes: Tensor | None = None
    corners: Tensor | None = None
    references: Tensor | None = None
    encoder_logits: Tensor | None = None
    encoder_boxes: Tensor | None = None


class Detr(nn.Module):
    """Base of the DETRs; `family` is the name of one in sentences.

    Args:
        body: transformers' model without its heads, whose parts become this network's.
        strides: of the levels that the decoder looks at.
        num_classes: K.
    """

    family: str

    def __init__(self, body: Any, strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.backbone: Any = body.backbone.model
        body.backbone = nn.Identity()
        body.decoder.register_forward_pre_hook(_shapes_on_cpu, with_kwargs=True)
        self.body: Any = body
        self.strides = tuple(strides)
        self.stride, self.image_size, self.num_classes = STRIDE, 640, num_classes

    def forward(self, images: Tensor) -> DetrOutput:
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
        queries = min(QUERIES, sum((height // s) * (width // s) for s in self.strides))
        if self.body.config.num_queries != queries:
            self.body.config.num_queries = queries
        kind = images.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            encoded = [at_least_float32(level) for level in encoded]
            out = self.body(None, inputs_embeds=encoded[0], encoder_outputs=BaseModelOutput(last_hidden_state=encoded))
        logits, boxes = out.intermediate_logits, out.intermediate_reference_points
        last = DetrOutput(logits[:, -1], boxes[:, -1], (height, width))
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

    @torch.no_grad()
    def decode(
        self,
        raw: DetrOutput,
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
        centre, side = torch.split(raw.boxes_cxcywh.float(), 2, -1)
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

    def library_model(self, num_classes: int) -> Any:
        """transformers' whole network of this size, with random weights."""
        raise NotImplementedError

    def load_coco(self, path: Path, classes: Sequence[str]) -> str:
        """Load published weights for COCO's 80 classes, and return a sentence for the log.

        Args:
            path: a model.safetensors of transformers, of this size.
            classes: names of the model's classes, by label.

        Raises:
            InputError: the file is damaged or is of another network.
        """
        library = self.library_model(len(COCO_CLASSES))
        state = library_state(
            read_safetensors(path),
            type(library),
            library.config,
            source=str(path),
            what=f"this size of {self.family}",
        )
        state |= {key: t for key, t in self.state_dict().items() if key.endswith("num_batches_tracked")}
        return load_coco_state(self, state, classes=classes, source=str(path))

    def class_layers(self) -> list[ClassLayer]:
        """The layers whose rows belong to classes: the encoder's and each decoder layer's."""
        decoder = [ClassLayer(f"body.decoder.class_embed.{i}") for i in range(len(self.body.decoder.class_embed))]
        return [ClassLayer("body.enc_score_head"), *decoder]


def layer_terms(
    raw: DetrOutput,
    targets: Sequence[Annotations],
    *,
    names: Mapping[str, str],
    criterion_of: Callable[[torch.device], Any],
    add_to_layers: Callable[[Layers], None],
    batch_total: BatchTotal,
) -> tuple[dict[str, Tensor], Tensor]:
    """The terms of the loss summed over all layers, and the number of images of the whole batch.

    Args:
        raw: the output of `forward` in training mode, for B images.
        targets: B Annotations in input pixels, without crowd regions.
        names: {transformers' name of a term: ours}.
        criterion_of: transformers' loss on a device.
        add_to_layers: adds what else the loss takes to the outputs of the layers: those of the decoder, then the encoder's.
        batch_total: turns counts over these images into counts over the whole batch, of which they may be a share.
    """
    assert raw.layer_logits is not None, "the loss needs an output of training mode"
    assert raw.layer_boxes is not None
    assert raw.encoder_logits is not None
    assert raw.encoder_boxes is not None
    logits = torch.cat([raw.layer_logits, raw.encoder_logits[:, None]], 1).transpose(0, 1)
    boxes = torch.cat([raw.layer_boxes, raw.encoder_boxes[:, None]], 1).transpose(0, 1).clamp(0, 1)
    logits, boxes = at_least_float32(logits), at_least_float32(boxes)
    wanted = library_targets(targets, raw.size, boxes)
    labels, objects = [each["class_labels"] for each in wanted], [each["boxes"] for each in wanted]
    matches = match_layers(logits.detach(), boxes.detach(), labels, objects, CostWeights())
    counts = torch.tensor([sum(map(len, labels)), len(targets)], dtype=logits.dtype)
    num_objects, num_images = batch_total(counts.to(logits.device, non_blocking=True)).clamp(min=1)
    terms = dict.fromkeys(names.values(), logits.new_zeros(()))
    criterion = criterion_of(logits.device)
    layers: Layers = [{"logits": one, "pred_boxes": other} for one, other in zip(logits, boxes, strict=True)]
    add_to_layers(layers)
    for output, pairs in zip(layers, matches, strict=True):
        for name, value in _library_terms(criterion, output, wanted, pairs, num_objects).items():
            terms[names[name]] = terms[names[name]] + value
    return terms, num_images


def library_targets(targets: Sequence[Annotations], size: tuple[int, int], like: Tensor) -> list[dict[str, Tensor]]:
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
    """The weighted terms of one layer, by transformers' names."""
    found: dict[str, Tensor] = {}
    for kind in criterion.losses:
        for key, value in criterion.get_loss(kind, output, wanted, pairs, num_objects).items():
            found[key] = value * criterion.weight_dict[key]
    return found


def _shapes_on_cpu(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A hook before the decoder: its layers check the levels' shapes, for which a GPU would have to be waited for."""
    if not torch.compiler.is_compiling():
        kwargs["spatial_shapes"] = torch.tensor(kwargs["spatial_shapes_list"], device="cpu")
    return args, kwargs


def library_state(
    state: Mapping[str, Tensor], model_class: Any, config: Any, *, source: str, what: str
) -> dict[str, Tensor]:
    """A checkpoint of transformers with the tensor names that the DETRs have here; transformers converts names of older versions.

    Args:
        state: the tensors of its model.safetensors, for COCO's 80 classes.
        model_class: transformers' class of the whole detector.
        config: of the network, for COCO's classes.
        source: the file, for sentences.
        what: such as "this size of D-FINE", for sentences.

    Raises:
        InputError: the checkpoint is of another network.
    """
    from transformers.utils import logging

    refusal = InputError(
        f"{source}: is of another network, expected the weights of {what} for COCO's {len(COCO_CLASSES)} classes, as "
        "transformers saves them."
    )
    given = {key: t.float() if t.is_floating_point() else t for key, t in state.items()}
    for i in range(config.decoder_layers):  # a file names the heads once or twice, and those of all layers may be one
        for key in [key for key in given if "_embed.0." in key]:
            other = key.replace("_embed.0.", f"_embed.{i}.").removeprefix("model.decoder.")
            inner = f"model.decoder.{other}"
            if inner not in given:
                given[inner] = given.get(other, given[key])
    given = {key: t for key, t in given.items() if not key.startswith(_OUTER_HEADS)}
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of the heads that were left out here
    try:
        model, info = model_class.from_pretrained(None, config=config, state_dict=given, output_loading_info=True)
    except RuntimeError:  # tensors of other shapes
        raise refusal from None
    finally:
        logging.set_verbosity(level)
    absent = [key for key in info["missing_keys"] if not key.startswith(_OUTER_HEADS)]
    if any(not key.endswith("num_batches_tracked") for key in absent) or info["mismatched_keys"]:
        raise refusal
    inner_state = model.model.state_dict()
    return {
        key.replace("backbone.model.", "backbone.", 1) if key.startswith("backbone.") else f"body.{key}": t
        for key, t in inner_state.items()
    }
