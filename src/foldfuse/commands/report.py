"""Commands that report on campaigns: report and compare."""

from __future__ import annotations

from pathlib import Path

from foldfuse.commands import options
from foldfuse.commands.tables import text_table
from foldfuse.evaluation.metrics import open_metric
from foldfuse.reporting.campaign_page import write_campaign_page
from foldfuse.reporting.compare import compare_campaigns, comparison_page
from foldfuse.reporting.run_page import write_run_page
from foldfuse.storage.ledger import is_campaign
from foldfuse.system import printing
from foldfuse.system.atomic_files import write_text


def report(folder: Path, *, out: options.OptionalOut = None, overwrite: options.Overwrite = False) -> Path:
    """Write the HTML page on a campaign or a run, from what its folder holds now.

    Args:
        folder: the folder of a campaign or of a run.
        out: HTML file to write. By default report.html in the folder, which replaces an earlier page.

    Raises:
        InputError: the folder does not exist, or is neither a campaign's nor a run's; `out` exists or cannot be written.

    Examples:
        foldfuse report campaign
        foldfuse report run1 --out run1.html
    """
    if out is not None:
        options.refuse_overwrite(out, overwrite, is_file=True, inputs=[folder])
    return write_campaign_page(folder, out=out) if is_campaign(folder) else write_run_page(folder, out=out)


def compare(
    folders: tuple[Path, ...],
    *,
    out: options.OptionalOut = None,
    metric: options.OptionalMetric = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Compare campaigns on the same data; each is compared with the first on the images that both held out.

    The differences are in AP50 and AP, and in another metric that is named.

    Args:
        folders: the folders of two or more campaigns; the others are compared with the first.
        out: HTML page to write as well; it opens anywhere, without network.

    Raises:
        InputError: a folder holds no campaign, or the campaigns are on different data; `out` exists.

    Examples:
        foldfuse compare campaign1 campaign2
        foldfuse compare campaign1 campaign2 --out comparison.html
        foldfuse compare campaign1 campaign2 --metric f2
    """
    if metric is not None:
        open_metric(metric)
    if out is not None:
        options.refuse_overwrite(out, overwrite, is_file=True, inputs=folders)
    comparison = compare_campaigns(folders, metric=metric)
    console = printing.console()
    names = [campaign.name for campaign in comparison.campaigns]
    console.print(text_table("Campaigns", ["", *names], comparison.fact_rows()))
    if comparison.differences:
        console.print(text_table(comparison.title, ["", *comparison.differences], comparison.difference_rows()))
    for warning in comparison.warnings:
        console.print(warning, soft_wrap=True)
    if out is not None:
        write_text(out, comparison_page(comparison))
        console.print(str(out), soft_wrap=True)
