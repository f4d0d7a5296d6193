"""A metric of the user's own: a Python function in a file that the user names, as "file.py:name".

    def name(truth: list[Annotations], predictions: list[Detections]) -> float

Both lists have one entry an image, in the same order. Larger values are better. `truth[i]` has the arrays boxes (n, 4) xyxy in
pixels, labels, crowd and area; `predictions[i]` has boxes, scores and labels, best score first, the names of all classes, and the
Sample as `image` (its file_name, width, height, id). The function gets all boxes, those of low scores too. On a bootstrap
resample an image is in the lists as often as it was drawn. The arrays cannot be written to.

This is the one place where Foldfuse runs code of a file, and only of a file that the command line (or a Python call) names: a
path in a campaign's folder, or in any other file, is never run.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import sys
import time
import traceback
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foldfuse.data.dataset import Sample
from foldfuse.detections import Annotations, Array, Detections, Predictions
from foldfuse.errors import InputError, counted, shown
from foldfuse.evaluation.matching import GroundTruth
from foldfuse.system.files import read_text

MAX_BYTES = 2**20  # of the file, whose text a campaign stores
EXAMPLE = "metric.py:name"
CONTRACT = (
    "A metric is a function of (truth, predictions), two lists with an entry for each image, that returns a number."
)


@dataclass(frozen=True, eq=False)
class CustomMetric:
    """A metric of the user's own.

    Attributes:
        name: as it was given, "file.py:name".
        path: the file.
        function: the function.
        source: the text of the file.
    """

    name: str
    path: Path
    function: Callable[[list[Annotations], list[Detections]], Any]
    source: str

    @property
    def sha256(self) -> str:
        """The hash of the file's text."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def of(self, predictions: Predictions, truth: GroundTruth) -> CustomValues:
        """The metric of predictions, ready for any sample of the images."""
        annotations = [_annotations(sample) for sample in truth.samples]
        detections = [_detections(predictions, sample) for sample in truth.samples]
        return CustomValues(self, annotations, detections)

    def value(self, truth: Sequence[Annotations], predictions: Sequence[Detections]) -> float:
        """What the function returns for these images.

        Raises:
            InputError: the function raises an exception, or returns no finite number.
        """
        try:
            returned = self.function(list(truth), list(predictions))
        except (Exception, SystemExit) as error:
            boxes = f"{sum(map(len, predictions)):,} predicted boxes"
            called = f"called with {counted(len(truth), 'image')} and {boxes}"
            raise InputError(f"{_place(error, self.path)}: raised {_words(error)}, {called}. {_FIX}") from None
        value = _number(returned)
        if value is None or not math.isfinite(value):
            raise InputError(
                f"{self.path}: {self.label} returned {_shown(returned)} for {counted(len(truth), 'image')}, expected a finite "
                "number, larger for better predictions. A resample may lack a class, or hold no object at all: return 0 there."
            )
        return value

    @property
    def label(self) -> str:
        """The name of the function."""
        return self.name.rpartition(":")[2]


@dataclass(eq=False)
class CustomValues:
    """The values of a custom metric for predictions, on any sample of the images: a `ResampledMetric` that measures its time.

    Attributes:
        metric: the metric.
        truth, predictions: of each image.
        seconds, calls: of the function so far.
    """

    metric: CustomMetric
    truth: Sequence[Annotations]
    predictions: Sequence[Detections]
    seconds: float = field(default=0.0, init=False)
    calls: int = field(default=0, init=False)

    def __call__(self, image_counts: Array) -> Array:
        """(S,) values for (S, I) how often each image is in each of S samples."""
        return np.array([self._value(counts) for counts in image_counts])

    @property
    def call_seconds(self) -> float:
        """The mean time of a call; 0 before the first."""
        return self.seconds / max(self.calls, 1)

    def _value(self, counts: Array) -> float:
        picked = np.repeat(np.arange(len(counts)), counts).tolist()
        start = time.perf_counter()
        value = self.metric.value([self.truth[i] for i in picked], [self.predictions[i] for i in picked])
        self.seconds, self.calls = self.seconds + time.perf_counter() - start, self.calls + 1
        return value


_FIX = "Correct the function; what it gets is in docs/scoring.md."
_LOADED: dict[str, CustomMetric] = {}  # by name; a campaign of hours keeps the text that it began with


def is_custom(name: str) -> bool:
    """Whether the name of a metric is that of a function in a file: "file.py:name"."""
    return re.fullmatch(r".+\.py:\w+", name, re.DOTALL) is not None


