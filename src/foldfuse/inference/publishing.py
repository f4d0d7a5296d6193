"""Writes what is published on the Hugging Face hub: the files of a bundle with a model card, without facts of this machine."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from foldfuse.errors import InputError
from foldfuse.inference import bundle
from foldfuse.inference.bundle import BundleRecord
from foldfuse.inference.bundle_writer import check, collect
from foldfuse.inference.hub import CARD, TEXTS, is_published_file
from foldfuse.inference.model_card import CardScores, held_out_scores, model_card
from foldfuse.inference.predictor import load
from foldfuse.provenance import WeightsOrigin, origins_page
from foldfuse.storage.recipe_file import write_recipe
from foldfuse.storage.run import Run, RunMetadata
from foldfuse.system.atomic_files import write_text
from foldfuse.system.records import to_plain
from foldfuse.system.wheels import package_texts

_PATH = re.compile(r"(run |file )?((?:[A-Za-z]:|~)?[\\/][^:'\"\n]*)")
_FOLDERS = re.compile(r"(?<![:/\w.])(?:[A-Za-z]:|~)?[\\/](?:[^\s\\/'\":]+[\\/])+")  # of an absolute path within a text


def write_repository(
    source: Path,
    folder: Path,
    name: str,
    *,
    members: Mapping[str, str | Path] | None = None,
    licence: str | None = None,
) -> list[WeightsOrigin]:
    """Fills a folder with what is published, opens every network from it, and returns where the initial weights come from.

    Left out of the records are the paths, commands and trackers of this machine; hashes of the training images stay.

    Args:
        source: a run, an ensemble.json, a campaign, or a bundle of one of these.
        folder: an empty folder.
        name: "owner/name" of the repository.
        members: {member of an ensemble: the folder of its run}, see `predictor.load`.
        licence: see `model_card`.

    Raises:
        InputError: nothing trained is there, or a member cannot be bundled.
    """
    with tempfile.TemporaryDirectory(prefix="foldfuse-publish-") as temporary:
        record, scores = _write_files(source, folder, Path(temporary), members)
    runs = {part.member: Run(folder / bundle.MEMBERS / part.member) for part in record.parts}
    data = {member: _file_name(run.metadata.data) for member, run in runs.items()}
    for run in runs.values():
        run.write_metadata(public_metadata(run.metadata))
        recipe = run.recipe
        write_recipe(replace(recipe, init_weights=without_folders(recipe.init_weights)), run.folder / "recipe.json")
    card = model_card(record, runs, name=name, licence=licence, scores=scores, data=data)
    write_text(folder / CARD, card)
    write_text(folder / "weights.md", origins_page({member: run.metadata.weights for member, run in runs.items()}))
    check(folder)
    return [origin for run in runs.values() for origin in run.metadata.weights or ()]


def _write_files(
    source: Path, folder: Path, temporary: Path, members: Mapping[str, str | Path] | None
) -> tuple[BundleRecord, CardScores | None]:
    """Writes the files of the bundle, and returns its record and the scores that the source stores."""
    scores = None
    files: dict[str, Path | bytes]
    if bundle.is_bundle(source):
        if members:
            raise InputError(f"{source}: is a bundle, which brings its own members. Leave out --member.")
        record = bundle.read_bundle_record(source)
        if not source.is_dir():
            bundle.extract(source, temporary)
        place = source if source.is_dir() else temporary
        files = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
        files |= package_texts()
    else:
        predictor = load(source, device="cpu", members=members)
        files, record = collect(predictor, source, temporary, runtime="torch")
        scores = held_out_scores(source) if source.is_dir() else None
    record = replace(record, notes=tuple(map(without_folders, record.notes)))
    text = json.dumps(to_plain(record, version=bundle.VERSION), indent=1, allow_nan=False)
    files[bundle.RECORD] = f"{text}\n".encode()
    for name, content in files.items():
        if not (is_published_file(name) or name in TEXTS):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            shutil.copyfile(content, target)
    return record, scores


def public_metadata(metadata: RunMetadata) -> RunMetadata:
    """The metadata of a run without the paths, the command and the trackers of the machine that trained it."""
    weights = metadata.weights
    if weights is not None:
        weights = tuple(
            WeightsOrigin(*map(without_folders, (each.name, each.source, each.licence, each.data))) for each in weights
        )
    origin = metadata.origin
    started = metadata.started_from
    return replace(
        metadata,
        data="",
        images=None,
        folds=None,
        val=None,
        command=None,
        trackers=(),
        origin=None if origin is None else {key: without_folders(value) for key, value in origin.items()},
        started_from=None if started is None else without_folders(started),
        weights=weights,
    )


def without_folders(text: str) -> str:
    """A text in which each absolute path has become the name of its file; only a path that is the whole text may hold blanks."""
    if whole := _PATH.fullmatch(text):
        return (whole[1] or "") + _file_name(whole[2])
    return _FOLDERS.sub("", text.replace(str(Path.home()), "/home"))


def _file_name(path: str) -> str:
    """The last part of a path of any system."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
