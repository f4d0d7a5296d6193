"""Fixtures of many tests: the shared datasets, where they exist, and small synthetic datasets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

SHARED = Path(os.environ.get("FOLDFUSE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
COLORS = ((220, 40, 40), (40, 180, 60), (50, 80, 220), (230, 200, 40))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the shared datasets; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared datasets are not at {SHARED}; FOLDFUSE_SHARED names their parent")
    return SHARED


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """A function that draws a small dataset in the contest's layout and gives the path of its JSON.

    Images are train/0000.jpg and so on; image and category ids count from 0, and image 1 has no box.
    """

    def make(
        *, images: int = 6, classes: int = 3, width: int = 96, height: int = 64, seed: int = 0, name: str = "train"
    ) -> Path:
        rng = np.random.default_rng(seed)
        (tmp_path / name).mkdir()
        rows: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(images):
            noise = Image.fromarray(rng.integers(0, 255, (6, 9, 3), np.uint8))  # so that no two look alike
            image = noise.resize((width, height), Image.Resampling.BICUBIC)
            pen = ImageDraw.Draw(image)
            for _ in range(0 if i == 1 else int(rng.integers(1, 4))):
                x, y = int(rng.integers(0, width - 32)), int(rng.integers(0, height - 32))
                w, h = (int(v) for v in rng.integers(8, 32, 2))
                kind = int(rng.integers(classes))
                pen.rectangle((x, y, x + w - 1, y + h - 1), fill=COLORS[kind % len(COLORS)])
                annotations.append(
                    {
                        "image_id": i,
                        "category_id": kind,
                        "area": w * h,
                        "bbox": [x, y, w, h],
                        "iscrowd": 0,
                        "id": len(annotations),
                    }
                )
            image.save(tmp_path / name / f"{i:04}.jpg", quality=90)
            rows.append({"width": width, "height": height, "file_name": f"{name}/{i:04}.jpg", "id": i})
        categories = [{"id": k, "name": f"class {k}", "supercategory": f"class {k}"} for k in range(classes)]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": categories}))
        return path

    return make
