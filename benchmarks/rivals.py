"""Other libraries' detectors under a plain loop, as a practitioner writes it first: what `time_to_ap` measures ours against.

PyTorch in eager float32, in its default layout and with the default memory allocator; AdamW, a cosine over the budget after
a short warm-up, horizontal flips, images decoded by Pillow in an ordinary DataLoader each time that they are needed,
the whole network trained, gradients clipped. No rate was tuned for any dataset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Detections, Predictions
from foldfuse.models.pretrained.imagenet import load_backbone
from foldfuse.training.budget import Budget, lr_scale

BATCH, RATE, WARMUP, CLIP = 8, 1e-3, 0.05, 10.0
MEAN = STD = 0.5  # of EfficientNet-Lite's images
Target = tuple[Tensor, Tensor]  # (n, 4) xyxy in pixels of the network's input; (n,) labels from 0


@dataclass(frozen=True)
class Laid:
    """How an image is laid on a square: stretched to fill it, or scaled by one factor and padded with grey.

    Attributes:
        size: of the square, pixels.
        stretched: whether its two sides are scaled apart.
    """

    size: int
    stretched: bool

    def scale(self, sample: Sample) -> tuple[float, float]:
        """Pixels of the square per pixel of the image, along x and y."""
        if self.stretched:
            return self.size / sample.width, self.size / sample.height
        both = self.size / max(sample.width, sample.height)
        return both, both

    def image(self, sample: Sample) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """(size, size, 3) uint8."""
        x, y = self.scale(sample)
        shape = (max(1, round(sample.width * x)), max(1, round(sample.height * y)))
        with Image.open(sample.path) as file:
            small = file.convert("RGB").resize(shape, Image.Resampling.BILINEAR)
        square = Image.new("RGB", (self.size, self.size), (114, 114, 114))
        square.paste(small)
        return np.array(square)


class Flipped(TorchDataset[tuple[Tensor, Target]]):
    """Images (3, size, size) uint8 with their boxes and labels, half of them mirrored."""

    def __init__(self, data: Dataset, laid: Laid) -> None:
        self.samples, self.laid = data.samples, laid

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Tensor, Target]:
        sample = self.samples[i]
        assert sample.annotations is not None
        annotations = sample.annotations[~sample.annotations.crowd]
        image = torch.from_numpy(self.laid.image(sample)).permute(2, 0, 1)
        x, y = self.laid.scale(sample)
        boxes = torch.from_numpy(annotations.boxes.astype(np.float32)) * torch.tensor([x, y, x, y])
        labels = torch.from_numpy(annotations.labels.astype(np.int64))
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
            boxes = torch.stack(
                [self.laid.size - boxes[:, 2], boxes[:, 1], self.laid.size - boxes[:, 0], boxes[:, 3]], 1
            )
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return image, (boxes[real], labels[real])


class Rival(Protocol):
    """Another library's detector, with what the loop needs of it."""

    laid: Laid
    start: str  # where its weights come from
    model: nn.Module

    def loss(self, images: Tensor, targets: list[Target]) -> Tensor:
        """Of (B, 3, size, size) images in 0..1."""

    def detect(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each image: boxes (n, 4) xyxy in the network's input, scores (n,) and labels (n,) from 0."""


class SsdLite:
    """torchvision's SSDLite320 on MobileNetV3-Large. No package carries ImageNet weights of it, so it starts from scratch."""

    start = "from scratch"

    def __init__(self, num_classes: int) -> None:
        from torchvision.models.detection import ssdlite320_mobilenet_v3_large

        self.laid = Laid(320, stretched=True)  # as torchvision does by itself
        self.model = ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=num_classes + 1
        )  # its class 0 is the background

    def loss(self, images: Tensor, targets: list[Target]) -> Tensor:
        """The sum of torchvision's two terms."""
        named = [{"boxes": boxes, "labels": labels + 1} for boxes, labels in targets]
        terms: dict[str, Tensor] = self.model(list(images), named)
        return torch.stack(list(terms.values())).sum()

    def detect(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """See `Rival`."""
        return [(one["boxes"], one["scores"], one["labels"] - 1) for one in self.model(list(images))]


class EffdetLite0:
    """effdet's tf_efficientdet_lite0, its backbone with the ImageNet weights that ours starts from."""

    start = "ImageNet"

    def __init__(self, num_classes: int) -> None:
        from effdet import DetBenchPredict, DetBenchTrain, create_model

        self.laid = Laid(320, stretched=False)  # as effdet does by itself
        network = create_model(
            "tf_efficientdet_lite0", num_classes=num_classes, pretrained=False, pretrained_backbone=False
        )
        load_backbone(network.backbone, "tf_efficientnet_lite0")
        self.model, self.predictor = DetBenchTrain(network), DetBenchPredict(network)

    def loss(self, images: Tensor, targets: list[Target]) -> Tensor:
        """effdet's own sum of its terms."""
        most = max(1, *(len(labels) for _, labels in targets))
        boxes, classes = torch.zeros(len(targets), most, 4), torch.full((len(targets), most), -1.0)
        for i, (box, label) in enumerate(targets):
            boxes[i, : len(box)] = box[:, [1, 0, 3, 2]]  # effdet writes y before x, and counts classes from 1
            classes[i, : len(label)] = label.float() + 1
        total: Tensor = self.model((images - MEAN) / STD, {"bbox": boxes, "cls": classes})["loss"]
        return total

    def detect(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """See `Rival`."""
        rows = self.predictor((images - MEAN) / STD)
        return [(one[:, :4], one[:, 4], one[:, 5].long() - 1) for one in rows]


RIVALS: dict[str, Callable[[int], Rival]] = {"torchvision ssdlite320": SsdLite, "effdet lite0": EffdetLite0}


def fit(rival: Rival, data: Dataset, budget: Budget, *, workers: int) -> int:
    """Train `rival` in place until the budget is gone; the number of steps comes back.

    Args:
        rival: to train.
        data: annotated.
        budget: when to stop.
        workers: processes that decode; 0 to decode in this one.
    """
    loader = DataLoader(
        Flipped(data, rival.laid),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=lambda pairs: (torch.stack([p for p, _ in pairs]), [t for _, t in pairs]),
    )
    optimizer = torch.optim.AdamW(rival.model.parameters(), lr=RATE)
    rival.model.train()
    step = 0
    while True:
        for images, targets in loader:
            spent = budget.spent(step)
            if spent >= 1:
                return step
            for group in optimizer.param_groups:
                group["lr"] = RATE * lr_scale(spent, WARMUP, WARMUP)
            loss = rival.loss(images.float() / 255, targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(rival.model.parameters(), CLIP)
            optimizer.step()
            step += 1


@torch.inference_mode()
def predict(rival: Rival, data: Dataset) -> Predictions:
    """What a trained `rival` finds in each image, in pixels of the original images."""
    rival.model.eval()
    found = {}
    for sample in data.samples:
        image = torch.from_numpy(rival.laid.image(sample)).permute(2, 0, 1)[None].float() / 255
        ((boxes, scores, labels),) = rival.detect(image)
        x, y = rival.laid.scale(sample)
        original = (boxes / torch.tensor([x, y, x, y])).numpy()
        limit = np.array([sample.width, sample.height, sample.width, sample.height], np.float32)
        found[sample.id] = Detections(np.clip(original, 0, limit), scores.numpy(), labels.numpy())
    return Predictions.of(found, data.classes)
