"""Pre-trains one detector on the boxes of many datasets, so that detectors of other data can start from it.

The datasets share the network and the class layer. Classes of the same name are one class. Where an image has no box, only the
classes of its own dataset take part in the loss, so an object that one dataset names and another leaves without a box does no
harm (the idea of Zhou et al., "Simple multi-dataset detection", arXiv:2102.13086, section 3, with one class layer in place of one
per dataset). Where it has a box, the box's class is to win over the classes of all datasets, else datasets of one class would
teach nothing but to tell objects from background. A last class, `OBJECT_CLASS`, stands for the objects of all classes: the class
layer of a new detector can start from it. Its weight is small, so that the layers below learn the classes and not this one.

Shapes: D datasets, N images, K classes; B images of a batch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foldfuse.boxes import area
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.data.images import canvas_for
from foldfuse.detections import Annotations, Array
from foldfuse.errors import InputError
from foldfuse.inference.learnt_images import record_learnt_images
from foldfuse.inference.pretraining_images import hash_images
from foldfuse.models.detection.composed import ComposedDetector
from foldfuse.models.detection.heads import DenseHead
from foldfuse.models.detection.normalizers import BatchTotal, own_total
from foldfuse.models.pretrained.detection import OBJECT_CLASS, save_detection_weights
from foldfuse.recipes import Recipe
from foldfuse.storage.run import Run
from foldfuse.training.checkpoints import Checkpointer, TrainingResult, finish_run
from foldfuse.training.detector import new_detector
from foldfuse.training.device_batches import DeviceBatches, DeviceImages, SourceTarget
from foldfuse.training.init_weights import load_init_weights
from foldfuse.training.loop import fit
from foldfuse.training.precision import default_config
from foldfuse.training.session import TrainingSession

log = logging.getLogger(__name__)

SOURCE_EXPONENT = 0.5  # a dataset of n images is drawn in proportion to n^0.5
SIZE_EXPONENT = 0.5  # an object of a size that is f times as frequent as another weighs f^-0.5 as much
OBJECT_WEIGHT = 0.1  # of `OBJECT_CLASS` in the loss
SIZE_EDGES = (0.05, 0.1, 0.2, 0.4)  # of the kinds of sizes: root of the area, in longest sides of the image


@dataclass(frozen=True, eq=False)
class Sources:
    """Many datasets as one.

    Attributes:
        dataset: the images of all datasets, one dataset after the other, with the labels of the shared classes. The last
            class is `OBJECT_CLASS`, which no object carries as its label.
        names: D names.
        source: (N,) int64, the dataset of each image.
        class_weights: (D, K) float32, 1 for the classes of each dataset, `OBJECT_WEIGHT` for `OBJECT_CLASS`, else 0.
    """

    dataset: Dataset
    names: tuple[str, ...]
    source: Array
    class_weights: Array

    def samples_by_name(self) -> dict[str, list[Sample]]:
        """{name of a dataset: its samples}."""
        by_name: dict[str, list[Sample]] = {name: [] for name in self.names}
        for d, sample in zip(self.source.tolist(), self.dataset.samples, strict=True):
            by_name[self.names[d]].append(sample)
        return by_name


def join_sources(
    datasets: Mapping[str, Dataset],
    *,
    one_class: Mapping[str, str] | None = None,
    synonyms: Mapping[str, str] | None = None,
) -> Sources:
    """The datasets as one, with the classes that they share by name.

    Args:
        datasets: {name: annotated dataset}.
        one_class: {name of a dataset: name of the one class that all its objects get}, for datasets of many rare classes.
        synonyms: {normalized class name: name of the same class in other datasets}.

    Raises:
        InputError: there is no dataset, or one is not annotated.
    """
    if not datasets:
        raise InputError("there is no dataset to pre-train on. Give at least one.")
    one_class, synonyms = one_class or {}, synonyms or {}
    own_names = {
        name: [one_class.get(name, "") or synonyms.get(normalized(c), normalized(c)) for c in dataset.classes]
        for name, dataset in datasets.items()
    }
    shared = sorted({c for names in own_names.values() for c in names})
    classes = (*shared, OBJECT_CLASS)
    label_of = {c: label for label, c in enumerate(shared)}
    class_weights = np.zeros((len(datasets), len(classes)), np.float32)
    class_weights[:, -1] = OBJECT_WEIGHT
    samples: list[Sample] = []
    source: list[int] = []
    for d, (name, dataset) in enumerate(datasets.items()):
        labels = np.array([label_of[c] for c in own_names[name]], np.int64)
        class_weights[d, labels] = 1
        for sample in dataset.samples:
            if sample.annotations is None:
                raise InputError(f"{dataset.source}: {sample.file_name} has no annotations. Pre-training needs them.")
            a = sample.annotations
            relabeled = Annotations(a.boxes, labels[a.labels], a.crowd, a.area)
            samples.append(replace(sample, id=len(samples), annotations=relabeled))
            source.append(d)
    first = next(iter(datasets.values())).source
    joined = Dataset(tuple(samples), classes, tuple(range(len(classes))), first)
    return Sources(joined, tuple(datasets), np.array(source), class_weights)


def normalized(name: str) -> str:
    """A class name in lower case, words joined by one space: "Traffic_Light" and "traffic light" are one class.

    `OBJECT_CLASS` itself is taken, so a class of that name becomes "some object".
    """
    plain = re.sub(r"[\W_]+", " ", name.lower()).strip()
    return f"some {plain}" if plain in (OBJECT_CLASS, "") else plain


def sampling_probability(sources: Sources) -> Array:
    """(N,) probability of each image: balanced over the datasets, and within a dataset over the sizes of the objects."""
    sizes, image = [np.zeros(0)], [np.zeros(0, np.int64)]
    for i, sample in enumerate(sources.dataset.samples):
        assert sample.annotations is not None
        sizes.append(np.sqrt(area(sample.annotations.boxes)) / max(sample.width, sample.height))
        image.append(np.full(len(sample.annotations), i))
    kind, owner = np.digitize(np.concatenate(sizes), SIZE_EDGES), np.concatenate(image)
    frequency = np.bincount(kind, minlength=len(SIZE_EDGES) + 1) / max(len(kind), 1)
    weight = np.maximum(frequency, 1e-3)[kind] ** -SIZE_EXPONENT
    objects = np.bincount(owner, minlength=len(sources.source))
    sums = np.bincount(owner, weight, minlength=len(sources.source))
    of_image = np.where(objects > 0, sums / np.maximum(objects, 1), weight.mean() if len(weight) else 1.0)
    count = np.bincount(sources.source)
    share = count**SOURCE_EXPONENT / (count**SOURCE_EXPONENT).sum()
    total = np.bincount(sources.source, of_image)
    probability: Array = of_image / total[sources.source] * share[sources.source]
    return probability / probability.sum()


def pretraining_recipe(recipe: Recipe) -> Recipe:
    """The recipe of a pre-training of the detector of `recipe`: larger batches, stronger augmentation, little frozen."""
    scratch = recipe.init_weights == "none"
    return replace(
        recipe,
        init_weights="none" if scratch else "imagenet",
        image_size=288,
        batch_size=64,
        lr=2e-3,
        backbone_lr_mult=0.3,
        weight_decay=0.05,
        warmup_fraction=0.03,
        ema_decay=0.999,
        frozen_stages=0 if scratch else 1,
        scale_jitter=0.6,
        color_jitter=0.4,
        mosaic=0.5,
        mosaic_until=0.85,
    )


class PretrainingDetector(ComposedDetector):
    """A detector with the loss of many datasets; its parts and tensor names are those of the detector that it is made from.

    Args:
        detector: a detector with an anchor-free head, for the shared classes.
        class_weights: (D, K), see `Sources`.

    Raises:
        InputError: the detector has another head.
    """

    class_weights: Tensor

    def __init__(self, detector: Any, class_weights: Array) -> None:
        if not isinstance(getattr(detector, "head", None), DenseHead):
            raise InputError("only detectors with the anchor-free head can be pre-trained, such as lite0_fpn.")
        super().__init__(detector.backbone, detector.neck, detector.head, image_size=detector.image_size)
        self.head.has_object_class = True
        self.register_buffer("class_weights", torch.from_numpy(class_weights), persistent=False)

    def loss(self, raw: Any, targets: Sequence[Any], *, batch_total: BatchTotal = own_total) -> dict[str, Tensor]:
        """Terms to be summed, each a scalar; `targets` are B `SourceTarget`s."""
        pairs = [SourceTarget(*target) for target in targets]
        of_image = self.class_weights[torch.tensor([pair.source for pair in pairs], device=self.class_weights.device)]
        annotations = [pair.annotations for pair in pairs]
        terms: dict[str, Tensor] = self.head.loss(raw, annotations, class_weights=of_image, batch_total=batch_total)
        return terms


def pretrain(
    run: Run, sources: Sources, session: TrainingSession, *, export: Path, longest: int = 352
) -> TrainingResult:
    """Pre-train the detector of a run folder, which keeps log, checkpoints and weights as those of other trainings.

    Args:
        run: folder with a recipe and metadata.
        sources: the datasets.
        session: budget, device, and the checkpoint to resume from.
        export: file of detection weights, which is replaced at each checkpoint; it also holds hashes of the images.
        longest: images are kept with a longest side of this many pixels.

    Raises:
        FloatingPointError: the loss is not finite.
        InputError: the detector cannot be pre-trained, or an image cannot be read.
    """
    recipe, seed, dataset = run.recipe, run.metadata.seed, sources.dataset
    assert session.world.size == 1, "pre-training runs in one process"
    record_learnt_images(run, dataset.samples, init_weights=recipe.init_weights)
    hashed = hash_images(sources.samples_by_name())
    torch.manual_seed(seed)
    fresh = session.checkpoint is None
    detector = new_detector(recipe, len(dataset.classes), initialized=fresh)
    if fresh and (sentence := load_init_weights(recipe, detector, dataset.classes)):
        log.info(sentence)
    model = PretrainingDetector(detector, sources.class_weights).to(session.world.device)
    canvas = canvas_for(dataset.samples, image_size=recipe.image_size, stride=model.stride)
    images = DeviceImages.load(dataset.samples, longest=longest, device=session.world.device)
    batches = DeviceBatches(
        dataset.samples, images, sources.source, sampling_probability(sources), recipe, canvas, seed
    )
    checkpointer = Checkpointer(run, session)

    def save(state: dict[str, Any]) -> None:
        recent = checkpointer.log[-100:]
        if recent:
            means = ", ".join(f"{key} {np.mean([row[key] for row in recent]):.3f}" for key in ("class", "box"))
            waited = state["data_wait"] / max(state["seconds"], 1e-9)
            log.info(
                f"step {state['step']}, {state['seconds']:.0f} s: {means}; {waited:.0%} of the time waited for images."
            )
        checkpointer(state)
        save_detection_weights(export, state["ema"], detector=recipe.detector, classes=dataset.classes, images=hashed)

    config = default_config(torch.device(session.world.device), precision=recipe.precision)
    log.info(
        f"{len(dataset)} images of {len(sources.names)} datasets with {dataset.num_boxes} boxes of "
        f"{len(dataset.classes) - 1} classes, at {canvas[1]}x{canvas[0]} px, in {config}."
    )
    last = fit(model, batches, recipe, session, log=checkpointer.log, save=save, config=config)
    return finish_run(run, session, last, replace(run.metadata, canvas=canvas), batch_size=recipe.batch_size)
