"""The model card of a published bundle: how to load it, its scores on held-out images, data, licences and limits, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldfuse.errors import counted
from foldfuse.evaluation.coco import SCORE_NAMES
from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.evaluation.record import read_evaluation
from foldfuse.inference.bundle import BundleRecord
from foldfuse.provenance import is_permissive, origins_page
from foldfuse.storage.ledger import is_campaign, snapshot
from foldfuse.storage.run import Run

MAX_CLASSES = 100  # that the table of classes shows
_LOAD = """## Load it

```python
import foldfuse as ff

predictor = ff.load("hf:{name}")
predictor("photo.jpg").plot()
```

In the terminal: `foldfuse predict hf:{name} photos/ --draw drawn/`. `hf:{name}@REVISION` is an earlier version. The repository
holds JSON, safetensors and ONNX files, and nothing in it is executed.
"""
_HASHES = """`learnt_images.json` of each member holds hashes of its training images, so that Foldfuse leaves these images out of
scores."""
_LIMITS = (
    """* The scores are of images of the same data set. Other cameras, places and lighting may give other scores: score it on
  your own annotated images first.""",
    "* The score of a box ranks the boxes; it is no probability. Choose a score threshold on annotated images.",
    "* Nobody has examined what it does for people in images, or in uses where a missed or a wrong box does harm.",
)


@dataclass(frozen=True)
class CardScores:
    """The scores that a model card shows.

    Attributes:
        words: a sentence on the images that were scored.
        values: {score: its value}.
        classes: (class, objects, AP, AP50) of each class.
    """

    words: str
    values: Mapping[str, float | None]
    classes: Sequence[tuple[str, int, float | None, float | None]]


def held_out_scores(source: Path) -> CardScores | None:
    """The scores of a run, or of a campaign's current submission, on held-out images; None where none are stored.

    Raises:
        InputError: a record of the run or campaign cannot be read.
    """
    if is_campaign(source):
        return _of_campaign(snapshot(source))
    run = Run(source)
    found = read_evaluation(source) if run.exists else None
    if found is None or found.predictions is None or found.steps != run.metadata.steps:
        return None
    images = f"{counted(found.num_images, 'held-out image')} with {counted(found.num_objects, 'object')}"
    return CardScores(
        f"On {images} ({_plain(found.held_out)}), which the run has not learnt from.",
        {name: getattr(found.score, field) for field, name in SCORE_NAMES.items()},
        [(one.name, one.boxes, one.ap, one.ap50) for one in found.score.per_class],
    )


def _of_campaign(facts: Mapping[str, Any]) -> CardScores | None:
    fused = facts.get("fused") or {}
    values = {name: fused.get(field) for field, name in SCORE_NAMES.items() if fused.get(field) is not None}
    if not values:
        return None
    metric = str(fused.get("metric") or "ap50")
    if fused.get("value") is not None and metric not in SCORE_NAMES:
        values = {metric_label(metric): fused["value"]} | values
    if fused.get("nested") is not None:
        values[f"{metric_label(metric)}, nested cross-validation"] = fused["nested"]
    folds = len(facts.get("folds") or fused.get("folds") or (0,))
    return CardScores(
        f"Out-of-fold, on the held-out images of {counted(folds, 'fold')}: members predict only images that they have not learnt "
        "from. The ensemble was chosen on the same images, so its scores are a little too good for new ones; the nested "
        "cross-validation score, where there is one, is free of that.",
        values,
        [(one["name"], one["boxes"], one["ap"], one["ap50"]) for one in fused.get("per_class") or ()],
    )


def model_card(
    record: BundleRecord,
    runs: Mapping[str, Run],
    *,
    name: str,
    licence: str | None,
    scores: CardScores | None,
    data: Mapping[str, str],
) -> str:
    """The card, in Markdown with the metadata that the hub reads.

    Args:
        record: what the bundle holds.
        runs: {member: its run}, whose folders show nothing of this machine.
        name: "owner/name" of the repository.
        licence: the licence that the publisher gives the weights, as the hub names it; None where none is given.
        scores: on held-out images; None where none are known.
        data: {member: the name of its training data}; "" where it is not known.
    """
    metadata = ["library_name: foldfuse", "pipeline_tag: object-detection"]
    metadata += [f"license: {licence}"] if licence else []
    classes = next(iter(runs.values())).metadata.classes
    made = f"Made by Foldfuse {record.versions['foldfuse']}." if "foldfuse" in record.versions else "Made by Foldfuse."
    found = f"It finds boxes of {len(classes)} class{'' if len(classes) == 1 else 'es'}."
    lines = ["---", *metadata, "tags:", "- foldfuse", "- object-detection", "---", ""]
    lines += [f"# {name.partition('/')[2]}", "", f"{_what(record, runs)} {found} {made}", ""]
    lines += [_LOAD.format(name=name)]
    lines += ["## Classes", "", ", ".join(map(_plain, classes)) + ".", ""]
    lines += ["## Scores", "", *_score_lines(scores, record), ""]
    lines += [
        "## Training",
        "",
        "| member | detector | image size | steps | data | images |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_training_row(member, run, data.get(member, "")) for member, run in runs.items()]
    lines += ["", _HASHES, "", "## Licences", "", *_licence_lines(licence, runs), ""]
    lines += ["## Limits", "", *_LIMITS, *(f"* {_plain(note)}" for note in record.notes)]
    return "\n".join(lines) + "\n"


def _what(record: BundleRecord, runs: Mapping[str, Run]) -> str:
    if record.noun == "run":
        recipe = next(iter(runs.values())).recipe
        return f"A detector, `{_code(recipe.detector)}` at {recipe.image_size} px."
    views = sum(len({view for views in part.views.values() for view in views}) for part in record.parts)
    return f"An ensemble of {counted(len(runs), 'detector')} in {counted(views, 'TTA view')}."


def _score_lines(scores: CardScores | None, record: BundleRecord) -> list[str]:
    if scores is None:
        return [f"No scores on held-out images were stored with this {record.noun}."]
    lines = [scores.words, "", "| score | value |", "|---|---|"]
    lines += [f"| {_plain(name)} | {_number(value)} |" for name, value in scores.values.items()]
    if record.notes:
        lines += ["", "These scores are with all members, also those that are not in this repository (see Limits)."]
    if scores.classes:
        lines += ["", "| class | objects | AP | AP50 |", "|---|---|---|---|"]
        lines += [
            f"| {_plain(name)} | {boxes} | {_number(ap)} | {_number(ap50)} |"
            for name, boxes, ap, ap50 in scores.classes[:MAX_CLASSES]
        ]
    return lines


def _training_row(member: str, run: Run, data: str) -> str:
    recipe, metadata, learnt = run.recipe, run.metadata, run.learnt_images
    steps = "-" if metadata.steps is None else f"{metadata.steps:,}"
    number = "-" if learnt is None else f"{len(learnt):,}"
    return (
        f"| {member} | `{_code(recipe.detector)}` | {recipe.image_size} | {steps} | {_plain(data) or '-'} | {number} |"
    )


def _licence_lines(licence: str | None, runs: Mapping[str, Run]) -> list[str]:
    own = (
        f"The weights here are published under {licence}."
        if licence
        else "The publisher states no licence of these weights."
    )
    unknown = any(run.metadata.weights is None for run in runs.values())
    origins = [origin for run in runs.values() for origin in run.metadata.weights or ()]
    restricted = [origin.name for origin in origins if not is_permissive(origin.licence)]
    lines = [f"{own} They were trained from these initial weights:", ""]
    lines += origins_page({member: run.metadata.weights for member, run in runs.items()}).splitlines()
    if restricted or unknown:
        lines += [
            "",
            "Not every licence above is known and permissive: read them before you use this in a product or a contest.",
        ]
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Text between backticks."""
    return " ".join(text.split()).replace("`", "'").replace("|", "/")
