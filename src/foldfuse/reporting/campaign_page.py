"""The HTML page on a campaign's folder, one file that opens anywhere without network or script.

The page shows the folder at that moment, so a running campaign writes it again and again. A section without data is left
out, and warnings at the end name files that cannot be read.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from foldfuse.data.dataset import Dataset
from foldfuse.data.folds import read_folds
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.gain import interval_text
from foldfuse.errors import InputError
from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.evaluation.thresholds import THRESHOLDS, read_thresholds
from foldfuse.formats.predictions import read_predictions
from foldfuse.provenance import origins_text
from foldfuse.reporting.charts import Bar, Chart, bar_chart
from foldfuse.reporting.dataset_stats import dataset_stats
from foldfuse.reporting.error_analysis import analyse_errors, submission_examples
from foldfuse.reporting.leaderboard import leaderboard_chart
from foldfuse.reporting.learning_charts import loss_chart, score_chart
from foldfuse.reporting.next_commands import next_steps
from foldfuse.reporting.page_template import installed_versions, moment_text, template
from foldfuse.reporting.records import CampaignRecord, read_campaign_record, read_or_warn
from foldfuse.reporting.timeline import timeline
from foldfuse.storage.notes import read_notes
from foldfuse.storage.run import Run
from foldfuse.system.atomic_files import write_text

NESTED = "fused, nested cross-validation"
# Measured campaigns that stated a gain, and those of them whose interval held the gain on unseen images: benchmarks/honesty.md
INTERVALS_MEASURED, INTERVALS_HELD = 38, 31
_SCORE_THRESHOLD = 0.3  # for test images of a campaign without held-out predictions to choose a threshold on


def write_campaign_page(folder: Path, *, out: Path | None = None) -> Path:
    """Write the page on a campaign's folder, and return the path of the page.

    Args:
        folder: the folder of a campaign.
        out: HTML file to write; `report.html` in the folder by default.

    Raises:
        InputError: the folder does not exist, or holds no campaign; `out` cannot be written.
    """
    folder = Path(folder)
    out = folder / "report.html" if out is None else Path(out)
    record = read_campaign_record(folder)
    warnings = list(record.warnings)
    ignore_orientation = record.ignore_orientation
    read_data = partial(read, images=record.images, ignore_orientation=ignore_orientation)
    dataset = read_or_warn(read_data, record.data, warnings)
    # a campaign without test images submits its held-out fold
    test = dataset
    if record.test:
        test = read_or_warn(partial(read_data, annotated=False), record.test, warnings)
    if test is not None and not test.classes and dataset is not None:
        test = test.with_classes(dataset.classes, dataset.category_ids)
    folds = read_or_warn(read_folds, _existing(folder / "folds.json"), warnings)
    held_out = _read_predictions(folder / "fused_oof.parquet", dataset, warnings)
    submitted = _read_predictions(folder / "fused_test.parquet", test, warnings)

    errors = None
    if dataset and held_out:
        errors = analyse_errors(dataset, held_out, warnings, ignore_orientation=ignore_orientation)
    threshold = errors.examples.threshold if errors else _SCORE_THRESHOLD
    examples = None
    if test and submitted:
        examples = submission_examples(test, submitted, threshold, warnings, ignore_orientation=ignore_orientation)
    user_notes, submissions = read_notes(folder, warnings), _submissions(folder, out)
    page = template("report.html").render(
        record=record,
        name=folder.resolve().name,
        data_name=data_name(record.data) if record.data else None,
        summary=summary(record),
        intervals={"measured": INTERVALS_MEASURED, "held": INTERVALS_HELD},
        submissions=submissions,
        noted=user_notes,
        leaderboard=leaderboard_chart({"": user_notes.scores}),
        timeline=timeline(record),
        score_charts=_score_charts(record),
        members=sorted(record.members, key=lambda m: -1.0 if m.ap50 is None else m.ap50, reverse=True),
        unfinished=record.unfinished,
        advice=next_steps(record, errors, user_notes),
        learning_curves=[chart for chart in (loss_chart(record.curves), score_chart(record.curves)) if chart],
        errors=errors,
        thresholds=read_or_warn(read_thresholds, _existing(folder / THRESHOLDS), warnings),
        data=dataset_stats(dataset, folds.fold_of if folds else {}) if dataset else None,
        test_examples=examples,
        num_test_images=len(submitted) if submitted else None,
        origin=_origin(record),
        versions=installed_versions(),
        warnings=warnings,
    )
    write_text(out, page)
    return out


def summary(record: CampaignRecord) -> str:
    """The result in one or two sentences."""
    fused = record.fused
    if fused is None or fused.value is None:
        if record.state == "running":
            return "The campaign is running; it has no fused predictions yet."
        return "No fused score: the campaign ended before its first fusion."
    number = sum(m.weight is not None and m.weight > 0 for m in record.members)
    subject = f"{number} members fused" if number > 1 else "The fused predictions"
    rescoring = record.rescoring
    subject += " and rescored by their crops" if rescoring else ""
    text = f"{subject} reach {metric_label(fused.metric)} {fused.value:.3f} on held-out images."
    if fused.gain is not None:
        text += f" {fused.gain.sentence()}"
    if rescoring and rescoring.gain:
        gain = interval_text(rescoring.gain.value, rescoring.gain.low, rescoring.gain.high)
        text += f" Crop rescoring then gains {gain} over the fusion, also in nested cross-validation."
    return text


def data_name(path: Path) -> str:
    """The last parts of a dataset's path, which tell it from other datasets: "trash/data/train.json"."""
    return "/".join(path.parts[-3:]).removeprefix("//").removeprefix("/")


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _read_predictions(path: Path, dataset: Dataset | None, warnings: list[str]) -> Predictions | None:
    """The predictions; None without a file or a dataset, None and a warning for an unreadable file."""
    if dataset is None:
        return None
    return read_or_warn(partial(read_predictions, dataset=dataset), _existing(path), warnings)


