"""The evaluate command: predicts and scores in one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foldfuse.commands import options
from foldfuse.commands.score_tables import (
    class_table,
    confusion_table,
    error_table,
    print_thresholds,
    scores_table,
)
from foldfuse.commands.tables import score_text
from foldfuse.errors import InputError, counted
from foldfuse.evaluation.coco import SCORE_NAMES
from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.evaluation.metrics import beta_of, measure, open_metric
from foldfuse.formats.predictions import write_predictions
from foldfuse.inference.bundle import single_run
from foldfuse.inference.evaluation import RunEvaluation, evaluate_run, held_out_images, keep_evaluation
from foldfuse.inference.hub import find_published
from foldfuse.inference.views import BATCH_SIZE
from foldfuse.reporting.run_page import Evaluated, write_run_page
from foldfuse.storage.ledger import is_campaign
from foldfuse.storage.run import Run
from foldfuse.system import printing
from foldfuse.system.offline import go_offline
from foldfuse.system.progress import progress_bar

PAGE = "evaluation.html"


def evaluate(
    run: Path,
    data: Path | None = None,
    *,
    out: options.OptionalOut = None,
    predictions: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    metric: options.Metric = "ap50",
    batch_size: options.BatchSize = None,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    offline: options.Offline = False,
    overwrite: options.Overwrite = False,
) -> Path:
    """Predict annotated images with a trained detector, score the predictions, and return the page that shows them.

    Prints COCO's numbers, AP by class, the best thresholds, the confusion matrix and the types of error. Images that the run
    has learnt from are left out. The thresholds of the run's own held-out images are stored with it, for predict; they are best
    for F1, or for another F that --metric names, such as f2.

    Args:
        run: folder of a trained run, or hf:owner/name for a run that `foldfuse publish` put on the Hugging Face hub.
        data: annotated images, in any layout. By default the run's own held-out images: its fold, or its --val data; a published
            run has none.
        out: HTML page to write. By default evaluation.html in the run's folder, which replaces an earlier page; of a published
            run in the current folder.
        predictions: file to keep the predictions in: .parquet (keeps everything), or .json (COCO results).
        batch_size: images of 256 px at a time, 16 by default; fewer larger ones, so that memory stays the same.

    Raises:
        InputError: the run is not trained or held nothing out, the data do not fit it, or it has learnt from all of them.

    Examples:
        foldfuse evaluate run1
        foldfuse evaluate run1 data/test.json --out test.html --predictions test.parquet
    """
    if offline:
        go_offline()
    open_metric(metric)
    page = out
    if (published := find_published(run)) is not None:
        if data is None:
            raise InputError(
                f"{published.reference}: the images that it held out were not published. Give annotated images."
            )
        run, page = single_run(published.path, published.reference).folder, out or Path(PAGE)
    folder = Run(run)
    if is_campaign(run):
        raise InputError(
            f"{run}: is a campaign, whose page shows its score on held-out images: foldfuse report {run}. Give the folder of a "
            f"run, such as one in {run / 'members'}."
        )
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("evaluate works in one process. Give the command without torchrun.")
    inputs = [run, data, images]
    is_default = page is None
    page = run / PAGE if page is None else page
    options.refuse_overwrite(page, overwrite or is_default, is_file=True, inputs=inputs)
    if predictions is not None:
        options.refuse_overwrite(predictions, overwrite, inputs=inputs)
    held_out = held_out_images(folder, data, images=images, ignore_orientation=ignore_orientation)
    with progress_bar(f"predicting {counted(len(held_out.dataset), 'image')}") as progress:
        found = evaluate_run(
            folder,
            held_out,
            device=device,
            engine=engine,
            batch_size=batch_size or BATCH_SIZE,
            beta=beta_of(metric) or 1.0,
            progress=progress,
        )
    if found.record.predictions is not None:
        _keep(folder, found)
    if predictions is not None:
        write_predictions(found.predictions, predictions, held_out.dataset)
    _print(found, metric)
    return write_run_page(
        run,
        out=page,
        evaluated=Evaluated(held_out.dataset, found.predictions, found.record, found.diagnosis, found.thresholds),
    )


def _keep(run: Run, found: RunEvaluation) -> None:
    """Keep the score and the predictions in the run's folder, unless that cannot be written to, which is reported."""
    try:
        if not os.access(run.folder, os.W_OK):
            raise InputError(f"{run.folder}: cannot be written to.")
        keep_evaluation(run, found)
    except InputError as error:
        printing.write(f"{error} The score is not kept there.", to_stderr=True)


def _print(found: RunEvaluation, metric: str) -> None:
    """Print the scores, as `score` does."""
    console, diagnosis, score = printing.console(), found.diagnosis, found.score
    rows = [(head, getattr(score, field)) for field, head in SCORE_NAMES.items()]
    if metric not in SCORE_NAMES:
        rows.append((metric_label(metric), measure(found.predictions, found.held_out.dataset, metric=metric)))
    console.print(scores_table("COCO scores", ["", "score"], rows))
    console.print(class_table([score], ["score"]))
    print_thresholds(console, found.thresholds)
    console.print(confusion_table(diagnosis, ""))
    console.print(error_table(diagnosis, ""))
    number = counted(found.record.num_images, "image")
    printing.write(
        f"AP {score_text(score.ap)}, AP50 {score_text(score.ap50)} (COCO's) on {number}: {found.record.held_out}"
    )
