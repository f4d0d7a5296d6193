"""The publish command: a run, an ensemble or a campaign on the Hugging Face hub, with a model card."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foldfuse import __version__
from foldfuse.commands import options
from foldfuse.commands.ensemble_members import Members, named_members
from foldfuse.errors import InputError, counted, shown
from foldfuse.inference import hub
from foldfuse.inference.publishing import write_repository
from foldfuse.provenance import licence_notes
from foldfuse.system import printing
from foldfuse.system.atomic_files import atomic_folder

LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


def publish(
    run: Path,
    name: str,
    *,
    private: bool = False,
    dry_run: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    licence: str | None = None,
    member: Members = (),
) -> str:
    """Publish a run, an ensemble or a campaign on the Hugging Face hub, with a model card.

    Afterwards `foldfuse predict hf:owner/name IMAGES` and `foldfuse.load("hf:owner/name")` predict with it anywhere. The card
    says how to load it, and states its scores on held-out images, its training data, the licences of its initial weights and its
    limits. Uploaded are JSON, safetensors and ONNX files. Paths, commands and trackers of this machine are left out; hashes of
    the training images go with it, so that these images are left out of scores.

    The repository is made where it is missing. One that was published before gets a new revision; the earlier ones stay. Needs
    foldfuse[hub] and a token that may write: HF_TOKEN, or the one of `hf auth login`.

    Args:
        run: folder of a trained detector's run or of a campaign, the zip of `foldfuse bundle`, or an ensemble.json.
        name: name of the repository: owner/name.
        private: make the repository private; everybody can read it by default, or as your organisation decides.
        dry_run: write what would be uploaded to this new folder, and upload nothing; no token and no network are needed.
        licence: licence that you give the weights, as the hub names it, such as apache-2.0 or cc-by-4.0; none by default.
        member: the run of a member of an ensemble, where it does not lie beside ensemble.json; NAME=RUN@1,1+hflip where the
            member was predicted in several views. Repeat for more.

    Returns:
        The address of the repository, or the folder of --dry-run.

    Raises:
        InputError: nothing trained is there, the hub cannot be reached, there is no token, or the token may not write there.

    Examples:
        foldfuse publish campaign1 owner/litter --dry-run card
        foldfuse publish campaign1 owner/litter --private --licence apache-2.0
    """
    hub.check_name(name)
    if licence is not None and not LICENCE.fullmatch(licence):
        raise InputError(
            f"--licence {shown(licence)}: expected the name of a licence as the hub writes it, such as apache-2.0."
        )
    if dry_run is not None:
        options.refuse_folder(dry_run, inputs=[run])
        with atomic_folder(dry_run) as folder:
            _write(run, folder, name, member, licence)
        printing.write(f"{dry_run}: is what would be uploaded to {name}; README.md is its card.", to_stderr=True)
        return str(dry_run)
    hub.require_hub()
    with tempfile.TemporaryDirectory(prefix="foldfuse-publish-") as temporary:
        folder = Path(temporary)
        _write(run, folder, name, member, licence)
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        files = f"{counted(len(sizes), 'file')}, {sum(sizes) / 1e6:,.1f} MB"
        printing.write(f"uploading {files} to {name}", to_stderr=True)
        address = hub.upload(folder, name, is_private=private, message=f"Published by Foldfuse {__version__}")
    printing.write(
        f"It is loaded by: foldfuse predict {hub.PREFIX}{name} IMAGES --out predictions.parquet", to_stderr=True
    )
    return address


def _write(run: Path, folder: Path, name: str, member: tuple[str, ...], licence: str | None) -> None:
    """Fills the folder, and warns of restricted licences of the initial weights."""
    origins = write_repository(run, folder, name, members=named_members(member), licence=licence)
    for note in licence_notes(origins):
        printing.write(f"WARNING: {note}", to_stderr=True)
