"""Small synthetic datasets for the tests of training."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLORS = ((220, 40, 40), (40, 60, 220))  # of the classes "red" and "blue"


def write_dataset(folder: Path, number: int = 16, *, size: tuple[int, int] = (96, 64), seed: int = 0) -> Path:
    """A folder with `number` noisy PNGs of (width, height), each with one to three colored squares; its train.json."""
    rng = np.random.default_rng(seed)
    width, height = size
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for i in range(number):
        image = Image.fromarray(rng.integers(90, 170, (height, width, 3), dtype=np.uint8))
        for _ in range(int(rng.integers(1, 4))):
            side = int(rng.integers(14, 28))
            x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
            label = int(rng.integers(2))
            ImageDraw.Draw(image).rectangle((x, y, x + side - 1, y + side - 1), fill=COLORS[label])
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": 3 + 4 * label, "bbox": [x, y, side, side]}
            )
        image.save(folder / "images" / f"{i:03}.png")
        images.append({"id": i, "file_name": f"{i:03}.png", "width": width, "height": height})
    categories = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
    document = {"images": images, "categories": categories, "annotations": annotations}
    path = folder / "train.json"
    path.write_text(json.dumps(document))
    return path
