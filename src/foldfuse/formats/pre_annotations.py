"""Writes predictions as the annotations of a COCO JSON, for annotation tools: a person corrects boxes instead of drawing all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foldfuse.boxes import area, xyxy_to_xywh_of_file
from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.system.atomic_files import write_text

BOX_DIGITS = 2  # of a pixel


def write_pre_annotations(predictions: Predictions, dataset: Dataset, path: Path) -> Path:
    """Writes a COCO JSON of predicted images whose annotations are the predictions, each with its "score"; returns the path.

    Args:
        predictions: of all images of `dataset`.
        dataset: the images, with the names that the file gives them.
        path: the file.
    """
    annotations: list[dict[str, Any]] = []
    for sample in dataset.samples:
        one = predictions[sample.id]
        boxes = xyxy_to_xywh_of_file(one.boxes).round(BOX_DIGITS).tolist()
        sizes = area(one.boxes.astype(float)).round(BOX_DIGITS).tolist()
        for box, size, label, score in zip(boxes, sizes, one.labels.tolist(), one.scores.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.id,
                    "category_id": dataset.category_ids[label],
                    "bbox": box,
                    "area": size,
                    "iscrowd": 0,
                    "segmentation": [],  # some tools refuse an annotation without it
                    "score": round(score, 4),
                }
            )
    document = {
        "images": [
            {"id": s.id, "file_name": s.file_name, "width": s.width, "height": s.height} for s in dataset.samples
        ],
        "categories": [{"id": i, "name": n} for i, n in zip(dataset.category_ids, dataset.classes, strict=True)],
        "annotations": annotations,
    }
    write_text(path, json.dumps(document, allow_nan=False) + "\n")
    return path
