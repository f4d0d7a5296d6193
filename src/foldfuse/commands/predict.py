"""The predict command: a run, an ONNX file, an ensemble, a campaign or a bundle on any images."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from foldfuse.commands import drawn_images, options
from foldfuse.commands.ensemble_members import Members, named_members
from foldfuse.commands.learnt import unlearnt
from foldfuse.commands.score_tables import threshold_sentence
from foldfuse.data.dataset import Dataset
from foldfuse.data.image_inputs import read_paths
from foldfuse.detections import Predictions
from foldfuse.errors import InputError, counted, shown
from foldfuse.evaluation.thresholds import BEST, Choice
from foldfuse.formats.predictions import ENDINGS, write_predictions
from foldfuse.inference.base_predictor import Predictor
from foldfuse.inference.bundle import needs_torch
from foldfuse.inference.class_labels import concat_shards
from foldfuse.inference.hub import find_published
from foldfuse.inference.predictor import load, load_published
from foldfuse.inference.stored_thresholds import stored_thresholds
from foldfuse.inference.tta import View
from foldfuse.inference.views import BATCH_SIZE
from foldfuse.storage.run import Run
from foldfuse.system import printing
from foldfuse.system.offline import go_offline
from foldfuse.system.processes import World, open_world
from foldfuse.system.progress import no_progress, progress_bar


def predict(
    run: Path,
    data: tuple[Path, ...],
    *,
    out: options.OptionalOut = None,
    draw: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    score_threshold: options.ThresholdOrBest = None,
    max_detections: options.MaxDetections = None,
    view: Annotated[options.Names, Parameter(metavar="VIEW,...")] = (),
    member: Members = (),
    batch_size: options.BatchSize = None,
    all_: Annotated[bool, Parameter(name="--all", negative="")] = False,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    offline: options.Offline = False,
    overwrite: options.Overwrite = False,
) -> Path | None:
    """Predict images with anything trained: a run, an ONNX file, an ensemble, a whole campaign or a bundle of one of these.

    A campaign's folder applies the members, TTA views, fusion and crop rescoring of its current submission; the zips of
    `foldfuse bundle` and `foldfuse export` do as what was packed into them. Several TTA views of a run are fused by WBF. Boxes
    of images without annotations are in pixels of the upright image.

    The run of a classifier takes images in sub-folders by class, images in one folder, or a dataset whose annotated objects
    it classifies. It writes a table of probabilities, .csv or .parquet; its views are 1 and 1+hflip.

    Images that the networks have learnt from are left out, unless --all is given: a score or an ensemble must not rest on them.

    Under torchrun each process predicts its share of the images; classifiers and ONNX files take one process.

    Args:
        run: folder of a trained run or of a campaign, the zip of `foldfuse bundle` or the folder it was unpacked into, an .onnx
            file or a zip of `foldfuse export`, the ensemble.json of `foldfuse ensemble`, or hf:owner/name for what `foldfuse
            publish` put on the Hugging Face hub.
        data: the images: files, folders, patterns in quotes such as 'photos/*.jpg', or datasets of any layout, whose annotations
            are not read, except by a classifier.
        out: file to write: .parquet (keeps everything), .json (COCO results), or .csv; `foldfuse submit` makes submissions.
        draw: folder to write images with boxes drawn on them to; those with a score of 0.3 and more, or of --score-threshold.
        score_threshold: leave out boxes whose score is lower; all are kept by default, since scores such as AP need them. best or
            best-by-class: the stored threshold with the best F, of all classes or of each, of a run or a campaign.
        view: TTA views of a run: scales of the recipe's image size, with +tiles2x2 (overlapping tiles of columns x rows), +hflip
            or +vflip; 1 by default.
        member: the run of a member of an ensemble, where it does not lie beside ensemble.json; NAME=RUN@1,1+hflip where the
            member was predicted in several views. Repeat for more.
        batch_size: images of 256 px at a time, 16 by default; fewer larger ones, so that memory stays the same.
        all_: predict also the images that the run has learnt from. A .parquet remembers which images these are.

    Raises:
        InputError: nothing trained is there, its classes differ from the data's, it has learnt from all images, or an image
            cannot be decoded.

    Examples:
        foldfuse predict run1 photos/ --draw drawn/
        foldfuse predict campaign1 data/test.json --out predictions.parquet
        foldfuse predict run1 'photos/*.png' data/images_test --out found.json --score-threshold 0.25
        foldfuse predict run1 data/test.json --out views.parquet --view 1,1+hflip
        foldfuse predict run1 photos/ --out tiles.parquet --view 1,1+tiles2x2
        foldfuse predict ensemble.json data/test.json --member a=run1 --member b=run2 --out fused.parquet
        foldfuse predict classifier1 data/train.json --out classes.csv
        foldfuse predict hf:owner/litter photos/ --out published.parquet
    """
    if offline:
        go_offline()
    given_data: Any = data  # one path is taken too
    run, paths = Path(run), [Path(p) for p in ([given_data] if isinstance(given_data, str | Path) else given_data)]
    out, draw = (None if path is None else Path(path) for path in (out, draw))
    is_classifier = Run(run).is_classifier
    _check_outputs(run, paths, out, draw, images=images, overwrite=overwrite, is_classifier=is_classifier)
    published = find_published(run)
    by_torch = is_classifier or needs_torch(run if published is None else published.path)
    if os.environ.get("WORLD_SIZE", "1") != "1" and (is_classifier or not by_torch):
        kind = "the run of a classifier" if is_classifier else "an ONNX file"
        raise InputError(f"{run}: is {kind}, which predicts in one process. Give the command without torchrun.")
    if is_classifier:
        assert out is not None, "_check_outputs refuses a classifier without it"
        _check_classifier(
            run,
            paths,
            {"--score-threshold": score_threshold, "--max-detections": max_detections, "--member": member or None},
        )
        from foldfuse.commands.predict_classes import predict_classes  # needs torch

        ignore_orientation = _ignores_orientation(run, Run(run).metadata.ignore_orientation, ignore_orientation)
        return predict_classes(
            Run(run),
            paths[0],
            out,
            views=view or ("1",),
            images=images,
            device=device,
            all_=all_,
            ignore_orientation=ignore_orientation,
        )
    with open_world(device) if by_torch else nullcontext(World(device=device)) as world:
        if published is None or member:
            predictor = load(run, device=world.device, members=named_members(member), engine=engine)
        else:
            predictor = load_published(published, device=world.device, engine=engine)
        views = predictor.parse_views(view)
        if world.is_main:
            for sentence in predictor.repeated_views(views):
                printing.write(sentence, to_stderr=True)
        best = stored_thresholds(predictor, views) if isinstance(score_threshold, str) else None
        ignore_orientation = _ignores_orientation(
            predictor.source, predictor.ignore_orientation, ignore_orientation, is_printed=world.is_main
        )
        predictor = replace(predictor, ignore_orientation=ignore_orientation)
        given = read_paths(paths, images=images, ignore_orientation=predictor.ignore_orientation)
        if draw is not None:
            drawn_images.refuse_originals(draw, given.dataset.samples)
        if given.repeated and world.is_main:
            times = counted(given.repeated, "image")
            printing.write(f"{times} given more than once; each is predicted once.", to_stderr=True)
        dataset = predictor.open(given)
        learnt = predictor.learnt_ids(dataset)
        dataset, learnt = unlearnt(predictor.source, learnt, dataset, all_=all_, is_printed=world.is_main)
        if world.is_main and by_torch:
            _warn_of_likeness(predictor, dataset)
        text, start = f"predicting {counted(len(dataset), 'image')}", time.monotonic()
        with progress_bar(text, num_images=len(dataset)) if world.is_main else nullcontext(no_progress) as progress:
            own = predictor.predict_samples(
                dataset.samples[world.rank :: world.size],
                views=views,
                batch_size=batch_size or BATCH_SIZE,
                progress=progress,
            )
        shards = world.all_gather(own)
        seconds = time.monotonic() - start
        if world.is_main:
            found = replace(predictor.relabel(concat_shards(shards, dataset.image_ids), dataset), learnt_ids=learnt)
            if best is not None:
                choice: Choice = "best" if score_threshold == BEST else "best-by-class"
                found, score_threshold = best.apply(found, choice), 0.0
                printing.write(threshold_sentence(best, choice), to_stderr=True)
            assert not isinstance(score_threshold, str)
            found = _best(found, score_threshold, max_detections)
            _write(found, dataset, out, draw, score_threshold=score_threshold, is_all=all_)
            rate = f"{len(dataset) / max(seconds, 1e-9):.1f} images/s"
            boxes = "1 box" if len(found.boxes) == 1 else f"{len(found.boxes):,} boxes"
            places = ", ".join(str(path) for path in (out, draw) if path is not None)
            printing.write(f"{counted(len(dataset), 'image')}, {boxes}, {rate}: {places}", to_stderr=True)
    return out or draw


def _check_outputs(
    run: Path,
    data: Sequence[Path],
    out: Path | None,
    draw: Path | None,
    *,
    images: Path | None,
    overwrite: bool,
    is_classifier: bool,
) -> None:
    """Raises InputError where an output is missing or cannot be written, or a view is taken for an image."""
    if view := next((str(path) for path in data if not path.exists() and _is_view(str(path))), None):
        raise InputError(
            f"{shown(view)} belongs to no argument. Several values of one option stand in one word, with commas between them."
        )
    if is_classifier and draw is not None:
        raise InputError(f"--draw {draw}: {run} is the run of a classifier, which finds no boxes. Leave out --draw.")
    if out is None and (draw is None or is_classifier):
        drawn = "" if is_classifier else ", or --draw DIR for images with boxes drawn on them"
        example = "classes.csv" if is_classifier else "predictions.parquet"
        raise InputError(f"neither --out nor --draw is given, so nothing would be kept. Add --out {example}{drawn}.")
    inputs = [run, *data, images]
    if out is not None:
        options.refuse_overwrite(out, overwrite, inputs=inputs)
        if not (is_classifier or out.is_dir() or out.suffix.lower() in ENDINGS):
            raise InputError(f"{out}: predictions are written as {', '.join(ENDINGS)}; choose one of these endings.")
    if draw is not None:
        drawn_images.check_folder(draw, overwrite, inputs)


def _is_view(text: str) -> bool:
    try:
        View.parse(text)
    except InputError:
        return False
    return True


def _best(predictions: Predictions, score_threshold: float | None, max_detections: int | None) -> Predictions:
    """The boxes at or above a score, and at most so many an image, those of the highest scores."""
    if score_threshold is not None:
        predictions = predictions.filter(predictions.scores >= score_threshold)
    if max_detections is None:
        return predictions
    index = predictions.image_index
    order = np.lexsort((-predictions.scores, index))  # image after image, as the rows are
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - predictions.offsets[:-1][index]
    return predictions.filter(rank < max_detections)


def _write(
    predictions: Predictions,
    dataset: Dataset,
    out: Path | None,
    draw: Path | None,
    *,
    score_threshold: float | None,
    is_all: bool,
) -> None:
    """Writes the file and the drawn images that are asked for."""
    if out is not None:
        write_predictions(predictions, out, dataset)
        if predictions.learnt_ids and out.suffix != ".parquet":
            loss = "which images the run has learnt from" if is_all else "that images were left out"
            printing.write(
                f"{out}: only a .parquet can say {loss}; write one for score, ensemble and rescore.", to_stderr=True
            )
        if out.suffix.lower() == ".csv":
            printing.write(
                f"{out}: has the columns PredictionString and image_id. For a contest's own columns and order, write a .parquet, "
                "and give it to 'foldfuse submit' with --like sample_submission.csv.",
                to_stderr=True,
            )
    if draw is not None:
        with progress_bar(f"drawing {counted(len(predictions), 'image')}", num_images=len(predictions)) as progress:
            drawn_images.draw_images(predictions, dataset, draw, score_threshold=score_threshold, progress=progress)


def _warn_of_likeness(predictor: Predictor, dataset: Dataset) -> None:
    """Tells of images that look like those of the pre-training behind a run; says nothing if these are not known."""
    if not predictor.runs:
        return
    from foldfuse.inference.pretraining_images import likeness_warnings

    with suppress(InputError):  # the files that a run began from are not needed to predict
        recipes = {str(run.folder): run.recipe for run in predictor.runs}
        for sentence in dict.fromkeys(likeness_warnings(recipes, dataset, what=f"images of {dataset.source}")):
            printing.write(f"WARNING: {sentence}", to_stderr=True)


def _ignores_orientation(source: Path, trained_so: bool, asked: bool, *, is_printed: bool = True) -> bool:
    """Whether orientation tags are ignored: as asked, or since the network was trained so, which is then said."""
    if trained_so and is_printed:
        printing.write(
            f"{source}: was trained with --ignore-orientation, so the orientation tags of these images are ignored too.",
            to_stderr=True,
        )
    return asked or trained_so


def _check_classifier(run: Path, data: Sequence[Path], given: Mapping[str, object]) -> None:
    """Raises InputError for several datasets, or for an option of detectors whose value is given."""
    if len(data) != 1:
        raise InputError(
            f"{run}: is the run of a classifier, which takes one folder or dataset; {len(data)} are given."
        )
    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option}: {run} is the run of a classifier, which finds no boxes. Leave out {option}.")
