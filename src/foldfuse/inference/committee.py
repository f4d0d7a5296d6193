"""The members of one or several predictors, each alone, applied to many images that are decoded once for all of them.

A member predicts in the plain view. Where there is a single network, its mirrored view is the second member.

Shapes: n images, D features, M members, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from foldfuse.data.dataset import Sample
from foldfuse.data.images import ImageArray, load_sample
from foldfuse.detections import Array, Detections
from foldfuse.ensemble.calibration import Calibration
from foldfuse.ensemble.disagreement import LEAST_SCORE, Candidates, find_candidates
from foldfuse.errors import InputError
from foldfuse.inference.base_predictor import Predictor
from foldfuse.inference.ensemble_predictor import EnsemblePredictor
from foldfuse.inference.image_features import SIDE, Encode
from foldfuse.inference.network_predictor import NetworkPredictor
from foldfuse.inference.tta import PLAIN_VIEW, View
from foldfuse.inference.views import BATCH_SIZE, batches_of_one_shape, predict_images
from foldfuse.storage.run import Run
from foldfuse.system.prefetch import prefetched
from foldfuse.system.progress import Progress, no_progress

CHUNK = 64  # images that are decoded while the networks predict as many others
MIRRORED_VIEW = View(hflip=True)
AS_THEY_ARE = Calibration(1.0, 0.0)


@dataclass(frozen=True, eq=False)
class Member:
    """A network in one view.

    Attributes:
        name: the name of its run; with the view where it is not the plain one.
        path: the run's folder, or the ONNX file.
        network: gives the network, on the device.
        view: the view.
        run: the run behind it; None for an ONNX file.
        calibration: of its scores to the chance that a box is right.
    """

    name: str
    path: Path
    network: Callable[[], NetworkPredictor]
    view: View
    run: Run | None
    calibration: Calibration = AS_THEY_ARE

    def calibrated(self, detections: Detections) -> Detections:
        """The detections with calibrated scores."""
        return replace(detections, scores=self.calibration.apply(detections.scores))


def committee(predictors: Sequence[Predictor], calibrations: Mapping[Run, Calibration]) -> tuple[Member, ...]:
    """The members of predictors; at least two.

    Args:
        predictors: of runs, ensembles, campaigns or bundles.
        calibrations: {run: the calibration of its scores}; a run without one keeps its scores.

    Raises:
        InputError: two predictors have other classes, or a network cannot be loaded.
    """
    first = predictors[0]
    networks: list[tuple[Path, Run | None, Callable[[], NetworkPredictor]]] = []
    for predictor in predictors:
        if predictor.classes != first.classes:
            raise InputError(
                f"{predictor.source}: was trained for the classes {', '.join(predictor.classes)}, and {first.source} for "
                f"{', '.join(first.classes)}. Give runs of the same classes in the same order."
            )
        if isinstance(predictor, EnsemblePredictor):
            networks += [(run.folder, run, partial(predictor.network, run)) for run in predictor.runs]
        else:
            assert isinstance(predictor, NetworkPredictor), f"{type(predictor)} is no kind of predictor that is known"
            networks.append((predictor.source, next(iter(predictor.runs), None), partial(_itself, predictor)))
    times = Counter(path.name for path, _, _ in networks)
    views = (PLAIN_VIEW,) if len(networks) > 1 else (PLAIN_VIEW, MIRRORED_VIEW)
    return tuple(
        Member(
            (path.name if times[path.name] == 1 else str(path)) + ("" if view == PLAIN_VIEW else f"@{view}"),
            path,
            network,
            view,
            run,
            AS_THEY_ARE if run is None else calibrations.get(run, AS_THEY_ARE),
        )
        for path, run, network in networks
        for view in views
    )


def _itself(network: NetworkPredictor) -> NetworkPredictor:
    return network


@dataclass(frozen=True, eq=False)
class CommitteePredictions:
    """What the members predict on some images.

    Attributes:
        samples: the n images that could be decoded.
        candidates: the objects that the members suspect in each.
        detections: {member: its detections in each image}, with its own scores; without boxes that suspect nothing.
        features: (n, D) of the images.
        broken: {file name of an image that cannot be decoded: why}.
    """

    samples: tuple[Sample, ...]
    candidates: tuple[Candidates, ...]
    detections: Mapping[str, tuple[Detections, ...]]
    features: Array
    broken: Mapping[str, str]


def predict_committee(
    members: Sequence[Member],
    samples: Sequence[Sample],
    encode: Encode,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress = no_progress,
) -> CommitteePredictions:
    """What the members predict on opened samples. Each image is decoded once; those that cannot be decoded are left out.

    Args:
        members: the members.
        samples: the images, opened.
        encode: makes the features of images.
        batch_size: images of 256 px at a time; fewer larger ones.
        progress: gets the finished share of the work.
    """
    views: dict[Path, list[Member]] = {}
    for member in members:
        views.setdefault(member.path, []).append(member)
    longest = SIDE
    for own in views.values():
        network, of_network = own[0].network(), [member.view for member in own]
        longest = max(longest, *(view.decoded_size(network.image_size, network.stride) for view in of_network))
        batches = batches_of_one_shape(samples, of_network, network.image_size, network.stride, batch_size)
        network.expect(sum(batch.pixels for batch in batches))
    seen: list[Sample] = []
    candidates: list[Candidates] = []
    detections: dict[str, list[Detections]] = {member.name: [] for member in members}
    features: list[Array] = []
    broken: dict[str, str] = {}
    done = 0
    for chunk in _decoded(samples, longest):
        broken |= {sample.file_name: str(image) for sample, image in chunk if isinstance(image, InputError)}
        held = [replace(sample, pixels=image) for sample, image in chunk if not isinstance(image, InputError)]
        if held:
            found: dict[str, Mapping[int, Detections]] = {}
            for own in views.values():
                found |= _predict(own, held, batch_size)
            features.append(encode(np.stack([_square(sample.pixels) for sample in held])))
            for sample in held:
                each = [member.calibrated(found[member.name][sample.id]) for member in members]
                candidates.append(find_candidates(each))
                for member, one in zip(members, each, strict=True):
                    own_one = found[member.name][sample.id]
                    detections[member.name].append(own_one[one.scores >= LEAST_SCORE])
            seen += [replace(sample, pixels=None) for sample in held]
        done += len(chunk)
        progress(done / len(samples))
    return CommitteePredictions(
        tuple(seen),
        tuple(candidates),
        {name: tuple(each) for name, each in detections.items()},
        np.concatenate(features) if features else np.zeros((0, 0), np.float32),
        broken,
    )


def _predict(own: Sequence[Member], held: Sequence[Sample], batch_size: int) -> dict[str, Mapping[int, Detections]]:
    """{member: {image id: detections}} of the members that have one network."""
    network = own[0].network()
    by_view = predict_images(
        network.detect,
        held,
        network.classes,
        image_size=network.image_size,
        stride=network.stride,
        views=[member.view for member in own],
        batch_size=batch_size,
    )
    return {member.name: by_view[member.view] for member in own}


def _square(pixels: ImageArray | None) -> ImageArray:
    """The image as a square of SIDE pixels, as the encoder sees it."""
    assert pixels is not None
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _decoded(samples: Sequence[Sample], longest: int) -> Iterator[list[tuple[Sample, ImageArray | InputError]]]:
    """Chunks of images, no side longer than `longest`; threads decode the next chunk while the caller works on one."""

    def load(sample: Sample) -> ImageArray | InputError:
        try:
            return load_sample(sample, longest=longest)
        except InputError as error:
            return error

    chunks = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
    with closing(prefetched(chunks, load)) as loaded:
        for chunk, images in zip(chunks, loaded, strict=True):
            yield list(zip(chunk, images, strict=True))
