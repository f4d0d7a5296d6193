"""Chooses the images to label next: the members disagree on them, their classes are difficult, and they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foldfuse.data.content_hashes import repeated_images, same_images
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Array, Detections, Predictions
from foldfuse.ensemble.disagreement import Candidates, class_difficulties
from foldfuse.ensemble.picking import pick
from foldfuse.errors import InputError, counted
from foldfuse.fusion.methods import wbf
from foldfuse.inference.base_predictor import Predictor
from foldfuse.inference.committee import CommitteePredictions, Member, committee, predict_committee
from foldfuse.inference.held_out_evidence import HeldOutEvidence
from foldfuse.inference.image_features import image_encoder
from foldfuse.inference.views import BATCH_SIZE
from foldfuse.system.progress import Progress, no_progress, span

COMMITTEE_SHARE = 0.9  # of the progress; the rest is the ensemble's boxes on the picked images
APART = 0.25  # difference of two members' probabilities of an object that counts as a disagreement
EXPECTED = 0.1  # objects of a class that are fewer are not named


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """The images to choose from, and those that are left out.

    Attributes:
        dataset: the images to choose from.
        num_labelled: images that are among the labelled data, or that a member has learnt from.
        num_repeated: further images that are byte-identical to another one.
    """

    dataset: Dataset
    num_labelled: int = 0
    num_repeated: int = 0

    def __str__(self) -> str:
        """A sentence on the images that are left out; "" where there are none."""
        reasons = [
            f"{self.num_labelled:,} that are labelled already" * bool(self.num_labelled),
            f"{self.num_repeated:,} that are copies of others" * bool(self.num_repeated),
        ]
        listed = " and ".join(filter(None, reasons))
        return (
            f"{self.dataset.source}: left out are {listed}; {counted(len(self.dataset), 'image')} to choose from."
            * bool(listed)
        )


def unlabelled_images(dataset: Dataset, predictors: Sequence[Predictor], evidence: HeldOutEvidence) -> Unlabelled:
    """The images of `dataset` without those that are labelled or learnt, and without copies, compared by content.

    Raises:
        InputError: no image is left, or a file cannot be read.
    """
    samples = list(dataset.samples)
    taken = {i for predictor in predictors for i in predictor.learnt_ids(dataset)}
    for labelled in evidence.labelled:
        known = [sample for sample in labelled.samples if sample.annotations is not None]
        taken |= {sample.id for sample in same_images(samples, known)}
    left = [sample for sample in samples if sample.id not in taken]
    if not left:
        raise InputError(
            f"{dataset.source}: all of its {counted(len(samples), 'image')} are labelled already: they are among the images of "
            f"{predictors[0].source}. Give images that nobody has labelled."
        )
    repeated = {sample.id for sample in repeated_images(left)}
    kept = [sample.id for sample in left if sample.id not in repeated]
    return Unlabelled(dataset.subset(kept), len(taken), len(repeated))


@dataclass(frozen=True, eq=False)
class NextChoice:
    """The picked images.

    Attributes:
        samples: the picked images, the first to label first.
        scores: (P,) the weighted disagreement of each, in bits.
        candidates: the objects that the members suspect in each.
        layers: {member: its predictions of the picked images}.
        fused: the predictions of the ensemble.
        difficulties: (K,) of the classes.
        members: the members.
        num_images: the number of images that were looked at.
        broken: {file name of an image that cannot be decoded: why}.
    """

    samples: tuple[Sample, ...]
    scores: Array
    candidates: tuple[Candidates, ...]
    layers: Mapping[str, Predictions]
    fused: Predictions
    difficulties: Array
    members: tuple[Member, ...]
    num_images: int
    broken: Mapping[str, str]

    def expected(self, position: int) -> dict[str, float]:
        """{class: the number of objects that the members expect in a picked image}, the most first."""
        one, classes = self.candidates[position], self.fused.classes
        sums = np.bincount(one.labels, weights=one.means, minlength=len(classes))
        order = np.argsort(-sums, kind="stable")
        return {classes[k]: round(float(sums[k]), 2) for k in order if sums[k] >= EXPECTED}

    def reason(self, position: int) -> tuple[str, tuple[str, ...]]:
        """The greatest disagreement on a picked image in words, and the members that suspect more there than another."""
        one = self.candidates[position]
        if not len(one.labels):
            return "nothing is found; it looks unlike the others", ()
        best = int(one.disagreements(self.difficulties).argmax())
        scores, name = one.probabilities[best], self.fused.classes[one.labels[best]]
        names = [member.name for member in self.members]
        high, low = int(scores.argmax()), int(scores.argmin())
        if scores[high] - scores[low] >= APART:
            found = [names[i] for i in np.flatnonzero(scores >= scores[low] + APART)]
            text = f"{name}: {names[high]} says {scores[high]:.2f}, {names[low]} {_said(scores[low])}"
        else:
            found, text = [], f"{name}: all members say about {scores.mean():.2f}"
        others = int((one.disagreements(self.difficulties) > 0).sum()) - 1
        return text + (f"; {counted(others, 'more suspected object')}" if others else ""), tuple(found)


def _said(score: float) -> str:
    return f"{score:.2f}" if score else "nothing"


def choose_next(
    predictors: Sequence[Predictor],
    dataset: Dataset,
    evidence: HeldOutEvidence,
    *,
    number: int,
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    progress: Progress = no_progress,
) -> NextChoice:
    """The images to label next; the same images and predictors give the same choice.

    Args:
        predictors: a campaign, or runs.
        dataset: the images to choose from, opened, with the classes of the predictors.
        evidence: on the predictors.
        number: how many images to pick; all where there are fewer.
        device: the device of the network that compares images.
        batch_size: images of 256 px at a time; fewer larger ones.
        progress: gets the finished share of the work.

    Raises:
        InputError: no image can be decoded, or the predictors do not fit together.
    """
    members = committee(predictors, evidence.calibrations)
    encode = image_encoder(device)
    seen = predict_committee(
        members, dataset.samples, encode, batch_size=batch_size, progress=span(progress, 0.0, COMMITTEE_SHARE)
    )
    if not seen.samples:
        raise InputError(f"{next(iter(seen.broken.values()))} No image of {dataset.source} can be decoded.")
    difficulties = class_difficulties(dataset.classes, evidence.average_precisions)
    scores = np.array([float(one.disagreements(difficulties).sum()) for one in seen.candidates])
    picked = pick(scores, seen.features, number)
    samples = tuple(seen.samples[i] for i in picked)
    fused = _fused(predictors, samples, batch_size, span(progress, COMMITTEE_SHARE, 1.0))
    progress(1.0)
    return NextChoice(
        samples,
        scores[picked],
        tuple(seen.candidates[i] for i in picked),
        {member.name: _layer(seen, member.name, picked, dataset) for member in members},
        fused,
        difficulties,
        members,
        len(seen.samples),
        seen.broken,
    )


def _layer(seen: CommitteePredictions, name: str, picked: Array, dataset: Dataset) -> Predictions:
    """The predictions of a member on the picked images."""
    found: dict[int, Detections] = {seen.samples[i].id: seen.detections[name][i] for i in picked}
    return Predictions.of(found, dataset.classes)


def _fused(
    predictors: Sequence[Predictor], samples: Sequence[Sample], batch_size: int, progress: Progress
) -> Predictions:
    """The predictions of an ensemble on samples; those of several predictors are fused by WBF."""
    parts = []
    for i, predictor in enumerate(predictors):
        share = span(progress, i / len(predictors), (i + 1) / len(predictors))
        parts.append(
            predictor.predict_samples(samples, views=predictor.parse_views(()), batch_size=batch_size, progress=share)
        )
    return parts[0] if len(parts) == 1 else wbf(parts)


def without_unusable(dataset: Dataset, problems: Mapping[int, str]) -> Dataset:
    """The dataset without images that cannot be opened.

    Raises:
        InputError: none is left.
    """
    if problems and len(problems) == len(dataset):
        first = next(iter(problems.values()))
        raise InputError(f"{first} No image of {dataset.source} can be used.")
    return replace(dataset, samples=tuple(s for s in dataset.samples if s.id not in problems))
