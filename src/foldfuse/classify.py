"""Classifiers of pictures, and of the crops of objects: their training, by the loop of `train`, and their predictions.

A folder of pictures is read as a dataset whose every picture is one object, all of it; so there is one kind of data here:
crops with labels.

Shapes: B crops, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldfuse.augment import Augmentation, Labelled, augmented
from foldfuse.budget import Budget
from foldfuse.crops import CropPictures, Crops, objects
from foldfuse.data import Dataset, Sample, locate, read, require_annotations
from foldfuse.detections import Annotations, Array
from foldfuse.distributed import World, best_device
from foldfuse.durations import seconds_of
from foldfuse.errors import InputError, unknown_name
from foldfuse.image_folders import read_image_folder
from foldfuse.keeping import Keeper, budget_of, opened
from foldfuse.layouts import find_layout
from foldfuse.looks import Look, features, mirrored
from foldfuse.loop import fit
from foldfuse.models import CLASSIFIERS
from foldfuse.models.timm_classifiers import TimmClassifier
from foldfuse.optimizers import classifier_optimizer, layers
from foldfuse.progress import Progress, silent
from foldfuse.recipes import ClassifierRecipe, load_classifier_recipe
from foldfuse.run import Run
from foldfuse.split import read_folds
from foldfuse.trackers import Tracker, check_trackers
from foldfuse.train import run_facts

TIMM = "timm:"


def make_classifier(name: str, num_classes: int, *, pretrained: bool = True) -> nn.Module:
    """A new network: (B, 3, H, W) in 0..1 -> (B, num_classes) logits.

    Args:
        name: one of CLASSIFIERS, or "timm:" and the name of one of timm's networks.
        num_classes: K.
        pretrained: begin with ImageNet weights.

    Raises:
        InputError: there is no such network, or its weights are not at hand.
    """
    if name.startswith(TIMM):
        return TimmClassifier(name.removeprefix(TIMM), num_classes, pretrained=pretrained)
    if name not in CLASSIFIERS:
        raise unknown_name("classifier", name, [*CLASSIFIERS, f"{TIMM}NAME"])
    made: nn.Module = CLASSIFIERS[name](num_classes, pretrained=pretrained)
    return made


class Learner(nn.Module):
    """A classifier as `fit` trains it."""

    def __init__(self, net: nn.Module, smoothing: float) -> None:
        super().__init__()
        self.net = net
        self.smoothing = smoothing

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, K) logits."""
        logits: Tensor = self.net(images)
        return logits

    def loss(self, raw: Tensor, targets: Sequence[int]) -> dict[str, Tensor]:
        """Cross-entropy with smoothed targets."""
        wanted = torch.tensor(targets, device=raw.device)
        return {"class": F.cross_entropy(raw.float(), wanted, label_smoothing=self.smoothing)}

    def freeze(self, stages: int) -> None:
        """Training mode, but for the first `stages` layers, which are not trained."""
        self.train()
        layer_of = layers(self.net)
        for name, module in self.net.named_modules():
            own = [layer_of[f"{name}.{p}" if name else p] for p, _ in module.named_parameters()]
            if own and max(own) < stages:
                module.eval()
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(layer_of[name] >= stages)


