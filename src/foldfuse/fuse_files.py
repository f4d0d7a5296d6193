"""Fusing files of predictions: any tool's, of the kinds that `formats` reads."""

from __future__ import annotations

from pathlib import Path

from foldfuse import fuse as fusion
from foldfuse.data import read
from foldfuse.ensemble import apply, read_ensemble
from foldfuse.errors import InputError
from foldfuse.formats import read_told, write_predictions


def fuse(
    predictions: tuple[Path, ...],
    *,
    data: Path,
    out: Path,
    kind: fusion.Kind = "wbf",
    iou: float = 0.55,
    skip: float = 0.0,
    weight: tuple[float, ...] = (),
    ensemble: Path | None = None,
    read_as: str | None = None,
) -> Path:
    """Make several files of predictions into one; its path comes back.

    Args:
        predictions: files of the same pictures: Parquet, COCO results JSON, or the contest's CSV.
        data: COCO JSON of the pictures; its annotations, if it has any, are not read.
        out: file to write: .parquet (keeps all), .json (COCO results) or .csv (the contest's).
        kind: wbf, nms, soft_nms or nmw.
        iou: boxes match where their IoU is above this.
        skip: boxes with a score below this are left out.
        weight: how much each file counts, in their order; all alike by default.
        ensemble: an ensemble.json to replay instead; a member is the name of its file, without the ending.
        read_as: what the files of predictions are, where their content leaves that open, such as score_xywh.

    Raises:
        InputError: a file cannot be used, or they do not fit together.
    """
    dataset = read(data, annotated=False)
    members = [read_told(path, dataset, read_as=read_as) for path in predictions]
    if ensemble is None:
        fused = fusion.fuse(members, kind=kind, iou=iou, skip=skip, weights=weight or None)
    else:
        names = [path.stem for path in predictions]
        if len(set(names)) < len(names):
            raise InputError(
                f"members are told apart by the names of their files, and two are alike in {', '.join(names)}."
            )
        fused = apply(read_ensemble(ensemble), dict(zip(names, members, strict=True)))
    return write_predictions(fused, out, dataset)
