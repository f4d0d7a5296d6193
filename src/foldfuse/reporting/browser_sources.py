"""Where predictions to look at come from: a file, the folder of a campaign, or the folder of a run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from foldfuse.ensemble.ensemble import read_ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.errors import InputError
from foldfuse.reporting.records import Segment, record_from
from foldfuse.storage.ledger import is_campaign
from foldfuse.storage.notes import read_snapshot

FUSED = "fused"
PLAIN_VIEW = "1"  # the TTA view of the image as it is


@dataclass(frozen=True)
class PredictionSource:
    """One layer of predictions.

    Attributes:
        name: its name on the page.
        paths: the file; of a campaign or a run, its out-of-fold predictions, of a member of several folds a file of each fold.
        tests: where a campaign or a run may have its predictions of test images, of a member of several folds those of each
            fold; empty for other files.
    """

    name: str
    paths: tuple[Path, ...]
    tests: tuple[Path, ...] = ()

    @property
    def path(self) -> Path:
        """The first file."""
        return self.paths[0]


def find_sources(path: Path, name: str, *, is_prefixed: bool) -> list[PredictionSource]:
    """The layers at a path: the fused predictions of a campaign and its members' plain ones, a run's, or those of a file.

    Args:
        path: a file of predictions, a folder of YOLO files, a campaign or a run.
        name: the name of the layer.
        is_prefixed: whether the name stands before the names of a campaign's layers.

    Raises:
        InputError: a campaign or a run has no predictions, or its ensemble cannot be read.
    """
    if is_campaign(path):
        return _campaign_sources(path, f"{name}: " if is_prefixed else "")
    if (path / "run.json").is_file():
        advice = f"Predict with it first: foldfuse predict {path} DATA --out predictions.parquet."
        return [
            _source(name, path / "oof.parquet", path / "test.parquet", f"{path}: this run has no predictions. {advice}")
        ]
    return [PredictionSource(name, (path,))]


def _campaign_sources(folder: Path, prefix: str) -> list[PredictionSource]:
    """The fused predictions, then those of each member of the ensemble in the view of the image as it is.

    As in the ensemble, the segments of several folds are one member.
    """
    missing = f"{folder}: this campaign has no predictions yet. Wait for its first submission."
    sources = [_source(f"{prefix}{FUSED}", folder / "fused_oof.parquet", folder / "fused_test.parquet", missing)]
    ensemble = folder / "ensemble.json"
    weights = read_ensemble(ensemble).weights if ensemble.is_file() else {}
    keys = [MemberView.parse(name) for name, weight in weights.items() if weight > 0]
    used = {key.member for key in keys if key is not None}
    segments: dict[str, Segment] = {}
    with suppress(InputError):  # without the ledger each folder keeps its own name
        segments = {s.name: s for s in record_from(read_snapshot(folder)).segments}
    members: dict[str, list[Path]] = {}
    for path in sorted((folder / "members").glob("*/")):
        if _held_out(path).is_file() and (not used or path.name in used):
            members.setdefault(segments[path.name].member if path.name in segments else path.name, []).append(path)
    sources += [
        PredictionSource(
            f"{prefix}{name}", tuple(map(_held_out, folds)), tuple(f / f"test@{PLAIN_VIEW}.parquet" for f in folds)
        )
        for name, folds in members.items()
    ]
    return sources


def _held_out(member: Path) -> Path:
    """The predictions of the images that a member's folder holds out."""
    return member / f"val@{PLAIN_VIEW}.parquet"


def _source(name: str, out_of_fold: Path, test: Path, missing: str) -> PredictionSource:
    if not out_of_fold.is_file() and not test.is_file():
        raise InputError(missing)
    return PredictionSource(name, (out_of_fold if out_of_fold.is_file() else test,), (test,))
