"""The predict command, for detectors and classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from foldfuse.commands import options
from foldfuse.data.crops import image_crops, object_crops
from foldfuse.data.dataset import Dataset
from foldfuse.data.pixels import open_images
from foldfuse.data.readers.coco import read
from foldfuse.data.readers.image_folder import read_classification
from foldfuse.errors import InputError
from foldfuse.formats.class_table import write_table
from foldfuse.formats.predictions import write_predictions
from foldfuse.fusion.methods import wbf
from foldfuse.inference.class_labels import concat_shards, labels_by_name, relabel
from foldfuse.inference.classifier import accuracy, classify
from foldfuse.inference.detector import load_detector, predict_views
from foldfuse.inference.learnt_images import learnt_ids
from foldfuse.inference.pretraining_images import likeness_warnings
from foldfuse.inference.tta import View, distinct_views, parse_views
from foldfuse.storage.run import Run
from foldfuse.system import printing
from foldfuse.system.processes import open_world
from foldfuse.system.progress import no_progress, progress_bar

CLASSIFIER_VIEWS = ("1", "1+hflip")


def predict(
    run: Path,
    data: Path,
    *,
    out: options.Out,
    view: Annotated[options.Names, Parameter(metavar="VIEW,...")] = ("1",),
    batch_size: options.BatchSize = None,
    all_: Annotated[bool, Parameter(name="--all", negative="")] = False,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
) -> Path:
    """Predict a dataset with a trained run, fuse several TTA views by WBF, and return the path of the predictions.

    The run of a classifier takes images in sub-folders by class, images in one folder, or a dataset whose annotated objects
    it classifies. It writes a table of probabilities, .csv or .parquet; its views are 1 and 1+hflip.

    Images that the run has learnt from are left out, unless --all is given: a score or an ensemble must not rest on them.

    Under torchrun each process predicts its share of the images.

    Args:
        run: folder of a trained run.
        data: the images: a dataset of any layout, a folder of images or a list of them. Annotations are not read, except by a
            classifier.
        out: file to write: .parquet (keeps everything), or .json (COCO results).
        view: TTA views: scales of the recipe's image size, with +hflip or +vflip.
        batch_size: images of 256 px at a time, 16 by default; fewer larger ones, so that memory stays the same.
        all_: predict also the images that the run has learnt from. A .parquet remembers which images these are.

    Raises:
        InputError: the run is not trained, its classes differ from the data's, it has learnt from all images, or an image cannot
            be decoded.

    Examples:
        foldfuse predict run1 data/test.json --out predictions.parquet
        foldfuse predict run1 data/test.json --out views.parquet --view 1,1+hflip
        foldfuse predict classifier1 data/train.json --out classes.csv
    """
    out = Path(out)
    options.refuse_overwrite(out, overwrite, inputs=[run, data, images])
    ignore_orientation = ignore_orientation or _run_ignores_orientation(Run(run))
    if Run(run).is_classifier:
        return _predict_classes(
            Run(run),
            data,
            out,
            views=view,
            images=images,
            device=device,
            all_=all_,
            ignore_orientation=ignore_orientation,
        )
    views = parse_views(view)
    with open_world(device) as world:
        model, classes = load_detector(Run(run), world.device)
        views = _distinct_views(views, Run(run).recipe.image_size, model.stride, is_printed=world.is_main)
        dataset = read(data, annotated=False, images=images, ignore_orientation=ignore_orientation)
        if not dataset.classes:
            dataset = dataset.with_classes(classes, Run(run).metadata.category_ids)
        labels = labels_by_name(classes, dataset, run)
        ranges = Run(run).metadata.value_ranges
        dataset = open_images(dataset, ignore_orientation=ignore_orientation, value_ranges=ranges)
        dataset, learnt = _unlearnt(Run(run), dataset, all_=all_, is_printed=world.is_main)
        if world.is_main:
            _warn_of_likeness(Run(run), dataset)
        with (
            progress_bar(f"predicting {len(dataset)} images") if world.is_main else nullcontext(no_progress) as progress
        ):
            own = predict_views(
                model,
                dataset.samples[world.rank :: world.size],
                classes,
                image_size=Run(run).recipe.image_size,
                views=views,
                batch_size=batch_size or 16,
                progress=progress,
            )
        shards = world.all_gather(own)
        if world.is_main:
            by_view = [concat_shards([shard[each] for shard in shards], dataset.image_ids) for each in views]
            members = [relabel(predictions, labels, dataset) for predictions in by_view]
            fused = replace(members[0] if len(members) == 1 else wbf(members), learnt_ids=learnt)
            write_predictions(fused, out, dataset)
            if learnt and out.suffix != ".parquet":
                loss = "which images the run has learnt from" if all_ else "that images were left out"
                printing.write(
                    f"{out}: only a .parquet can say {loss}; write one for score, ensemble and rescore.", to_stderr=True
                )
    return out


def _distinct_views(views: Sequence[View], image_size: int, stride: int, *, is_printed: bool) -> tuple[View, ...]:
    """The views without those that are the same images to the network as an earlier view; logs which these are."""
    same_as = distinct_views(views, image_size=image_size, stride=stride)
    for view, first in same_as.items():
        if view != first and is_printed:
            pixels = f"{view.image_size(image_size, stride)} px"
            printing.write(f"the view {view} has {pixels} as the view {first} has: it is left out.", to_stderr=True)
    return tuple(dict.fromkeys(same_as.values()))


def _unlearnt(run: Run, dataset: Dataset, *, all_: bool, is_printed: bool = True) -> tuple[Dataset, frozenset[int]]:
    """The images to predict, and the ids of the images of `dataset` that the run has learnt from; logs how many.

    Raises:
        InputError: the run has learnt from all images, and --all is not given.
    """
    learnt = learnt_ids(run, dataset)
    if not learnt:
        return dataset, learnt
    number = f"{len(learnt)} of the {len(dataset)} images of {dataset.source}"
    if all_:
        sentence = f"{run.folder}: has learnt from {number}; they are predicted as well, as --all says."
    elif len(learnt) < len(dataset):
        sentence = (
            f"{run.folder}: has learnt from {number}. The {len(dataset) - len(learnt)} others are predicted; add --all to "
            "predict every image."
        )
    else:
        raise InputError(
            f"{run.folder}: has learnt from all {len(dataset)} images of {dataset.source}, so its predictions there say nothing "
            "about new images. Give other images, train with --folds to hold some out, or add --all to predict these."
        )
    if is_printed:
        printing.write(sentence, to_stderr=True)
    return (dataset if all_ else dataset.subset(set(dataset.image_ids) - learnt)), learnt


def _warn_of_likeness(run: Run, dataset: Dataset) -> None:
    """Tells of images that look like those of the pre-training that the run began from; says nothing if these are not known."""
    with suppress(InputError):  # the files that the run began from are not needed to predict
        for sentence in likeness_warnings({str(run.folder): run.recipe}, dataset, what=f"images of {dataset.source}"):
            printing.write(f"WARNING: {sentence}", to_stderr=True)


def _run_ignores_orientation(run: Run) -> bool:
    """Whether a run was trained with --ignore-orientation, which then holds for its predictions too; says so."""
    ignores = run.metadata.ignore_orientation
    if ignores:
        printing.write(
            f"{run.folder}: was trained with --ignore-orientation, so the orientation tags of these images are ignored too.",
            to_stderr=True,
        )
    return ignores


def _predict_classes(
    run: Run,
    data: Path,
    out: Path,
    *,
    views: Sequence[str],
    images: Path | None,
    device: str,
    all_: bool,
    ignore_orientation: bool,
) -> Path:
    """Classify a dataset with a classifier's run, and return the path of the table of probabilities."""
    if out.suffix not in (".csv", ".parquet"):
        raise InputError(
            f"{out}: a classifier's probabilities are written as .csv or .parquet; choose one of these endings."
        )
    if unknown := set(views) - set(CLASSIFIER_VIEWS):
        raise InputError(f"no view of a classifier is called {min(unknown)!r}. Known: {', '.join(CLASSIFIER_VIEWS)}.")
    classes = run.metadata.classes
    dataset, whole_images = read_classification(
        data, classes=classes, images=images, ignore_orientation=ignore_orientation
    )
    ranges = run.metadata.value_ranges
    dataset = open_images(dataset, ignore_orientation=ignore_orientation, value_ranges=ranges)
    dataset, learnt = _unlearnt(run, dataset, all_=all_)
    crops = image_crops(dataset) if whole_images else object_crops(dataset)
    if not len(crops):
        raise InputError(f"{data}: no object is annotated, so there is no crop to classify.")
    with progress_bar(f"classifying {len(crops)} {'images' if whole_images else 'objects'}") as progress:
        probabilities = classify(run, crops, views=tuple(views), device=device, progress=progress)
    write_table(probabilities, crops, classes, out, boxes=not whole_images)
    if (crops.labels >= 0).all():
        labels = crops.labels
        by_class = [accuracy(probabilities[labels == k], labels[labels == k]) for k in np.unique(labels)]
        score = accuracy(probabilities, labels)
        printing.write(f"accuracy {score:.4f} of {len(crops)}; mean of the classes {np.mean(by_class):.4f}")
        if learnt and all_:
            printing.write("This accuracy is not of new images: the run has learnt from some of them.", to_stderr=True)
    return out
