"""Compares two sets of predictions by a paired bootstrap over the images.

A metric of the user's own is slow by nature: it is measured on as many resamples as fit into a time, and on MIN_SAMPLES at least.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.custom_metric import CustomValues
from foldfuse.evaluation.matching import check_compatible, ground_truth
from foldfuse.evaluation.metrics import ResampledMetric, get_metric

SAMPLES = 1000  # bootstrap resamples
MIN_SAMPLES = 40  # fewer have no quantile 0.025
CUSTOM_SECONDS = 20.0  # for the resamples of a custom metric


@dataclass(frozen=True)
class Difference:
    """The difference of two metric values over bootstrap resamples of the images.

    Attributes:
        value: the difference on the images themselves, each counted once.
        low, high: the 95 % interval (quantiles 0.025 and 0.975 of the resamples); it is widened to `value` in the rare case
            that the resamples are so skewed that `value` lies outside.
        prob_better: the share of the resamples in which the first value is higher.
        samples: the number of resamples.
    """

    value: float
    low: float
    high: float
    prob_better: float
    samples: int = SAMPLES


def bootstrap_difference(
    a: Predictions, b: Predictions, dataset: Dataset, metric: str = "ap50", *, samples: int = SAMPLES, seed: int = 0
) -> Difference:
    """The bootstrap Difference of a metric, `a` minus `b`; each resample uses the same images for both predictions.

    Raises:
        InputError: as for `measure`; or `samples` is below 1.
    """
    chosen = get_metric(metric)
    for predictions in (a, b):
        check_compatible(predictions, dataset)
    truth = ground_truth(dataset)
    return difference(chosen.of(a, truth), chosen.of(b, truth), num_images=len(dataset), samples=samples, seed=seed)


def difference(
    first: ResampledMetric, second: ResampledMetric, *, num_images: int, samples: int = SAMPLES, seed: int = 0
) -> Difference:
    """The bootstrap Difference of two metrics of the same images, `first` minus `second`."""
    return differences_from(second, {"": first}, num_images=num_images, samples=samples, seed=seed)[""]


def differences_from(
    baseline: ResampledMetric,
    others: Mapping[str, ResampledMetric],
    *,
    num_images: int,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """{name: the bootstrap Difference of a metric from `baseline`, the metric minus `baseline`}; all on the same resamples."""
    if samples < 1:
        raise InputError(f"samples is {samples}, and must be 1 or more; 1000 is usual.")
    once = np.ones((1, num_images), np.int64)
    subtracted_once = baseline(once)[0]
    values = {name: float(metric(once)[0] - subtracted_once) for name, metric in others.items()}
    samples = min(samples, max(MIN_SAMPLES, affordable_samples([baseline, *others.values()], CUSTOM_SECONDS)))
    rng = np.random.default_rng(seed)
    image_counts = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=samples)  # (S, I)
    subtracted = baseline(image_counts)
    found = {}
    for name, metric in others.items():
        gain, value = metric(image_counts) - subtracted, values[name]
        low, high = map(float, np.quantile(gain, (0.025, 0.975)))
        found[name] = Difference(value, min(low, value), max(high, value), float((gain > 0).mean()), samples)
    return found


def affordable_samples(metrics: Iterable[ResampledMetric], seconds: float) -> int:
    """The resamples that metrics can be measured on within a time: SAMPLES, unless a custom metric is slow."""
    each = sum(metric.call_seconds for metric in metrics if isinstance(metric, CustomValues))
    return SAMPLES if each * SAMPLES <= seconds else int(max(seconds, 0.0) / each)
