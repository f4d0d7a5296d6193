"""The bundle command: everything that predicts in one zip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from foldfuse.commands import options
from foldfuse.commands.ensemble_members import Members, named_members
from foldfuse.errors import counted
from foldfuse.inference.bundle_writer import write_bundle
from foldfuse.system import printing


def bundle(
    run: Path,
    *,
    out: options.Out,
    member: Members = (),
    wheels: Annotated[Literal["own", "all"] | None, Parameter()] = None,
    overwrite: options.Overwrite = False,
) -> Path:
    """Pack what a run, an ensemble or a campaign needs to predict into one zip, for a notebook without a network.

    The zip holds the weights of the members that the ensemble uses, without their training state; ensemble.json, the crop
    rescorer, recipes and classes, all versions, licences and the origin of the weights; a README and a script of a few lines.
    `foldfuse predict` takes the zip, and the folder that it was unpacked into. The same input gives the same bytes.

    Members of a campaign that are another toolkit's predictions are left out, and a sentence says what that costs. Every file
    is read back and every network opened before the zip takes its place.

    Args:
        run: folder of a campaign or of a trained run, or the ensemble.json of `foldfuse ensemble`.
        out: zip to write.
        member: the run of a member of an ensemble, where it does not lie beside ensemble.json; NAME=RUN@1,1+hflip where the
            member was predicted in several views. Repeat for more.
        wheels: add Foldfuse's own wheel, or the wheels of all packages that it needs but torch and torchvision, which pip
            downloads for this system and this Python; none by default.

    Raises:
        InputError: nothing trained is there, a member cannot be bundled, or a wheel cannot be had.

    Examples:
        foldfuse bundle campaign1 --out bundle.zip
        foldfuse bundle run1 --wheels own --out bundle.zip
        foldfuse bundle ensemble.json --member a=run1 --member b=run2 --out bundle.zip
    """
    options.check_ending(out, ".zip")
    options.refuse_overwrite(out, overwrite, is_file=True, inputs=[run], may_be_bundle=True)
    made = write_bundle(run, out, members=named_members(member), wheels=wheels)
    networks = counted(len({part.member for part in made.record.parts}), "network")
    with_wheels = f", {counted(made.num_wheels, 'wheel')}" if made.num_wheels else ""
    printing.write(
        f"{out}: {networks}{with_wheels}, {made.num_bytes / 1e6:,.1f} MB. It predicts without a network: foldfuse predict {out} "
        "IMAGES --out predictions.parquet",
        to_stderr=True,
    )
    return out