@dataclass(frozen=True, eq=False)
class CropBatches:
    """What each step sees: crops, augmented. A function of (seed, step), without state.

    Attributes:
        samples: of each crop, the picture that it is cut out of.
        pictures: the crops.
        labels: (n,).
        recipe: batch size and augmentation.
        seed: of all randomness.
    """

    samples: Sequence[Sample]
    pictures: CropPictures
    labels: Array
    recipe: ClassifierRecipe
    seed: int

    def indices(self, step: int) -> list[int]:
        """Positions of the crops that a step sees: each epoch is a new permutation."""
        n, size = len(self.labels), self.recipe.batch_size
        places = range(step * size, (step + 1) * size)
        orders = {e: np.random.default_rng((self.seed, 1, e)).permutation(n) for e in {p // n for p in places}}
        return [int(orders[p // n][p % n]) for p in places]

    def batch(self, step: int, spent: float, part: range | None = None) -> tuple[Tensor, list[int]]:
        """(B, 3, S, S) uint8 in channels-last layout, and B labels; see `Batches.batch`."""
        recipe = self.recipe
        how = Augmentation(recipe.hflip, recipe.vflip, recipe.scale_jitter, recipe.shift, recipe.colour)
        canvas = (recipe.image_size, recipe.image_size)
        made, labels = [], []
        for place, i in enumerate(self.indices(step)):
            if part is None or place in part:
                rng = np.random.default_rng((self.seed, 2, step, place))
                one = Labelled(self.pictures[i], Annotations.empty())
                made.append(augmented([one], canvas, how, rng).picture)
                labels.append(int(self.labels[i]))
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2), labels


def read_labelled(data: Path, *, classes: Sequence[str] | None = None) -> tuple[Dataset, bool]:
    """The dataset to classify, and whether it is of whole pictures: a folder with sub-folders rather than of objects.

    Args:
        data: anything that `data.read` takes, or a folder of pictures with a sub-folder for each class.
        classes: that a classifier knows; see `read_image_folder`.

    Raises:
        InputError: it cannot be read.
    """
    if data.is_dir() and not (data / "train.json").is_file() and find_layout(data) is None:
        return read_image_folder(data, classes=classes), True
    dataset = read(locate(data)[0])
    if classes is not None and dataset.classes != tuple(classes):
        raise InputError(
            f"{data}: has the classes {', '.join(dataset.classes)}, but the run was trained for {', '.join(classes)}."
        )
    return dataset, False


def train_classifier(
    data: Path,
    out: Path,
    *,
    recipe: str,
    change: tuple[str, ...] = (),
    budget: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    folds: Path | None = None,
    fold: int = 0,
    resume: bool = False,
    checkpoint: str = "60s",
    tracker: tuple[str, ...] = (),
) -> Path:
    """As `train`, for the recipe of a classifier; the run folder comes back."""
    every = seconds_of(checkpoint)
    check_trackers(tracker)
    wanted = budget_of(steps, budget)
    whole, of_pictures = read_labelled(data)
    dataset, held = require_annotations(whole), None
    if folds is not None:
        parts = read_folds(folds)
        dataset, held = whole.subset(parts.train_ids(fold)), whole.subset(parts.held_ids(fold))
    run = Run(Path(out))

    def begin(together: World) -> tuple[ClassifierRecipe, dict[str, Any]]:
        made = load_classifier_recipe(recipe, change)
        together.part(made.batch_size)
        _learner(made, len(dataset.classes), pretrained=made.weights == "imagenet")  # made to see that it can be
        facts = run_facts(dataset, data=data, seed=seed, held=held.image_ids if held else ())
        return made, facts | {"context": 1.0 if of_pictures else made.context}

    def title(run: Run) -> str:
        return f"training {run.classifier_recipe.classifier}"

    with opened(
        run, dataset, data=data, wanted=wanted, resume=resume, tracker=tracker, begin=begin, title=title
    ) as now:
        train_run(
            run,
            dataset,
            now.budget,
            state=now.state,
            progress=now.progress,
            every=every,
            track=now.track,
            together=now.together,
        )
    if held and now.together.first:
        right = accuracy(classify(run, objects(held)), objects(held).labels)
        learnt = [row for row in run.log if "accuracy" not in row]
        run.write_log([*learnt, {"step": run.facts["steps"], "seconds": run.facts["seconds"], "accuracy": right}])
        print(f"accuracy on the {len(objects(held))} objects held back: {right:.4f}")
    return run.folder


def train_run(
    run: Run,
    dataset: Dataset,
    budget: Budget,
    *,
    state: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    every: float = 60.0,
    track: Tracker | None = None,
    together: World | None = None,
) -> dict[str, Any]:
    """Train the classifier of a run folder on the objects of `dataset`; its last state comes back.

    Args:
        run: folder with a classifier's recipe and facts.
        dataset: annotated pictures to learn from.
        budget: when to stop.
        state: of this very run, to go on with.
        progress: is told the share of the budget that is spent.
        every: seconds between checkpoints.
        track: is given the rows of the log, at each checkpoint the new ones.
        together: the processes that train as one; this one alone by default.
    """
    recipe, facts, together = run.classifier_recipe, run.facts, together or World(device=best_device())
    torch.manual_seed(facts["seed"])
    model = load_learner(run, pretrained=state is None and recipe.weights == "imagenet")
    model.to(together.device)
    if together.rank:
        torch.manual_seed(facts["seed"] + 1_000_003 * together.rank)
    crops = objects(dataset)
    side = round(recipe.image_size * (1 + recipe.scale_jitter))
    pictures = CropPictures.of(crops, context=facts["context"], size=side)
    samples = [dataset.samples[i] for i in crops.image]
    keep = Keeper(run, state, budget, together=together, track=track)
    last = fit(
        model,
        CropBatches(samples, pictures, crops.labels, recipe, facts["seed"]),
        recipe,
        budget,
        log=keep.log,
        resume=state,
        checkpoint=keep,
        every=every,
        progress=progress,
        together=together,
        optimizer_of=classifier_optimizer,
    )
    if together.first:
        run.save_weights(last["ema"])
        seconds = round(last["seconds"], 2)
        run.write_facts(run.facts | {"steps": last["step"], "seconds": seconds, "crops": len(crops)})
    together.wait()
    return last


def load_learner(run: Run, *, pretrained: bool = False) -> Learner:
    """The untrained model of a classifier's run.

    Raises:
        InputError: the recipe's image size is none that its network takes, or weights to begin with are not at hand.
    """
    return _learner(run.classifier_recipe, len(run.facts["classes"]), pretrained=pretrained)


def _learner(recipe: ClassifierRecipe, num_classes: int, *, pretrained: bool) -> Learner:
    net: Any = make_classifier(recipe.classifier, num_classes, pretrained=pretrained)
    fixed = getattr(net, "fixed_size", None) or recipe.image_size
    if recipe.image_size != fixed:
        raise InputError(
            f"image_size is {recipe.image_size}, and {recipe.classifier} takes pictures of {fixed} px alone."
        )
    if recipe.image_size % net.stride:
        raise InputError(
            f"image_size is {recipe.image_size}, and must be a multiple of {net.stride}, the stride of {recipe.classifier}."
        )
    return Learner(net, recipe.smoothing)


def look_of(run: Run) -> Look:
    """The trained classifier of a run as a look at crops: their logits.

    Raises:
        InputError: the run is not trained.
    """
    device = best_device()
    model = load_learner(run)
    model.load_state_dict(run.load_weights())
    model.to(device).eval()

    def look(images: Tensor) -> Tensor:
        logits: Tensor = model(images.to(device)).cpu()
        return logits

    return Look(look, run.classifier_recipe.image_size, run.facts["context"])


def classify(run: Run, crops: Crops, *, views: Sequence[str] = ("1",), progress: Progress = silent) -> Array:
    """(n, K) float32 probabilities of the classes of each crop, the mean of its `views`: "1" and its mirror image "1+hflip".

    Raises:
        InputError: the run is not trained, or a picture cannot be decoded.
    """
    look = look_of(run)
    looks = [mirrored(look) if view == "1+hflip" else look for view in views]
    parts = [torch.from_numpy(features(crops, each, progress=progress)).softmax(1) for each in looks]
    return torch.stack(parts).mean(0).numpy()


def accuracy(probabilities: Array, labels: Array) -> float:
    """Share of the rows whose most probable class is the label; 0 where there is no row."""
    return float((probabilities.argmax(1) == labels).mean()) if len(labels) else 0.0
