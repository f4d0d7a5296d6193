"""Campaigns on the same data side by side, and how certain the difference between them is.

Two campaigns are compared on the images that both held out, since neither was trained on them, by the paired bootstrap of
`score`. Each ensemble was chosen on its held-out images, so its score there is slightly optimistic; the nested
cross-validation score is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.bootstrap import Difference, bootstrap_difference
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions
from foldfuse.reporting.campaign_page import template
from foldfuse.reporting.leaderboard import leaderboard_chart
from foldfuse.storage.notes import Notes, read_notes, read_snapshot
from foldfuse.system.durations import format_duration

METRICS = ("ap50", "ap")
FACTS = (
    "deadline",
    "time used",
    "members fused",
    "metric",
    "AP50 out-of-fold",
    "AP out-of-fold",
    "nested score",
    "best single AP50",
    "gain of crop rescoring",
    "leaderboard",
)


@dataclass(frozen=True, eq=False)
class ComparedCampaign:
    """A campaign in a comparison: its folder, its name in the tables, its ledger's facts and the notes of its users."""

    folder: Path
    name: str
    facts: Mapping[str, Any]
    noted: Notes


@dataclass(frozen=True)
class ScoreDifference:
    """Scores of two campaigns by one metric on the `num_images` that both held out, and their difference."""

    num_images: int
    first: float
    second: float
    difference: Difference  # second - first


@dataclass(frozen=True, eq=False)
class Comparison:
    """Campaigns on the same data.

    Attributes:
        campaigns: the first is the one that the others are compared with.
        differences: {name of another campaign: its differences from the first, by AP50 and by AP}.
        warnings: sentences on what could not be compared.
    """

    campaigns: tuple[ComparedCampaign, ...]
    differences: Mapping[str, Sequence[ScoreDifference]]
    warnings: tuple[str, ...]

    @property
    def title(self) -> str:
        """The title of the differences."""
        return f"Difference from {self.campaigns[0].name} (held-out images of both, 1000 bootstrap resamples)"

    def fact_rows(self) -> list[list[str]]:
        """A row of cells for each of the FACTS: its name, then the value of each campaign."""
        return [list(row) for row in zip(FACTS, *map(_facts, self.campaigns), strict=True)]

    def difference_rows(self) -> list[list[str]]:
        """A row of cells for each number: its name, then the value of each campaign after the first."""
        first, names = self.campaigns[0].name, ["images in common"]
        columns = [[str(its[0].num_images)] for its in self.differences.values()]
        for k, metric in enumerate(METRICS):
            name = metric.upper()
            names += [f"{name} of {first}", name, f"{name} difference", "95 % interval", "resamples better"]
            for column, its in zip(columns, self.differences.values(), strict=True):
                one, resampled = its[k], its[k].difference
                column += [f"{one.first:.4f}", f"{one.second:.4f}", f"{one.second - one.first:+.4f}"]
                column += [f"{resampled.low:+.4f} to {resampled.high:+.4f}", f"{100 * resampled.prob_better:.1f} %"]
        return [list(row) for row in zip(names, *columns, strict=True)]


def compare_campaigns(folders: Sequence[Path]) -> Comparison:
    """The Comparison of campaigns on the same data; the first is the one that the others are compared with.

    Raises:
        InputError: fewer than two folders, one of them twice, a folder without a campaign, or different data.
    """
    warnings: list[str] = []
    first, *others = campaigns = _read_campaigns(folders, warnings)
    dataset = _dataset(first, warnings)
    differences: dict[str, list[ScoreDifference]] = {}
    for other in others if dataset is not None else ():
        assert dataset is not None
        try:
            differences[other.name] = score_differences(first, other, dataset)
        except InputError as error:
            warnings.append(str(error))
    return Comparison(campaigns, differences, tuple(warnings))