def absolute_name(name: str) -> str:
    """The name with the whole path of the file; another metric's name as it is."""
    if not is_custom(name):
        return name
    path, _, function = name.rpartition(":")
    return f"{Path(path).resolve()}:{function}"


def metric_label(name: str) -> str:
    """A metric's name in a sentence: "AP50", or the name of a custom metric's function."""
    return name.rpartition(":")[2] if is_custom(name) else name.upper()


def custom_metric(name: str) -> CustomMetric:
    """The custom metric of this name; its file is read and run once in a process, or again by `load_custom_metric`."""
    found = _LOADED.get(absolute_name(name))
    return load_custom_metric(name) if found is None else found


def load_custom_metric(name: str) -> CustomMetric:
    """The custom metric of this name, its file read and run now, unless its text is the same as before.

    Raises:
        InputError: there is no such file, running it raises an exception, or it has no such function of two arguments.
    """
    key = absolute_name(name)
    text, _, label = name.rpartition(":")
    path = Path(text)
    source = read_text(
        path, what="Python code", limit=MAX_BYTES, hint=f"--metric takes FILE.py:NAME, such as {EXAMPLE}."
    )
    known = _LOADED.get(key)
    if known is not None and known.source == source:
        return known
    function = getattr(_module(path.resolve(), source), label, None)
    if not callable(function):
        raise InputError(f"{path}: has no function {shown(label)}. {CONTRACT}")
    try:
        inspect.signature(function).bind([], [])
    except (TypeError, ValueError):
        raise InputError(f"{path}: {label} does not take two arguments. {CONTRACT}") from None
    _LOADED[key] = found = CustomMetric(name, path, function, source)
    return found


def _module(path: Path, source: str) -> types.ModuleType:
    """The module of a file, run."""
    name = f"foldfuse_custom_metric_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno or 1}: is no Python code ({error.msg}). Correct it.") from None
    except (Exception, SystemExit) as error:
        hint = "Only installed packages can be imported." if isinstance(error, ImportError) else "Correct the file."
        raise InputError(f"{_place(error, path)}: raised {_words(error)} when the file was run. {hint}") from None
    return module


def check_ranks(metric: CustomMetric, truth: GroundTruth) -> float:
    """The seconds of a call for all images; the annotations themselves must score higher than no boxes at all.

    So a function that fails where nothing is predicted, or where lower is better, is found before anything is chosen by it.

    Raises:
        InputError: the function fails, or does not rank these two.
    """
    annotations = [_annotations(sample) for sample in truth.samples]
    perfect = [
        Detections(a.boxes[~a.crowd], np.ones(int((~a.crowd).sum())), a.labels[~a.crowd], truth.classes, sample)
        for a, sample in zip(annotations, truth.samples, strict=True)
    ]
    nothing = [
        Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), truth.classes, sample)
        for sample in truth.samples
    ]
    start = time.perf_counter()
    best = metric.value(annotations, perfect)
    seconds = time.perf_counter() - start
    worst = metric.value(annotations, nothing)
    if sum(map(len, perfect)) and best <= worst:
        raise InputError(
            f"{metric.path}: {metric.label} is {best:.6g} for the annotations themselves and {worst:.6g} for no boxes at all. "
            "A larger value must be better: return the negative of a loss."
        )
    return seconds


def _annotations(sample: Sample) -> Annotations:
    found = sample.annotations or Annotations.empty()
    return Annotations(*map(_read_only, (found.boxes, found.labels, found.crowd, found.area)))


def _detections(predictions: Predictions, sample: Sample) -> Detections:
    found = predictions[sample.id] if sample.id in predictions else Detections.empty()
    order = np.argsort(-found.scores, kind="stable")
    boxes, scores, labels = (_read_only(column[order]) for column in (found.boxes, found.scores, found.labels))
    return Detections(boxes, scores, labels, predictions.classes, sample)


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _number(value: Any) -> float | None:
    """A returned value as a number; None for anything else."""
    if isinstance(value, bool | np.bool_ | str | bytes) or getattr(value, "ndim", None):
        return None
    try:
        return float(value)
    except Exception:
        return None


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value)
    return shown(value) if isinstance(value, int | float | str) else f"a value of type {type(value).__name__}"


def _place(error: BaseException, path: Path) -> str:
    """ "FILE:LINE: function" where an exception came from in the user's file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path.resolve())]
    if not frames:
        return str(path)
    where = f"{path}:{frames[-1].lineno}"
    return where if frames[-1].name == "<module>" else f"{where}: {frames[-1].name}"


def _words(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{f': {lines[0][:200]}' if lines else ''}"
