"""Compares campaigns on the same data, with a bootstrap interval of each difference in score.

Two campaigns are compared on the images that both held out, which neither was trained on, by the paired bootstrap of
`score`. Each ensemble was chosen on its held-out images, so its score there is slightly optimistic; the nested
cross-validation score is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.gain import interval_text
from foldfuse.errors import InputError
from foldfuse.evaluation.bootstrap import SAMPLES, Difference, bootstrap_difference
from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions
from foldfuse.reporting.charts import Chart
from foldfuse.reporting.interval_chart import Interval, interval_chart
from foldfuse.reporting.leaderboard import leaderboard_chart
from foldfuse.reporting.page_template import template
from foldfuse.reporting.records import CampaignRecord, record_from
from foldfuse.reporting.score_records import FusedScore
from foldfuse.storage.notes import Notes, read_notes, read_snapshot
from foldfuse.system.durations import format_duration

METRICS = ("ap50", "ap")  # and one that the user names
FACTS = (
    "deadline",
    "time used",
    "members fused",
    "metric",
    "AP50 out-of-fold",
    "AP out-of-fold",
    "nested score",
    "best single member",
    "nested score minus best single",
    "gain of crop rescoring, nested",
    "leaderboard",
)


@dataclass(frozen=True, eq=False)
class ComparedCampaign:
    """A campaign in a comparison.

    Attributes:
        folder: the folder of the campaign.
        name: the name in the tables.
        data: annotated images.
        record: the facts of the campaign.
        notes: the notes of its users.
    """

    folder: Path
    name: str
    data: Path
    record: CampaignRecord
    notes: Notes

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the annotated images at the start of the campaign."""
        return self.record.fingerprints["data"]


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
        campaigns: the campaigns; each is compared with the first.
        differences: {name of another campaign: its differences from the first, by each metric}.
        warnings: sentences on what could not be compared.
        metrics: the metrics of the differences.
    """

    campaigns: tuple[ComparedCampaign, ...]
    differences: Mapping[str, Sequence[ScoreDifference]]
    warnings: tuple[str, ...]
    metrics: tuple[str, ...] = METRICS

    @property
    def title(self) -> str:
        """The title of the differences."""
        samples = min((s.difference.samples for found in self.differences.values() for s in found), default=SAMPLES)
        return f"Difference from {self.campaigns[0].name} (held-out images of both, {samples} bootstrap resamples)"

    def fact_rows(self) -> list[list[str]]:
        """A row of cells for each of the FACTS: its name, then the value of each campaign."""
        return [list(row) for row in zip(FACTS, *map(_facts, self.campaigns), strict=True)]

    def difference_rows(self) -> list[list[str]]:
        """A row of cells for each quantity: its name, then the value of each campaign after the first."""
        first, names = self.campaigns[0].name, ["images in common"]
        for metric in map(metric_label, self.metrics):
            names += [f"{metric} of {first}", metric, f"{metric} difference", "95 % interval", "resamples better"]
        columns = map(_difference_cells, self.differences.values())
        return [list(row) for row in zip(names, *columns, strict=True)]


def compare_campaigns(folders: Sequence[Path], *, metric: str | None = None) -> Comparison:
    """The Comparison of campaigns on the same data; each campaign is compared with the first.

    Args:
        folders: of the campaigns.
        metric: a further metric to compare by, besides AP50 and AP.

    Raises:
        InputError: fewer than two folders, one of them twice, a folder without a campaign, or different data.
    """
    metrics = tuple(dict.fromkeys((*([] if metric is None else [metric]), *METRICS)))
    warnings: list[str] = []
    first, *others = campaigns = _read_campaigns(folders, warnings)
    dataset = _dataset(first, warnings)
    differences: dict[str, list[ScoreDifference]] = {}
    for other in others if dataset is not None else ():
        assert dataset is not None
        try:
            differences[other.name] = score_differences(first, other, dataset, metrics)
        except InputError as error:
            warnings.append(str(error))
    return Comparison(campaigns, differences, tuple(warnings), metrics)


def _read_campaigns(folders: Sequence[Path], warnings: list[str]) -> tuple[ComparedCampaign, ...]:
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < max(2, len(paths)):
        raise InputError("a comparison needs different campaigns. Give two or more folders, each once.")
    same_names = len({path.name for path in paths}) < len(paths)
    campaigns = []
    for given, path in zip(folders, paths, strict=True):
        record = record_from(read_snapshot(path))
        if record.data is None or "data" not in record.fingerprints:
            raise InputError(
                f"{path}: does not name its data. Give the folder of a campaign that was not changed by hand."
            )
        name = str(given) if same_names else path.name
        campaigns.append(ComparedCampaign(path, name, record.data, record, read_notes(path, warnings)))
    first = campaigns[0]
    for other in campaigns[1:]:
        if not _is_same_data(first, other):
            raise InputError(
                f"{other.folder} is a campaign on {other.data} ({other.fingerprint}), and {first.folder} one on "
                f"{first.data} ({first.fingerprint}): other images, boxes or classes. Compare campaigns on the same data."
            )
    return tuple(campaigns)


def score_differences(
    first: ComparedCampaign, second: ComparedCampaign, dataset: Dataset, metrics: Sequence[str] = METRICS
) -> list[ScoreDifference]:
    """By each metric, the difference of the second campaign from the first on the images that both held out.

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
        for metric in metrics
    ]


