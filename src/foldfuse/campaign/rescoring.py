"""Crop rescoring of a campaign: a classifier of crops rescores the submission where that helps out-of-fold."""

from __future__ import annotations

import time

import numpy as np

from foldfuse.campaign import constants as c
from foldfuse.campaign.current_state import delivery_seconds, reserves_of
from foldfuse.campaign.custom_metric import choice_seconds
from foldfuse.campaign.planning.allocation import object_crop_count
from foldfuse.campaign.submissions import MemberPredictions, write_submission_folder
from foldfuse.campaign.task import Task
from foldfuse.data.crops import Crops, detection_crops, object_crops
from foldfuse.ensemble.ensemble import read_ensemble
from foldfuse.ensemble.gain import interval_text
from foldfuse.evaluation.coco import score_predictions
from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.evaluation.diagnosis import class_error_cost
from foldfuse.formats.predictions import read_predictions
from foldfuse.inference import rescoring
from foldfuse.inference.crop_encoder import CropEncoder, features
from foldfuse.inference.crop_features import imagenet_encoder
from foldfuse.inference.rescorer import ENCODING_SHARE, apply_rescorer
from foldfuse.storage.ledger import Ledger

_NO_TIME = "Crop rescoring was started, but there is no time left to rescore the test images. The submission stays."


class _TooSlow(Exception):
    """The rescorer would not be ready in time."""


def rescore_submission(task: Task, ledger: Ledger, members: MemberPredictions) -> None:
    """Rescores the current submission, and submits the result where a gain is likely.

    The classifier trains on all annotated images; each held-out image is scored by a classifier trained without it
    (cross-validation).
    """
    latest = ledger.latest_submission()
    if latest is None or latest[2].get("rescoring"):
        return
    number, score_before, facts = latest
    folder = ledger.folder / "submissions" / str(number)
    images = task.val_in(*(facts.get("folds") or task.folds))
    val = read_predictions(folder / "fused_oof.parquet", images)
    test = read_predictions(folder / "fused_test.parquet", task.test)
    if len(images) < rescoring.PARTS or not len(val.boxes):
        return  # too few images to tell a gain from chance
    if choice_seconds(task.metric, images) > (ledger.remaining - delivery_seconds(ledger)) / 2:
        ledger.log(_NO_TIME)
        return
    metric, pace = metric_label(task.metric), _Pace(task, ledger, num_images=len(images))

    with ledger.timed("crop rescoring", "fuse"):
        try:
            result = rescoring.fit_rescorer(
                val,
                task.labeled,
                encoder=imagenet_encoder(device=task.device),
                metric=task.metric,
                max_detections=task.crops_per_image,
                max_objects=c.RESCORING_TRAIN_CROPS,
                seed=task.seed,
                progress=pace.check,
            )
        except _TooSlow:
            ledger.log(_NO_TIME)
            return
        if not result.accepted or result.after <= score_before:
            ledger.log(
                f"Crop rescoring brings no likely gain: {metric} {score_before:.3f} before and {result.after:.3f} after it "
                "out-of-fold. The submission stays."
            )
            return
        if pace.is_too_slow(1.0):
            ledger.log(_NO_TIME)
            return
        rescored = apply_rescorer(result.rescorer, test, task.test_samples)
    with ledger.timed("submit", "submit"):
        score = score_predictions(result.predictions, images)
        fused = {**facts["fused"], **score.to_dict(), "value": result.after}  # nested score and interval: of the fusion
        new_facts = {**facts, "rescoring": result.to_dict(), "fused": fused}
        ensemble = read_ensemble(folder / "ensemble.json")
        write_submission_folder(
            result.predictions,
            rescored,
            ensemble,
            result.after,
            new_facts,
            task=task,
            ledger=ledger,
            rescorer=result.rescorer,
        )
    members.score = result.after
    gain = interval_text(result.gain.value, result.gain.low, result.gain.high)
    ledger.log(
        f"Crop rescoring lifts {metric} from {score_before:.3f} to {result.after:.3f} out-of-fold. In nested cross-validation it "
        f"gains {gain} over the fusion. Submitted with crop rescoring."
    )


