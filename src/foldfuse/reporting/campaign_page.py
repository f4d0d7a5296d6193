"""The report: a campaign's or a run's folder as one page of HTML that opens anywhere, without network or script.

The page is written from what lies in the folder at that moment, so it may be written again and again while the
campaign runs; what is not there yet is left out, and what cannot be read is named at its end.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import jinja2
import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.data.folds import read_folds
from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_predictions
from foldfuse.reporting.charts import (
    COLOURS,
    Bar,
    Chart,
    Line,
    bar_chart,
    duration,
    line_chart,
    linear_axis,
    log_axis,
    thinned,
    time_axis,
)
from foldfuse.reporting.dataset_stats import data_facts
from foldfuse.reporting.error_analysis import mistakes, sent_examples
from foldfuse.reporting.leaderboard import leaderboard_chart
from foldfuse.reporting.records import Facts, read_facts
from foldfuse.reporting.timeline import story
from foldfuse.storage.notes import noted
from foldfuse.system.atomic_files import write_text

_PACKAGES = ("foldfuse", "torch", "torchvision", "timm", "numpy", "numba", "hotcoco", "scikit-learn", "pillow")
_THRESHOLD = 0.3  # for test pictures where there is nothing to choose it on


def report(folder: Path, *, out: Path | None = None) -> Path:
    """Write the page on a campaign's or a run's folder, and return where it is.

    Args:
        folder: the folder that a campaign or a run was told to fill.
        out: the HTML file to write; `report.html` in the folder where none is given.

    Raises:
        InputError: the folder does not exist, or is neither a campaign's nor a run's; `out` cannot be written.
    """
    folder = Path(folder)
    out = folder / "report.html" if out is None else Path(out)
    facts = read_facts(folder)
    gaps = list(facts.gaps)
    dataset = _dataset(facts.data, gaps, annotated=True)
    test = _dataset(facts.test, gaps, annotated=False) if facts.test else dataset  # labelled pictures may stand in
    name = "fused_oof.parquet" if facts.kind == "campaign" else "oof.parquet"
    held = _predictions(folder / name, dataset, gaps)
    sent = _predictions(folder / name.replace("oof", "test"), test, gaps)

    wrong = mistakes(dataset, held, gaps) if dataset and held else None
    threshold = wrong.examples.threshold if wrong else _THRESHOLD
    seen = noted(folder, gaps)
    page = template("report.html").render(
        facts=facts,
        name=facts.data.parent.name or facts.data.stem if facts.data else folder.resolve().name,
        verdict=verdict(facts),
        submissions=_submissions(folder, out),
        noted=seen,
        leaderboard=leaderboard_chart({"": seen.scored}),
        story=story(facts),
        scores=_scores(facts),
        members=sorted(facts.members, key=lambda m: -1.0 if m.ap50 is None else m.ap50, reverse=True),
        learning=_learning(facts),
        wrong=wrong,
        data=data_facts(dataset, _folds(folder / "folds.json", gaps)) if dataset else None,
        test_examples=sent_examples(test, sent, threshold, gaps) if test and sent else None,
        test_pictures=len(sent) if sent else None,
        versions=_versions(),
        gaps=gaps,
    )
    write_text(out, page)
    return out


def verdict(facts: Facts) -> str:
    """What came of it, in one or two sentences."""
    fused, best = facts.fused, facts.best
    if facts.kind == "run":
        scored = [(log.ap50[-1], log.name) for log in facts.logs if len(log.ap50)]
        return f"At its last evaluation the run reached AP50 {scored[0][0]:.3f}." if scored else "No evaluation yet."
    if fused is None or fused.value is None:
        if facts.state == "running":
            return "The campaign is under way; no predictions have been fused yet."
        return "No fused score: the campaign ended before its first fusion."
    number = sum(m.weight is not None and m.weight > 0 for m in facts.members)
    what = f"{number} members fused reach" if number > 1 else "The fused predictions reach"
    text = f"{what} {fused.metric.upper()} {fused.value:.3f} on pictures that were held back from training"
    alone = getattr(best, fused.metric, None)  # of f2 and wheat, members have no value
    if best is None or alone is None:
        return text + "."
    gain = fused.value - alone
    if abs(gain) < 0.0005:
        return f"{text}, the same as the best single member, {best.name}."
    text += f", {abs(gain):.3f} {'above' if gain > 0 else 'below'} the best single member, {best.name}."
    if fused.interval and gain > 0:
        low, high = fused.interval
        sure = "" if low > 0 else ": it may be chance"
        text += f" On pictures that the fusion was not chosen on, the gain is {low:+.3f} to {high:+.3f}{sure}."
    return text


@cache
def template(name: str) -> jinja2.Template:
    """A page of `templates/`, with the filters that its parts need."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("foldfuse.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["change"] = lambda value: "–" if value is None else f"{value:+.3f}"
    environment.filters["count"] = lambda value: "–" if value is None else f"{value:,.0f}"
    environment.filters["moment"] = _moment
    environment.globals["colours"] = COLOURS
    return environment.get_template(name)


