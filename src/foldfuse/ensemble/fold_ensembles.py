"""Out-of-fold predictions of a learned ensemble: each image is fused with models that have not learnt from its part.

Calibrations and a stacking model that have learnt from an image score its boxes too well, so that a score of the ensemble there
says little about new images. The ensemble for new images learns from all images; for the images that it learns from there is one
more ensemble for each part of them, which differs in its models alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foldfuse.detections import Array, Predictions
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble


@dataclass(frozen=True)
class FoldEnsemble:
    """An ensemble whose models have learnt from no annotation of some images.

    Attributes:
        image_ids: these images.
        ensemble: the ensemble.
    """

    image_ids: tuple[int, ...]
    ensemble: Ensemble

    def without(self, names: Collection[str]) -> FoldEnsemble:
        """The same without some members; the others keep their settings."""
        return replace(self, ensemble=self.ensemble.without(names))


def apply_out_of_fold(
    ensemble: Ensemble, fold_ensembles: Sequence[FoldEnsemble], members: Mapping[str, Predictions]
) -> Predictions:
    """The members fused by the ensemble, each image with models that have not learnt from it.

    Args:
        ensemble: fitted on all images; applied where there is none for the parts.
        fold_ensembles: of the parts of the images, which are all images of the members together; none where nothing is fitted.
        members: {name: out-of-fold predictions}.
    """
    if not fold_ensembles:
        return apply_ensemble(ensemble, members)
    chosen = {name: members[name] for name in ensemble.weights}
    parts = [
        apply_ensemble(one.ensemble, {name: member.select_images(one.image_ids) for name, member in chosen.items()})
        for one in fold_ensembles
    ]
    return _joined(parts, next(iter(chosen.values())).image_ids)


def _joined(parts: Sequence[Predictions], order: Array) -> Predictions:
    """The predictions of all parts, their images in the order of these ids."""
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    whole = replace(
        parts[0],
        image_ids=np.concatenate([part.image_ids for part in parts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        boxes=np.concatenate([part.boxes for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )
    return whole.select_images(order[np.isin(order, whole.image_ids)])
