"""Commands that report on campaigns: report and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from foldfuse.reporting.campaign_page import write_campaign_page
from foldfuse.reporting.compare import compare_campaigns, comparison_page
from foldfuse.system.atomic_files import write_text


def report(folder: Path, *, out: Path | None = None) -> Path:
    """Write the HTML page on a campaign or a run, from what its folder holds now.

    Args:
        folder: of a campaign or of a run.
        out: HTML file to write; report.html in the folder by default.

    Raises:
        InputError: the folder does not exist, or is neither a campaign's nor a run's; `out` cannot be written.
    """
    return write_campaign_page(folder, out=out)


def compare(folders: tuple[Path, ...], *, out: Path | None = None) -> None:
    """Compare campaigns on the same data; each is compared with the first on the images that both held out.

    Args:
        folders: of two or more campaigns; the others are compared with the first.
        out: HTML page to write as well; it opens anywhere, without network.

    Raises:
        InputError: a folder holds no campaign, or the campaigns are on different data.
    """
    comparison = compare_campaigns(folders)
    console = Console(highlight=False)
    names = [campaign.name for campaign in comparison.campaigns]
    console.print(_table("Campaigns", ["", *names], comparison.fact_rows()))
    if comparison.differences:
        console.print(_table(comparison.title, ["", *comparison.differences], comparison.difference_rows()))
    for warning in comparison.warnings:
        console.print(warning, markup=False, soft_wrap=True)
    if out is not None:
        write_text(out, comparison_page(comparison))
        console.print(str(out), markup=False, soft_wrap=True)


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