def measure_class_errors(task: Task, ledger: Ledger) -> None:
    """Measures and records what wrong classes cost the current submission, and says where they cost too little to rescore."""
    latest = ledger.latest_submission()
    assert latest is not None, "a first submission comes before"
    if latest[2].get("rescoring"):
        return
    images = task.val_in(*(latest[2].get("folds") or task.folds))
    val = read_predictions(ledger.folder / "submissions" / str(latest[0]) / "fused_oof.parquet", images)
    if not len(val.boxes) or not images.num_boxes:
        return  # nothing to find right or wrong
    before, cost = ledger.get("class_error_cost"), class_error_cost(val, images)
    ledger.set(class_error_cost=cost)
    if cost < c.MIN_CLASS_ERROR_COST and (before is None or before >= c.MIN_CLASS_ERROR_COST):
        ledger.log(
            f"Wrong classes cost AP50 {cost:.3f} on the held-out images, less than {c.MIN_CLASS_ERROR_COST:g}: so far no time is "
            "kept for crop rescoring."
        )


def measure_crops(task: Task, ledger: Ledger) -> None:
    """Measures and records the seconds of a crop on this machine, for the time that is reserved for crop rescoring.

    A detection's crop costs less than an object's where an image has few objects, since each image is decoded once.
    """
    latest = ledger.latest_submission()
    assert latest is not None, "a first submission comes before"
    images = task.val_in(*(latest[2].get("folds") or task.folds))
    val = read_predictions(ledger.folder / "submissions" / str(latest[0]) / "fused_oof.parquet", images)
    detections, _ = detection_crops(val, images.samples, max_per_image=task.crops_per_image)
    objects, encoder = object_crops(task.train_in(task.folds[0])), imagenet_encoder(device=task.device)
    with ledger.timed("measure crop rescoring", "setup"):
        features(_first(objects, c.WARM_UP_CROPS), encoder)
        of_object = _crop_seconds(objects, encoder)
        of_detection = _crop_seconds(detections, encoder) if len(detections) else of_object
    ledger.set(crop_seconds=of_detection, object_crop_seconds=of_object)


def _crop_seconds(crops: Crops, encoder: CropEncoder) -> float:
    """Seconds to plan with for each of these crops, as the first ones show."""
    timed = _first(crops, c.MEASURED_CROPS)
    start = time.monotonic()
    features(timed, encoder)
    return c.CROP_SAFETY * (time.monotonic() - start) / len(timed)


def _first(crops: Crops, number: int) -> Crops:
    """The first crops, as many as `number`."""
    return crops.filter(np.arange(len(crops)) < number)


class _Pace:
    """Compares the pace of crop rescoring with the remaining time.

    Args:
        task, ledger: of the campaign.
        num_images: held-out images that are rescored.
    """

    def __init__(self, task: Task, ledger: Ledger, *, num_images: int) -> None:
        self._ledger, reserves = ledger, reserves_of(ledger)
        self._delivery = reserves.delivery
        self._num_objects = object_crop_count(task.labeled.num_boxes)
        self._num_detections = task.crops_per_image * num_images
        self._object_crop, self._crop = reserves.object_crop, reserves.crop
        self._test = task.crops_per_image * len(task.test_samples) * reserves.crop
        # Share done and seconds left at the first call; earlier work is not part of the pace.
        self._first: tuple[float, float] | None = None

    def check(self, share: float) -> None:
        """Raises _TooSlow where the rest of the training and the test images would take longer than the remaining time."""
        if self.is_too_slow(share):
            raise _TooSlow

    def is_too_slow(self, share: float) -> bool:
        """Whether the rest would take longer than the remaining time, when a share of the training is done.

        A pace measured early may be that of a moment, so that early on the rest may seem to take somewhat longer.
        """
        remaining = self._ledger.remaining
        self._first = self._first or (share, remaining)
        planned, slowdown = self._planned(share) - self._planned(self._first[0]), 0.0
        if share - self._first[0] >= c.RESCORING_PACE_SHARE:
            slowdown = (self._first[1] - remaining) / planned
        rest = slowdown * (self._planned(1.0) - self._planned(share) + self._test)
        return rest > (1 + c.EARLY_PACE_TOLERANCE * (1 - share)) * (remaining - self._delivery)

    def _planned(self, share: float) -> float:
        """Planned seconds of a share of the training: objects come first, then detections, then the probes."""
        encoded = min(1.0, share / ENCODING_SHARE) * (self._num_objects + self._num_detections)
        objects = min(encoded, self._num_objects)
        crops = objects * self._object_crop + (encoded - objects) * self._crop
        every = self._num_objects * self._object_crop + self._num_detections * self._crop
        return crops + max(0.0, share - ENCODING_SHARE) / ENCODING_SHARE * every
