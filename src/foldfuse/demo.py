"""The main job on an embedded default: a campaign on drawn scenes of recyclable trash."""

from __future__ import annotations

from pathlib import Path

from foldfuse import scenes
from foldfuse.campaign import campaign
from foldfuse.score import score


def demo(out: Path = Path("demo"), *, deadline: str = "8m", pictures: int = 240, seed: int = 0) -> Path:
    """Draw a dataset of trash in ten classes, run a campaign on it, score it; the campaign's folder comes back.

    Args:
        out: folder to make; the pictures go to `data` in it, the campaign to `campaign`.
        deadline: of the campaign.
        pictures: to learn from; a third as many are to be predicted.
        seed: of every random choice.

    Raises:
        InputError: the folder is in use.
    """
    data = scenes.scenes(out / "data", images=pictures, test_images=pictures // 3, seed=seed)
    folder = campaign(data, deadline=deadline, out=out / "campaign", seed=seed)
    assert folder is not None, "only a plan leaves no folder"
    score(folder / "submission.json", data / "test_truth.json")
    print(f"The submission is {folder / 'submission.csv'}; open {folder / 'report.html'} to see why.")
    return folder
