"""The request of a campaign: the user's options, checked, and kept in the ledger for a resume."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from foldfuse.campaign import constants as c
from foldfuse.campaign.planning.candidates import candidate_recipes, check_image_sizes, check_start
from foldfuse.campaign.planning.hardware import DefaultCandidates, default_candidates
from foldfuse.campaign.task import Inputs, Task, note_weights, prepare_task, read_inputs
from foldfuse.campaign.trained_folds import AUTO, TrainFolds, with_trained_folds
from foldfuse.data.folds import read_folds
from foldfuse.errors import InputError
from foldfuse.evaluation.custom_metric import absolute_name
from foldfuse.evaluation.metrics import get_metric
from foldfuse.formats.class_keys import CategoryIds
from foldfuse.formats.sample_submission import SampleSubmission, read_sample
from foldfuse.formats.submission import ImageNames, reading_of
from foldfuse.recipes import Recipe
from foldfuse.storage.ledger import Ledger
from foldfuse.system.device import card_names, choose_device
from foldfuse.system.durations import duration_option, format_duration
from foldfuse.training.trackers import absolute_tracker, check_trackers

SAMPLE = "sample_submission.csv"  # the copy of the sample in the campaign's folder


@dataclass(frozen=True)
class CampaignRequest:
    """A request for a campaign; the fields are the options of `foldfuse campaign`.

    Attributes:
        data: COCO JSON with annotations, or a folder with a train.json and perhaps a test.json.
        test: COCO JSON of the images to predict; without it a fold of the labeled images is used instead.
        deadline: seconds of wall-clock time for everything.
        out: folder to make.
        recipe: names of the allowed recipes; empty for the defaults.
        forbid: names of recipes that are not allowed.
        image_size: allowed image sizes in pixels; empty for all.
        set: changes to the recipes, such as lr=3e-4.
        folds: number of folds, or the path of a file of `foldfuse split`; fold 0 is always held out from members of its own.
        train_folds: number of folds that are each held out from members of its own; "auto" for as many as there is time for.
        external_run: folders of runs that were trained without the held-out images.
        external_predictions: "VAL:TEST", files with another toolkit's predictions of the held-out and the test images.
        seed: the seed of every random choice.
        metric: the name of a metric, see `evaluation.metrics`; a custom metric's has the whole path of its file.
        pseudo_labels: whether the last members also train on confident predictions of the test images.
        like: sample submission of the contest that submission.csv follows; None for the contest's plain CSV.
        sample_format, labels, image_names: layout of the boxes, meaning of the labels and names of images, where `like` leaves
            them open.
        images: the folder of the images; None where they are found beside the annotations.
        ignore_orientation: whether pixels are taken as stored, whatever an EXIF tag says.
        tracker: second places for the curves and scores, such as "wandb:PROJECT"; see `training.trackers`.
        device: the device of every network: auto, cpu, cuda, cuda:N or mps.
        offline: whether no network is tried, in a resume either.
    """

    data: Path
    test: Path | None = None
    deadline: float = 600.0
    out: Path = Path("campaign")
    recipe: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    image_size: tuple[int, ...] = ()
    set: tuple[str, ...] = ()
    folds: int | str = 5
    train_folds: TrainFolds = AUTO
    external_run: tuple[Path, ...] = ()
    external_predictions: tuple[str, ...] = ()
    seed: int = 0
    metric: str = "ap50"
    pseudo_labels: bool = False
    like: Path | None = None
    sample_format: str | None = None
    labels: CategoryIds | None = None
    image_names: ImageNames | None = None
    images: Path | None = None
    ignore_orientation: bool = False
    tracker: tuple[str, ...] = ()
    device: str = "auto"
    offline: bool = False

    def absolute(self) -> CampaignRequest:
        """The request with absolute paths, so that the campaign can be resumed from any folder."""
        return replace(
            self,
            data=self.data.resolve(),
            test=self.test and self.test.resolve(),
            like=self.like and self.like.resolve(),
            images=self.images and self.images.resolve(),
            metric=absolute_name(self.metric),
            tracker=tuple(map(absolute_tracker, self.tracker)),
            folds=self.folds if isinstance(self.folds, int) else str(Path(self.folds).resolve()),
            external_run=tuple(folder.resolve() for folder in self.external_run),
            external_predictions=tuple(
                ":".join(str(Path(file).resolve()) for file in pair.rpartition(":")[::2])
                for pair in self.external_predictions
            ),
        )

    @property
    def wanted_folds(self) -> TrainFolds:
        """`train_folds`, or 1 with pseudo-labels: those by members of one fold carry what they learnt to members of another."""
        return 1 if self.train_folds == AUTO and self.pseudo_labels else self.train_folds

    def check(self, cards: Sequence[str] | None = None, *, download: bool = True) -> DefaultCandidates:
        """Checks the request, and returns the candidates, with a reason where the machine's cards chose them.

        Args:
            cards: names of the cards that decide on the default candidates; None for those of this machine.
            download: whether initial weights that are missing are downloaded; a plan needs none.

        Raises:
            InputError: the deadline is too short, there is no such recipe, image size, metric, tracker or device, or a recipe's
                initial weights are missing.
        """
        if self.deadline < c.MIN_DEADLINE:
            raise InputError(
                f"the deadline is {format_duration(self.deadline)}, and even one member needs "
                f"{format_duration(c.MIN_DEADLINE)}. Give more time."
            )
        if self.train_folds not in (AUTO, 1) and self.pseudo_labels:
            raise InputError(
                f"--train-folds {self.train_folds} with --pseudo-labels: a member would learn from labels by members that have "
                "learnt its held-out images. Give --train-folds 1, or leave one of the two out."
            )
        check_trackers(self.tracker)
        if cards is None:
            cards = () if self.recipe else card_names(self.device)
        check = partial(check_start, download=download)
        defaults = default_candidates(cards, forbidden=self.forbid, check=check)
        recipes = candidate_recipes(self.recipe, forbidden=self.forbid, changes=self.set, defaults=defaults.recipes)
        for recipe in recipes.values():
            check_image_sizes(self.image_size, recipe)
            if recipe.init_weights in ("coco", "imagenet") or any(
                change.startswith("init_weights=") for change in self.set
            ):
                check(recipe)  # loads torch; a default's detection weights come with the package
        get_metric(self.metric)
        if self.device != "auto":
            choose_device(self.device)  # loads torch
        return replace(defaults, recipes=recipes)

    def read_inputs(self) -> Inputs:
        """The data of the campaign. Raises InputError where it cannot be used."""
        folds = self.folds if isinstance(self.folds, int) else Path(self.folds)
        return read_inputs(self.data, self.test, folds, images=self.images, ignore_orientation=self.ignore_orientation)

    def read_sample(self, inputs: Inputs, path: Path | None = None) -> SampleSubmission | None:
        """The sample submission, from its copy at `path` where one is given; None without --like.

        Raises:
            InputError: there are no test images, or the sample is not one of them.
        """
        if self.like is None:
            if (self.sample_format, self.labels, self.image_names) != (None, None, None):
                raise InputError(
                    "--format, --labels and --image-names say what a sample submission leaves open. Add --like SAMPLE, or "
                    "leave them out."
                )
            return None
        if inputs.test is None:
            raise InputError(f"--like {self.like}: shows a submission for test images, and none are given. Add --test.")
        names = None if self.image_names is None else reading_of(self.image_names)
        return read_sample(path or self.like, inputs.test, format=self.sample_format, labels=self.labels, names=names)

    def make_task(self, inputs: Inputs, recipes: dict[str, Recipe], ledger: Ledger) -> Task:
        """The task of the campaign. Raises InputError where its images cannot be used, or its sample submission is no more."""
        sample = self.read_sample(inputs, ledger.folder / SAMPLE if (ledger.folder / SAMPLE).exists() else None)
        task = prepare_task(
            inputs,
            recipes,
            image_sizes=self.image_size,
            seed=self.seed,
            metric=self.metric,
            pseudo_labels=self.pseudo_labels,
            device=self.device,
            ledger=ledger,
        )
        first = ledger.get("train_folds") is None
        folds = read_folds(ledger.folder / "folds.json")
        task = with_trained_folds(
            task,
            folds,
            wanted=self.wanted_folds,
            ledger=ledger,
            external_runs=self.external_run,
            external_predictions=self.external_predictions,
        )
        if first:
            note_weights(recipes, task.val, ledger)
        return replace(task, sample=sample)


_FLAGS = {"sample_format": "--format"}  # "format" is the version in a record
_ALWAYS_SHOWN = ("deadline", "out", "seed")


def command_line(request: CampaignRequest, *, ray: str | None) -> str:
    """The command that makes this request, on the Ray cluster at an address where one is given."""
    words = ["foldfuse", "campaign", str(request.data)]
    for field in fields(request):
        value = getattr(request, field.name)
        if field.name == "data" or (value == field.default and field.name not in _ALWAYS_SHOWN):
            continue
        flag = _FLAGS.get(field.name, f"--{field.name.replace('_', '-')}")
        text = duration_option(value) if field.name == "deadline" else value
        for one in text if isinstance(text, tuple) else (text,):
            words += [flag] if one is True else [flag, str(one)]
    return shlex.join([*words, *(["--ray", ray] if ray is not None else [])])
