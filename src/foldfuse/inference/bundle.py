"""Reads bundles: zips that hold everything an ensemble, a campaign or a run needs to predict. `bundle_writer` writes them.

bundle.json          what the bundle is: see `BundleRecord`
ensemble.json        members, weights and fusion; missing in the bundle of a single run
members/NAME/        a run without its training state: recipe.json, run.json, learnt_images.json, and its network,
                     weights.safetensors or network.onnx
rescorer.json, rescorer.safetensors, encoder.onnx  the crop rescorer, where there is one
thresholds.json      the best score thresholds, where they are known
and, for people, README.md, predict.py, weights.md, LICENSE, NOTICE and wheels/, which are never read here

A zip may come from anywhere: only files of these names are taken out of it, into a temporary folder, within limits of size. None
is executed. The folder that a zip was unpacked into, as Kaggle does with uploaded zips, is read in the same way. Works without
torch.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from foldfuse.ensemble.ensemble import Ensemble, read_ensemble
from foldfuse.errors import InputError, shown
from foldfuse.inference import rescorer_file
from foldfuse.inference.base_predictor import Predictor
from foldfuse.inference.ensemble_predictor import EnsemblePredictor, Part, predictor_of
from foldfuse.inference.networks import NETWORK, load_network
from foldfuse.inference.tta import View
from foldfuse.storage.run import Run
from foldfuse.system.files import parse_json
from foldfuse.system.records import from_plain, read_record

RECORD, ENSEMBLE, MEMBERS = "bundle.json", "ensemble.json", "members"
VERSION = 1
WHAT = "the record of a bundle"
RUN_FILES = ("recipe.json", "run.json", "learnt_images.json")  # of each member, beside its network
MEMBER_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}"
_OUR_FILES = re.compile(
    rf"(?:bundle|ensemble|rescorer|thresholds)\.json|rescorer\.safetensors|encoder\.onnx|"
    rf"{MEMBERS}/{MEMBER_NAME}/(?:(?:recipe|run|learnt_images)\.json|weights\.safetensors|{re.escape(NETWORK)})"
)
MAX_FILES = 10_000
MAX_RECORD_BYTES = 16 * 2**20
MAX_JSON_BYTES = 512 * 2**20  # hashes of ten million learnt images
MAX_TENSOR_BYTES = 8 * 2**30
MAX_GROWTH = 100  # times the size of the zip that its files may have together, beyond `MAX_RECORD_BYTES`

logger = logging.getLogger(__name__)

Runtime = Literal["torch", "onnx"]
NOUNS = ("run", "ensemble", "campaign")


@dataclass(frozen=True)
class BundlePart:
    """One pass of a member over the images; see `ensemble_predictor.Part`.

    Attributes:
        member: the name of its folder in members/.
        views: {member of the ensemble: its TTA views}; empty in the bundle of a single run.
        decoded_for: TTA views whose largest decides at which size images are decoded.
    """

    member: str
    views: dict[str, tuple[str, ...]] = field(default_factory=dict)
    decoded_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class BundleRecord:
    """What bundle.json holds.

    Attributes:
        noun: what was bundled: "run", "ensemble" or "campaign".
        source: its name.
        runtime: what runs the networks.
        parts: the passes of its members.
        notes: sentences on parts that cannot predict new images and were left out.
        versions: {package: its version where the bundle was made}.
        submission: options of `foldfuse submit` that say what the sample submission of the campaign leaves open.
    """

    noun: str
    source: str
    runtime: Runtime
    parts: tuple[BundlePart, ...]
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    submission: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks what the types leave open. Raises InputError."""
        names = {part.member for part in self.parts}
        if self.noun not in NOUNS or not names or (self.noun == "run" and len(self.parts) != 1):
            raise InputError(f"{len(self.parts)} parts are not those of a {shown(self.noun)}")
        for name in names:
            if not re.fullmatch(MEMBER_NAME, name):
                raise InputError(f"{shown(name)} is no name of a member")