def _moment(text: str) -> str:
    """An ISO moment to the minute, in UTC where it says its zone; any other text as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if moment.tzinfo else f"{moment:%Y-%m-%d %H:%M}"


def _dataset(path: Path | None, gaps: list[str], *, annotated: bool) -> Dataset | None:
    if path is None:
        return None
    try:
        return read(path, annotated=annotated)
    except InputError as error:
        gaps.append(str(error))
        return None


def _predictions(path: Path, dataset: Dataset | None, gaps: list[str]) -> Predictions | None:
    if dataset is None or not path.exists():
        return None
    try:
        return read_predictions(path, dataset)
    except InputError as error:
        gaps.append(str(error))
        return None


def _folds(path: Path, gaps: list[str]) -> Mapping[int, int]:
    """{image id: fold}; empty where there is no such file, or a broken one, which is a gap."""
    if not path.exists():
        return {}
    try:
        return read_folds(path).fold_of
    except InputError as error:
        gaps.append(str(error))
        return {}


def _submissions(folder: Path, out: Path) -> list[tuple[str, str, int]]:
    """(name, address from the page, bytes) of the submission files, the CSV first."""
    files = sorted(p for p in folder.glob("submission*") if p.suffix in (".csv", ".json"))
    start = out.resolve().parent
    return [(p.name, os.path.relpath(p.resolve(), start).replace(os.sep, "/"), p.stat().st_size) for p in files]


def _scores(facts: Facts) -> tuple[Chart, ...]:
    """Bars of AP50 and of AP: every member, best first, and what they make together."""
    charts = []
    for key, title in (("ap50", "AP50"), ("ap", "AP")):
        ranked = [(value, m) for m in facts.members if (value := getattr(m, key)) is not None]
        ranked.sort(key=lambda pair: -pair[0])
        bars = [Bar(m.name, value, f"{value:.3f}") for value, m in ranked]
        fused = getattr(facts.fused, key) if facts.fused else None
        if fused is not None:
            alone, interval = getattr(facts.best, key, None), None
            if facts.fused and facts.fused.metric == key and facts.fused.interval and alone is not None:
                low, high = facts.fused.interval
                interval = (alone + low, alone + high)
            bars.insert(0, Bar("fused", fused, f"{fused:.3f}", strong=True, interval=interval))
        if bars:
            words = ", ".join(f"{b.label} {b.text}" for b in bars)
            whisker = (
                " The whisker is the gain over the best member on pictures not chosen on." if bars[0].interval else ""
            )
            meaning = "at IoU 0.50" if key == "ap50" else "averaged over IoU 0.50 to 0.95"
            svg = bar_chart(bars, label=f"{title} of each member: {words}.")
            charts.append(Chart(title, svg, f"Average precision {meaning}, on held-back pictures.{whisker}"))
    return tuple(charts)


def _learning(facts: Facts) -> tuple[Chart, ...]:
    """Loss and AP50 against the seconds of training; a member keeps its colour in both."""
    losses, tests = [], []
    for colour, log in enumerate(facts.logs):
        good = (log.loss > 0) & np.isfinite(log.loss)
        if good.any():
            losses.append(Line(log.name, *thinned(log.seconds[good], log.loss[good]), colour))
        if len(log.tested):
            tests.append(Line(log.name, log.tested, log.ap50, colour))
    names = tuple(log.name for log in facts.logs) if len(facts.logs) > 1 else ()
    charts = []
    if losses:
        values = np.concatenate([line.y for line in losses])
        svg = line_chart(
            losses,
            time_axis(max(line.x.max() for line in losses)),
            log_axis(float(values.min()), float(values.max())),
            titles=("time in training", "loss"),
            label=f"Training loss of {len(losses)} runs against time.",
        )
        charts.append(Chart("Training loss", svg, "Averaged over short stretches; the scale is logarithmic.", names))
    if tests:
        svg = line_chart(
            tests,
            time_axis(max(line.x.max() for line in tests)),
            linear_axis(0, max(float(line.y.max()) for line in tests)),
            titles=("time in training", "AP50"),
            label="AP50 on held-back pictures against time: "
            + ", ".join(f"{line.name} ends at {line.y[-1]:.3f}" for line in tests),
            dots=True,
        )
        charts.append(Chart("Score while training", svg, "AP50 on held-back pictures.", names))
    return tuple(charts)


def _versions() -> list[tuple[str, str]]:
    """(name, version) of Python and of the packages that numbers depend on, as they are where the page is written."""
    found = [("python", platform.python_version())]
    for name in _PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
