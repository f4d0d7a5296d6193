"""Commands that combine predictions: fuse and ensemble."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from foldfuse.data.readers.coco import read
from foldfuse.detections import Predictions
from foldfuse.ensemble.ensemble import EnsembleReport, apply_ensemble, build_ensemble, read_ensemble
from foldfuse.errors import InputError
from foldfuse.formats.predictions import read_told, write_predictions
from foldfuse.fusion import methods as fusion


def ensemble(
    predictions: tuple[Path, ...],
    *,
    data: Path,
    out: Path,
    metric: str = "ap50",
    seconds: float = 60.0,
    folds: int = 5,
    seed: int = 0,
    read_as: str | None = None,
) -> Path:
    """Choose members, weights and fusion on out-of-fold predictions; write them for `fuse --ensemble` to replay.

    Args:
        predictions: out-of-fold predictions, a file a member; a member is called as its file, without the ending.
        data: the annotated pictures that were predicted: COCO JSON, or a folder with a train.json.
        out: the JSON file to write.
        metric: ap50, ap, f2 or wheat.
        seconds: time for the search.
        folds: for the honest score: each part of the pictures is measured with an ensemble chosen on the others.
        seed: of the split into folds and of the resampling.
        read_as: what the files of predictions are, where their content leaves that open, such as score_xywh.

    Returns:
        The file written.
    """
    dataset = read(data)
    members: dict[str, Predictions] = {}
    for path in predictions:
        if path.stem in members:
            raise InputError(f"{path}: there is another file called {path.stem}. Give the files names that differ.")
        members[path.stem] = read_told(path, dataset, read_as=read_as)
    built = build_ensemble(members, dataset, metric=metric, seconds=seconds, folds=folds, seed=seed)
    built.ensemble.write(out)
    _show(built, Console(highlight=False))
    return out


def _show(built: EnsembleReport, console: Console) -> None:
    table = Table(title=f"Members, by {built.metric}", title_justify="left")
    for head in ("member", "alone", "weight", "power", "adds"):
        table.add_column(head, justify="left" if head == "member" else "right")
    for row in built.table:
        power = f"{built.ensemble.score_exponents.get(row.name, 1.0):g}" if row.weight else "–"
        table.add_row(
            row.name,
            f"{row.single_score:.4f}",
            f"{row.weight:.2f}" if row.weight else "–",
            power,
            "–" if row.leave_one_out_gain is None else f"{row.leave_one_out_gain:+.4f}",
        )
    console.print(table)
    name, score = built.best_single
    chosen = built.ensemble
    chosen_so = f"{chosen.method} at IoU {chosen.iou:g}, score threshold {chosen.score_threshold:g}"
    lines = [
        f"best member, {name}: {score:.4f}; plain WBF of all: {built.uniform_score:.4f}",
        f"chosen of {built.num_candidates} candidates: {chosen_so}: {built.score:.4f} on the images it was chosen on",
    ]
    if built.nested_score is not None and built.interval is not None:
        gain = built.interval
        interval = f"{gain.mean:+.4f} (95 % of the draws: {gain.low:+.4f} to {gain.high:+.4f})"
        lines.append(
            f"chosen without the images measured on: {built.nested_score:.4f}; minus the best member {interval}"
        )
    console.print("\n".join(lines), soft_wrap=True)


def fuse(
    predictions: tuple[Path, ...],
    *,
    data: Path,
    out: Path,
    method: fusion.Method = "wbf",
    iou: float = 0.55,
    score_threshold: float = 0.0,
    weight: tuple[float, ...] = (),
    ensemble: Path | None = None,
    read_as: str | None = None,
) -> Path:
    """Make several files of predictions into one; its path comes back.

    Args:
        predictions: files of the same pictures: Parquet, COCO results JSON, or the contest's CSV.
        data: COCO JSON of the pictures; its annotations, if it has any, are not read.
        out: file to write: .parquet (keeps all), .json (COCO results) or .csv (the contest's).
        method: wbf, nms, soft_nms or nmw.
        iou: boxes match where their IoU is above this.
        score_threshold: boxes with a score below this are left out.
        weight: how much each file counts, in their order; all alike by default.
        ensemble: an ensemble.json to replay instead; a member is the name of its file, without the ending.
        read_as: what the files of predictions are, where their content leaves that open, such as score_xywh.

    Raises:
        InputError: a file cannot be used, or they do not fit together.
    """
    dataset = read(data, annotated=False)
    members = [read_told(path, dataset, read_as=read_as) for path in predictions]
    if ensemble is None:
        fused = fusion.fuse(members, method=method, iou=iou, score_threshold=score_threshold, weights=weight or None)
    else:
        names = [path.stem for path in predictions]
        if len(set(names)) < len(names):
            raise InputError(
                f"members are told apart by the names of their files, and two are alike in {', '.join(names)}."
            )
        fused = apply_ensemble(read_ensemble(ensemble), dict(zip(names, members, strict=True)))
    return write_predictions(fused, out, dataset)