def comparison_page(comparison: Comparison) -> str:
    """The comparison as one page of HTML."""
    campaigns = comparison.campaigns
    return template("compare.html").render(
        names=[campaign.name for campaign in campaigns],
        data=campaigns[0].data,
        rows=comparison.fact_rows(),
        differences_title=comparison.title,
        differences=list(comparison.differences),
        difference_rows=comparison.difference_rows(),
        difference_charts=difference_charts(comparison),
        chart=leaderboard_chart({campaign.name: campaign.notes.scores for campaign in campaigns}),
        noted=[(campaign.name, campaign.notes.notes) for campaign in campaigns if campaign.notes.notes],
        warnings=comparison.warnings,
    )


def difference_charts(comparison: Comparison) -> list[Chart]:
    """For each metric, a chart of the differences from the first campaign with their intervals."""
    charts, first = [], comparison.campaigns[0].name
    for place, metric in enumerate(map(metric_label, comparison.metrics)):
        rows = [
            Interval(f"{name}: {found[place].second:.4f}", one.value, one.low, one.high)
            for name, found in comparison.differences.items()
            for one in [found[place].difference]
        ]
        if rows:
            title = f"{metric} minus that of {first}"
            caption = (
                "Dots right of 0 are better than the first campaign; whiskers are 95 % intervals of the bootstrap."
            )
            charts.append(Chart(title, interval_chart(rows, label=title), caption))
    return charts


def _facts(campaign: ComparedCampaign) -> list[str]:
    """The values of a campaign, in the order of FACTS."""
    record, scores = campaign.record, campaign.notes.scores
    fused = record.fused or FusedScore()
    gain, rescored = fused.gain, record.rescoring.gain if record.rescoring else None
    return [
        _duration(record.deadline_seconds),
        _duration(record.seconds_used),
        f"{sum(bool(m.weight) for m in record.members)} of {len(record.members)}",
        metric_label(fused.metric),
        _score(fused.ap50),
        _score(fused.ap),
        _score(fused.nested),
        f"{fused.best_single[1]:.4f} {fused.best_single[0]}" if fused.best_single else "–",
        interval_text(gain.value, gain.low, gain.high, digits=4) if gain else "–",
        interval_text(rescored.value, rescored.low, rescored.high, digits=4) if rescored else "–",
        f"{scores[-1].leaderboard:.4f} (submission {scores[-1].submission})" if scores else "–",
    ]


def _difference_cells(differences: Sequence[ScoreDifference]) -> list[str]:
    """The values of a campaign's differences from the first, by each metric."""
    cells = [str(differences[0].num_images)]
    for scores in differences:
        resampled = scores.difference
        cells += [f"{scores.first:.4f}", f"{scores.second:.4f}", f"{scores.second - scores.first:+.4f}"]
        cells += [f"{resampled.low:+.4f} to {resampled.high:+.4f}", f"{100 * resampled.prob_better:.1f} %"]
    return cells


def _duration(seconds: float | None) -> str:
    return "–" if seconds is None else format_duration(seconds)


def _is_same_data(first: ComparedCampaign, other: ComparedCampaign) -> bool:
    """Whether two campaigns began with the same data; the data decide where one stored an older kind of fingerprint."""
    if first.fingerprint == other.fingerprint:
        return True
    if ("-" in first.fingerprint) == ("-" in other.fingerprint):
        return False
    dataset = read(first.data, images=first.record.images, ignore_orientation=first.record.ignore_orientation)
    return dataset.has_fingerprint(first.fingerprint) and dataset.has_fingerprint(other.fingerprint)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _dataset(campaign: ComparedCampaign, warnings: list[str]) -> Dataset | None:
    """The annotated images of a campaign; None and a warning for images that are gone or changed."""
    try:
        dataset = read(
            campaign.data, images=campaign.record.images, ignore_orientation=campaign.record.ignore_orientation
        )
        if not dataset.has_fingerprint(campaign.fingerprint):
            raise InputError(f"{campaign.data}: has changed since the campaigns started.")
    except InputError as error:
        warnings.append(f"{error} Without the annotations the differences have no interval.")
        return None
    return dataset


def _held_out_predictions(campaign: ComparedCampaign, dataset: Dataset) -> Predictions:
    path = campaign.folder / "fused_oof.parquet"
    if not path.is_file():
        raise InputError(f"{campaign.name} has no submission yet: its difference has no interval.")
    return read_predictions(path, dataset)