def _read_campaigns(folders: Sequence[Path], warnings: list[str]) -> tuple[ComparedCampaign, ...]:
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < max(2, len(paths)):
        raise InputError("a comparison needs different campaigns. Give two or more folders, each once.")
    same_names = len({path.name for path in paths}) < len(paths)
    campaigns = tuple(
        ComparedCampaign(path, str(given) if same_names else path.name, read_snapshot(path), read_notes(path, warnings))
        for given, path in zip(folders, paths, strict=True)
    )
    first = campaigns[0]
    for other in campaigns[1:]:
        if _fingerprint(other) != _fingerprint(first):
            raise InputError(
                f"{other.folder} is a campaign on {other.facts['data']} ({_fingerprint(other)}), and {first.folder} one on "
                f"{first.facts['data']} ({_fingerprint(first)}): other images, boxes or classes. Compare campaigns on the "
                "same data."
            )
    return campaigns


def score_differences(first: ComparedCampaign, second: ComparedCampaign, dataset: Dataset) -> list[ScoreDifference]:
    """By AP50 and by AP, the difference of the second campaign from the first on the images that both held out.

    Raises:
        InputError: a campaign has no held-out predictions yet, or the two held out no image in common.
    """
    a, b = _held_out_predictions(first, dataset), _held_out_predictions(second, dataset)
    common = [i for i in a if i in b]
    if not common:
        raise InputError(
            f"{second.name} and {first.name} held out no image in common ({len(b)} and {len(a)} of their own): their "
            "difference has no interval. Campaigns with the same --folds file hold out the same images."
        )
    images, a, b = dataset.subset(common), a.select_images(common), b.select_images(common)
    return [
        ScoreDifference(
            len(common),
            measure(a, images, metric=metric),
            measure(b, images, metric=metric),
            bootstrap_difference(b, a, images, metric),
        )
        for metric in METRICS
    ]


def comparison_page(comparison: Comparison) -> str:
    """The comparison as one page of HTML."""
    campaigns = comparison.campaigns
    return template("compare.html").render(
        names=[campaign.name for campaign in campaigns],
        data=campaigns[0].facts["data"],
        rows=comparison.fact_rows(),
        differences_title=comparison.title,
        differences=list(comparison.differences),
        difference_rows=comparison.difference_rows(),
        chart=leaderboard_chart({campaign.name: campaign.noted.scores for campaign in campaigns}),
        noted=[(campaign.name, campaign.noted.notes) for campaign in campaigns if campaign.noted.notes],
        warnings=comparison.warnings,
    )


def _facts(campaign: ComparedCampaign) -> list[str]:
    """The values of a campaign, in the order of FACTS."""
    facts, scored = campaign.facts, campaign.noted.scores
    fused: Mapping[str, Any] = facts.get("fused") or {}
    members: Sequence[Mapping[str, Any]] = facts.get("members") or []
    best = next((m for m in members if m["name"] == facts.get("best_member")), None)
    rescoring = facts.get("rescoring")
    return [
        format_duration(facts["deadline_seconds"]),
        format_duration(facts["seconds_used"]),
        f"{sum(bool(m.get('weight')) for m in members)} of {len(members)}",
        str(fused.get("metric", "ap50")).upper(),
        _score(fused.get("ap50")),
        _score(fused.get("ap")),
        _score(fused.get("nested")),
        f"{_score(best.get('ap50'))} {best['name']}" if best else "–",
        f"{rescoring['after'] - rescoring['before']:+.4f}" if rescoring else "–",
        f"{scored[-1].leaderboard:.4f} (submission {scored[-1].submission})" if scored else "–",
    ]


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _fingerprint(campaign: ComparedCampaign) -> str:
    """The fingerprint of the annotated data at the start of the campaign."""
    return str(campaign.facts["fingerprints"]["data"])


def _dataset(campaign: ComparedCampaign, warnings: list[str]) -> Dataset | None:
    """The annotated images of a campaign; None and a warning for images that are gone or changed."""
    path = Path(campaign.facts["data"])
    try:
        dataset = read(path)
        if dataset.fingerprint != _fingerprint(campaign):
            raise InputError(f"{path}: has changed since the campaigns started.")
    except InputError as error:
        warnings.append(f"{error} Without the annotations the differences have no interval.")
        return None
    return dataset


def _held_out_predictions(campaign: ComparedCampaign, dataset: Dataset) -> Predictions:
    path = campaign.folder / "fused_oof.parquet"
    if not path.is_file():
        raise InputError(f"{campaign.name} has no submission yet: its difference has no interval.")
    return read_predictions(path, dataset)
