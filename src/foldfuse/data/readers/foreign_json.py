"""Recognises JSON of other tools than COCO's, so that a sentence can say what to export instead."""

from __future__ import annotations

from typing import Any

AS_COCO = "Export the dataset as COCO"


def foreign_json(document: Any) -> str:
    """What a decoded JSON is and what to do, as the end of a sentence; "" for COCO's or an unknown one."""
    if isinstance(document, list):
        first = next((row for row in document if isinstance(row, dict)), {})
        if "image_id" in first and "score" in first:
            return "holds predictions (COCO results), expected annotations"
        if {"image", "annotations"} <= first.keys() or {"imagefilename", "annotation"} <= first.keys():
            return f"is the JSON of CreateML. {AS_COCO}"
        if {"External ID", "Label"} <= first.keys() or "data_row" in first:
            return f"is the JSON of Labelbox. {AS_COCO}"
        return ""
    if not isinstance(document, dict) or "images" in document:
        return ""
    if "items" in document and "categories" in document:
        return f"is the JSON of Datumaro. {AS_COCO}: datum convert -if datumaro -f coco_instances"
    if {"shapes", "imagePath"} <= document.keys():
        return f"is the JSON of labelme, of one image. {AS_COCO}: labelme2coco does it"
    if "_via_img_metadata" in document or any(isinstance(v, dict) and "regions" in v for v in document.values()):
        return f"is the JSON of VIA. {AS_COCO} there"
    if "type" in document and "features" in document:
        return f"is GeoJSON. {AS_COCO}, with boxes in pixels"
    if "assets" in document:
        return f"is the JSON of VoTT. {AS_COCO}"
    return ""