class TemporaryFolder:
    """A folder that is removed with this object, or when the process ends.

    Attributes:
        path: the folder.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="foldfuse-bundle-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def is_bundle(path: Path) -> bool:
    """Whether a path is a zip, or a folder with the record of a bundle."""
    return path.suffix.lower() == ".zip" or (path / RECORD).is_file()


def needs_torch(path: Path) -> bool:
    """Whether torch runs what `load` opens at `path`; not so for an ONNX file or an exported campaign.

    Raises:
        InputError: a bundle cannot be read.
    """
    if path.suffix.lower() == ".onnx":
        return False
    return not (path.exists() and is_bundle(path)) or read_bundle_record(path).runtime != "onnx"


def read_bundle_record(path: Path) -> BundleRecord:
    """The record of a bundle, a zip or a folder.

    Raises:
        InputError: there is no bundle, or it is broken or of a later version.
    """
    if path.is_dir():
        return read_record(path / RECORD, BundleRecord, version=VERSION, what=WHAT)
    with _open_zip(path) as archive:
        try:
            info = archive.getinfo(RECORD)
        except KeyError:
            raise InputError(
                f"{path}: holds no {RECORD}, so it is no bundle. Write one: foldfuse bundle CAMPAIGN --out {path.name}"
            ) from None
        if info.file_size > MAX_RECORD_BYTES:
            raise InputError(f"{path}: its {RECORD} has {info.file_size:,} bytes, too many for {WHAT}.")
        try:
            text = archive.read(info).decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{path}: its {RECORD} is not UTF-8. Bundle again.") from None
    where = f"{path}: {RECORD}"
    return from_plain(parse_json(text, where, what="JSON"), BundleRecord, where=where, what=WHAT, version=VERSION)


def single_run(folder: Path, name: object) -> Run:
    """The run in the unpacked bundle of a single run, called `name` in sentences.

    Raises:
        InputError: the bundle is that of an ensemble or a campaign, or it is broken.
    """
    record = read_bundle_record(folder)
    if record.noun != "run" or record.runtime != "torch":
        raise InputError(
            f"{name}: is the bundle of {'an' if record.noun == 'ensemble' else 'a'} {record.noun}"
            f"{' exported as ONNX' if record.runtime == 'onnx' else ''}, and evaluate takes a run. Predict with it, then score: "
            f"foldfuse predict {name} DATA --out predictions.parquet, and foldfuse score predictions.parquet DATA."
        )
    return Run(folder / MEMBERS / record.parts[0].member)


def load_bundle(path: Path, *, device: str = "auto", engine: str = "auto") -> Predictor:
    """The predictor of a bundle, as `open_bundle` gives it; logs which parts of the ensemble could not be bundled."""
    predictor = open_bundle(path, device=device, engine=engine)
    for sentence in predictor.notes if isinstance(predictor, EnsemblePredictor) else ():
        logger.warning("%s", sentence)
    return predictor


def open_bundle(path: Path, *, device: str = "auto", engine: str = "auto") -> Predictor:
    """The predictor of a bundle; its files are taken out of a zip into a temporary folder that lives as long as the predictor.

    Args:
        path: the zip, or the folder that it was unpacked into.
        device, engine: see `predictor.load`.

    Raises:
        InputError: the bundle is broken or lacks a file.
    """
    record = read_bundle_record(path)
    temporary = None if path.is_dir() else TemporaryFolder()
    folder = path if temporary is None else temporary.path
    if temporary is not None:
        extract(path, folder)
    predictor = _predictor(path, folder, record, device, engine)
    return replace(predictor, source=path, extracted=temporary)


def _predictor(path: Path, folder: Path, record: BundleRecord, device: str, engine: str) -> Predictor:
    runs = {part.member: Run(folder / MEMBERS / part.member) for part in record.parts}
    for name, run in runs.items():
        if not run.exists or not (run.is_trained or (run.folder / NETWORK).is_file()):
            raise InputError(f"{path}: lacks the files of its member {name}. Bundle again, or copy the bundle again.")
    if record.noun == "run":
        return load_network(runs[record.parts[0].member], device=device, engine=engine)
    ensemble = read_ensemble(folder / ENSEMBLE)
    parts = [
        Part(
            runs[part.member],
            {name: tuple(map(View.parse, views)) for name, views in part.views.items()},
            tuple(map(View.parse, part.decoded_for)),
        )
        for part in record.parts
    ]
    _check_members(path, ensemble, parts)
    rescorer, learnt = None, frozenset[str]()
    if (folder / rescorer_file.SETTINGS).is_file():
        rescorer, learnt = rescorer_file.read_rescorer(folder, parts[0].run.metadata.classes, device=device)
    predictor = predictor_of(
        path,
        ensemble,
        parts,
        device=device,
        rescorer=rescorer,
        learnt_hashes=learnt,
        noun=record.noun,
        notes=record.notes,
    )
    return replace(predictor, engine=engine)


def _check_members(path: Path, ensemble: Ensemble, parts: list[Part]) -> None:
    """Raises InputError unless the parts predict each member of the ensemble once."""
    predicted = [name for part in parts for name in part.members]
    if sorted(predicted) != sorted(ensemble.weights) or not all(part.views for part in parts):
        raise InputError(f"{path}: {RECORD} and {ENSEMBLE} name different members. Bundle again.")


def extract(path: Path, folder: Path) -> None:
    """Takes the files that a bundle is read from out of a zip, into a folder; all others stay in the zip.

    Raises:
        InputError: the zip is broken, holds a file twice, or its files are too large.
    """
    with _open_zip(path) as archive:
        entries = [info for info in archive.infolist() if _OUR_FILES.fullmatch(info.filename)]
        _check_sizes(path, entries, shutil.disk_usage(folder).free)
        for info in entries:
            target = folder / info.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, target.open("xb") as file:  # a zip's links become files of text
                shutil.copyfileobj(source, file, 2**20)  # ends at the size that the zip states, and checks its CRC


def _check_sizes(path: Path, entries: list[zipfile.ZipInfo], free: int) -> None:
    if len(entries) > MAX_FILES or len({info.filename for info in entries}) < len(entries):
        raise InputError(f"{path}: holds a file twice, or too many files for a bundle. Bundle again.")
    for info in entries:
        limit = MAX_JSON_BYTES if info.filename.endswith(".json") else MAX_TENSOR_BYTES
        if info.file_size > limit:
            raise InputError(
                f"{path}: {info.filename} has {info.file_size:,} bytes, expected at most {limit:,}. Bundle again."
            )
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{path}: {info.filename} is encrypted, or compressed in another way than bundles are.")
    total = sum(info.file_size for info in entries)
    if total > MAX_GROWTH * path.stat().st_size + MAX_RECORD_BYTES:
        raise InputError(f"{path}: its files have {total:,} bytes, far more than the zip itself. Bundle again.")
    if total > free:
        raise InputError(
            f"{path}: its files have {total / 1e6:,.0f} MB, and {tempfile.gettempdir()} has {free / 1e6:,.0f} MB free. Make "
            "room, name another folder in TMPDIR, or unpack the zip yourself and give that folder."
        )


@contextmanager
def _open_zip(path: Path) -> Iterator[Any]:
    """An open zip. Raises InputError where the file is no whole zip, also within the block."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file. Write it: foldfuse bundle CAMPAIGN --out {path.name}")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: cannot be read as a zip ({reason}). Copy it again, or bundle again.") from None