def _submissions(folder: Path, out: Path) -> list[tuple[str, str, int]]:
    """(name, address relative to the page, bytes) of the submission files, the CSV first."""
    files = sorted(p for p in folder.glob("submission*") if p.suffix in (".csv", ".json"))
    start = out.resolve().parent
    return [(p.name, os.path.relpath(p.resolve(), start).replace(os.sep, "/"), p.stat().st_size) for p in files]


def _score_charts(record: CampaignRecord) -> tuple[Chart, ...]:
    """Bars of AP50 and of AP: the fused predictions, then every member, best first."""
    charts = []
    for key, title, meaning in (("ap50", "AP50", "at IoU 0.50"), ("ap", "AP", "averaged over IoU 0.50 to 0.95")):
        ranked = [(value, m.name) for m in record.members if (value := getattr(m, key)) is not None]
        bars = [Bar(name, value, f"{value:.3f}") for value, name in sorted(ranked, key=lambda pair: -pair[0])]
        fused, gain = getattr(record.fused, key, None), record.fused.gain if record.fused else None
        if gain is not None and gain.metric == key:
            interval = (gain.baseline_score + gain.low, gain.baseline_score + gain.high)
            bars.insert(0, Bar(NESTED, gain.nested, f"{gain.nested:.3f}", strong=True, interval=interval))
        if fused is not None:
            bars.insert(0, Bar("fused", fused, f"{fused:.3f}", strong=True))
        if bars:
            values = ", ".join(f"{b.label} {b.text}" for b in bars)
            svg = bar_chart(bars, label=f"{title} of each member: {values}.")
            caption = f"Average precision {meaning}, on held-out images; members in their plain view."
            if len({m.fold for m in record.members}) > 1:
                caption += " Each member is scored on its own fold."
            if gain is not None and gain.metric == key:
                caption += (
                    f" The whisker is the 95 % interval of the gain over the best single member, {gain.baseline} "
                    f"({gain.baseline_score:.3f}), added to that score."
                )
            charts.append(Chart(title, svg, caption))
    return tuple(charts)


def _origin(record: CampaignRecord) -> list[tuple[str, object]]:
    """(name, value) of the inputs, the times and the machine, as far as they are known."""
    moments = {"started": record.started, "finished": record.finished}
    values = {
        "data": record.data,
        "test": record.test,
        "seed": record.seed,
        **{name: moment and moment_text(moment) for name, moment in moments.items()},
        "device": record.device,
        **record.machine,
        "peak memory": record.peak_memory_mb and f"{record.peak_memory_mb:.0f} MB",
    }
    for member in record.members:
        run = Run(record.folder / "members" / member.name)
        try:
            values[f"initial weights of {member.name}"] = origins_text(run.metadata.weights) if run.exists else None
        except InputError:  # a run.json that cannot be read is no reason to write no page
            continue
    return [(name, value) for name, value in values.items() if value is not None]
