"""The images that a run has learnt from: recorded when it trains, looked for when it predicts.

A score on learnt images says nothing about new images. Images are compared by the content of their files, so that other ids,
names and folders do not hide them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from foldfuse.data.content_hashes import image_hashes, known_images
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.recipes import INIT_WORDS
from foldfuse.storage.run import Run


def record_learnt_images(run: Run, samples: Sequence[Sample], *, init_weights: str | None = None) -> None:
    """Writes what a run learns from, unless it is written already: the samples, and the images of the run it starts from.

    Args:
        run: the run.
        samples: the samples that it trains on.
        init_weights: the recipe's field; the folder of a run adds the images of that run.
    """
    if run.learnt_images is None:
        run.write_learnt_images({*image_hashes(samples), *learnt_before(init_weights)})


def learnt_before(init_weights: str | None) -> frozenset[str]:
    """The hashes of the images behind initial weights; none where they are not of a run that recorded its images."""
    if init_weights in (None, *INIT_WORDS) or not Path(init_weights).is_dir():
        return frozenset()
    return Run(Path(init_weights)).learnt_images or frozenset()


def learnt_ids(run: Run, dataset: Dataset, *, strict: bool = False) -> frozenset[int]:
    """The ids of the images of `dataset` that a run has learnt from.

    Args:
        run: the run. Without a record, as of an imported one, it is taken to know the images of its own data file, except for
            its held-out images.
        dataset: the images.
        strict: a run without a record is taken to know all images but its held-out ones, whatever its data file.

    Raises:
        InputError: the run has no metadata, or an image cannot be read.
    """
    hashes = run.learnt_images
    if hashes is not None:
        return ids_of_hashes(dataset, hashes)
    metadata = run.metadata
    source = dataset.source.resolve()
    own_data = metadata.data != "" and Path(metadata.data).resolve() in (source, source.parent)
    if not (own_data or strict):
        return frozenset()
    return frozenset(dataset.image_ids) - frozenset(metadata.val_ids)


def ids_of_hashes(dataset: Dataset, hashes: Collection[str]) -> frozenset[int]:
    """The ids of the images of `dataset` whose content is among `hashes`."""
    return frozenset(sample.id for sample in known_images(dataset.samples, hashes)) if hashes else frozenset()
