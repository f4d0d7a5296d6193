"""Members of several folds: the segments that differ in their held-out fold alone are one member of the ensemble.

Out-of-fold such a member predicts each held-out image by the one segment that has not learnt it. A new image is predicted by all
its segments, which share the member's weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from foldfuse.campaign.planning.segments import member_name
from foldfuse.detections import Predictions
from foldfuse.ensemble.member_views import MemberView
from foldfuse.inference.class_labels import concat_shards
from foldfuse.storage.segments import SegmentRecord


@dataclass(frozen=True, eq=False)
class FoldMembers:
    """What an ensemble can be chosen from.

    Attributes:
        folds: the folds whose held-out images all candidates have predicted.
        parts: {member without its fold, and view: the same of each fold's segment, in the order of `folds`}.
    """

    folds: tuple[int, ...]
    parts: Mapping[MemberView, tuple[MemberView, ...]]

    def candidates(
        self, val: Mapping[MemberView, Predictions], image_ids: Sequence[int]
    ) -> dict[MemberView, Predictions]:
        """The out-of-fold predictions of each candidate.

        Args:
            val: {segment and view: predictions of the segment's held-out images}.
            image_ids: the held-out images of `folds`.
        """
        if len(self.folds) == 1:
            return {key: val[part] for key, (part,) in self.parts.items()}
        return {key: concat_shards([val[part] for part in parts], image_ids) for key, parts in self.parts.items()}


def choose_folds(
    predicted: Iterable[MemberView],
    records: Sequence[SegmentRecord],
    *,
    folds: Sequence[int],
    submitted: Sequence[int],
    last: bool,
) -> FoldMembers:
    """The folds on which an ensemble is chosen now, with its candidates.

    Those of the submission so far stay until all their members have been trained on more folds. The `last` ensemble is chosen on
    the folds that give most segments, since some may have failed or had no time.

    Args:
        predicted: segments and views that have predicted their held-out images.
        records: the ledger's records of all segments.
        folds: the folds that the campaign trains.
        submitted: the folds of the submission so far; empty where there is none.
        last: whether no segment is to come.
    """
    by_name = {record.name: record for record in records}
    segments: dict[MemberView, dict[int, MemberView]] = {}
    for key in predicted:
        record = by_name[key.member]
        segments.setdefault(MemberView(member_name(record), key.view), {})[record.fold] = key
    choices = [chosen for number in range(1, len(folds) + 1) for chosen in combinations(folds, number)]
    members = {chosen: _complete(segments, chosen) for chosen in choices}

    def number(chosen: tuple[int, ...]) -> tuple[int, int]:
        return len(chosen) * len(members[chosen]), len(chosen)

    before = tuple(submitted)
    if last or not before:
        best = max(choices, key=number)
    else:
        best = max(
            (chosen for chosen in choices if members[chosen] >= members[before] and {*chosen} >= {*before}), key=number
        )
    parts = {key: tuple(each[fold] for fold in best) for key, each in segments.items() if key in members[best]}
    return FoldMembers(best, parts)


def _complete(segments: Mapping[MemberView, Mapping[int, MemberView]], folds: Sequence[int]) -> set[MemberView]:
    """The members and views that each of these folds has."""
    return {key for key, each in segments.items() if all(fold in each for fold in folds)}
