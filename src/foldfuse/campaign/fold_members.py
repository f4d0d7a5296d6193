"""Members of several folds: the segments that differ in their held-out fold alone are one member of the ensemble.

Out-of-fold such a member predicts each held-out image by the one segment that has not learnt it. A new image is predicted by all
its segments, which share the member's weight. An external member has learnt the images of none of the folds, and predicts all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from foldfuse.campaign import constants as c
from foldfuse.campaign.planning.segments import member_name
from foldfuse.campaign.task import Task
from foldfuse.data.dataset import Dataset
from foldfuse.detections import Predictions
from foldfuse.ensemble.member_views import MemberView
from foldfuse.inference.class_labels import concat_shards
from foldfuse.storage.segments import Role, SegmentRecord


@dataclass(frozen=True, eq=False)
class FoldMembers:
    """What an ensemble can be chosen from.

    Attributes:
        folds: the folds whose held-out images all candidates have predicted.
        parts: {member without its fold, and view: the same of each fold's segment, in the order of `folds`}; an external member
            is its own only part.
    """

    folds: tuple[int, ...]
    parts: Mapping[MemberView, tuple[MemberView, ...]]

    def candidates(
        self, val: Mapping[MemberView, Predictions], image_ids: Sequence[int]
    ) -> dict[MemberView, Predictions]:
        """The out-of-fold predictions of each candidate.

        Args:
            val: {segment and view: predictions of the segment's held-out images}; of an external member those of all folds.
            image_ids: the held-out images of `folds`.
        """
        joined = {key: concat_shards([val[part] for part in parts], image_ids) for key, parts in self.parts.items()}
        return {key: p if len(p) == len(image_ids) else p.select_images(image_ids) for key, p in joined.items()}


def held_out_from(record: SegmentRecord, task: Task) -> Dataset:
    """The held-out images that a segment predicts: those of its fold, or of all folds as an external member."""
    return task.val if record.role.is_external else task.val_in(record.fold)


def choose_folds(
    predicted: Iterable[MemberView],
    records: Sequence[SegmentRecord],
    *,
    folds: Sequence[int],
    submitted: Sequence[int],
    last: bool,
) -> FoldMembers:
    """The folds on which an ensemble is chosen now, with its candidates.

    Those of the submission so far stay until all their members, a cooldown run among them, have been trained on more folds: base
    runs of two folds are no match for the whole of one. The `last` ensemble is chosen on the folds that give most segments, since
    some may have failed or had no time; external members, which predict all folds, decide nothing.

    Args:
        predicted: segments and views that have predicted their held-out images.
        records: the ledger's records of all segments.
        folds: the folds that the campaign trains.
        submitted: the folds of the submission so far; empty where there is none.
        last: whether no segment is to come.
    """
    by_name = {record.name: record for record in records}
    segments: dict[MemberView, dict[int, MemberView]] = {}
    external, cooldowns = set[MemberView](), set[MemberView]()
    for key in predicted:
        record = by_name[key.member]
        member = MemberView(member_name(record), key.view)
        segments.setdefault(member, {}).update(dict.fromkeys(folds if record.role.is_external else (record.fold,), key))
        if record.role.is_external:
            external.add(member)
        if record.role == Role.COOLDOWN:
            cooldowns.add(member)
    choices = [chosen for number in range(1, len(folds) + 1) for chosen in combinations(folds, number)]
    members = {chosen: _complete(segments, chosen) for chosen in choices}

    def number(chosen: tuple[int, ...]) -> tuple[int, int]:
        return len(chosen) * len(members[chosen] - external), len(chosen)

    before = tuple(submitted)
    if not before and not last and not segments.keys() - external:
        before = tuple(folds[:1])  # the first members of the campaign's own will be of this fold
    if last or not before:
        best = max(choices, key=number)
    else:
        more = (
            chosen
            for chosen in choices
            if {*chosen} > {*before} and members[chosen] >= members[before] and members[chosen] & cooldowns
        )
        best = max((before, *more), key=number)
    parts = {
        key: tuple(dict.fromkeys(each[fold] for fold in best)) for key, each in segments.items() if key in members[best]
    }
    return FoldMembers(best, parts)


def choose_base_runs(records: Sequence[SegmentRecord], names: Sequence[str], *, folds: Sequence[int]) -> FoldMembers:
    """The base runs to compare in the plain view, and the folds of most of them: those that are done in the first fold.

    Args:
        records: the ledger's records of all segments.
        names: the compared base runs of all folds, each done or failed.
        folds: the folds that the campaign trains.
    """
    done = [record for record in records if record.name in names and record.state == "done"]
    first = {record.name for record in done if record.fold == folds[0]}
    predicted = [MemberView(record.name, str(c.PLAIN_VIEW)) for record in done if member_name(record) in first]
    return choose_folds(predicted, records, folds=folds, submitted=(), last=True)


def superseded(records: Sequence[SegmentRecord]) -> frozenset[str]:
    """Names of the base and extended runs that a finished run continues: earlier states of it, where nothing is compared."""
    done = [record for record in records if record.state == "done" and record.role != Role.SOUP]
    return frozenset(record.parent for record in done if record.parent is not None)


def _complete(segments: Mapping[MemberView, Mapping[int, MemberView]], folds: Sequence[int]) -> set[MemberView]:
    """The members and views that each of these folds has."""
    return {key for key, each in segments.items() if all(fold in each for fold in folds)}
