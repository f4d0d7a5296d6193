"""Commands on campaigns: campaign, watch, note and demo."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from foldfuse.campaign import constants as c
from foldfuse.campaign.campaign import plan_campaign, resume_campaign, run_campaign
from foldfuse.campaign.planning.allocation import Plan
from foldfuse.campaign.request import CampaignRequest
from foldfuse.commands import options
from foldfuse.commands.predictions import score
from foldfuse.demo import synthetic
from foldfuse.errors import InputError, counted
from foldfuse.evaluation.metrics import open_metric
from foldfuse.recipes import AUTO, AUTO_WORD
from foldfuse.reporting.live import follow
from foldfuse.storage import notes
from foldfuse.system import host, printing
from foldfuse.system.atomic_files import check_target
from foldfuse.system.durations import format_duration
from foldfuse.system.offline import go_offline


def campaign(
    data: Path | None = None,
    *,
    test: Path | None = None,
    deadline: options.Duration = 600.0,
    out: options.Out = Path("campaign"),
    recipe: options.Names = (),
    forbid: options.Names = (),
    image_size: options.AutoImageSizes = (),
    set: options.Set = (),
    folds: options.Folds = 5,
    train_folds: options.TrainFolds = "auto",
    external_run: tuple[Path, ...] = (),
    external_predictions: tuple[str, ...] = (),
    seed: options.Seed = 0,
    metric: options.Metric = "ap50",
    pseudo_labels: bool = False,
    like: options.Like = None,
    format: str | None = None,
    labels: options.Labels = None,
    image_names: options.ImageNames = None,
    images: options.Images = None,
    ignore_orientation: options.IgnoreOrientation = False,
    tracker: tuple[str, ...] = (),
    device: options.Device = "auto",
    resume: Path | None = None,
    ray: str | None = None,
    plan: bool = False,
    offline: options.Offline = False,
    overwrite: options.Overwrite = False,
) -> Path | None:
    """Make the best submission possible by a deadline.

    The folder then holds submission.csv (`PredictionString,image_id`, or like a sample), submission.json (COCO results) and
    report.html.

    Args:
        data: the annotated images: COCO JSON, YOLO, VOC, CVAT or CSV, or a folder with one of them; a test.json beside a
            train.json is its test set.
        test: the images to predict, in any layout or a folder of images; annotations are never read. Without it, a
            fold of the labeled images is used instead.
        deadline: wall-clock time for everything, such as 10m, 2h or 1h30m.
        out: folder to make.
        recipe: recipes allowed for members; lite0_fpn, lite1_fpn and yolov5n by default, more on a GPU. With little time
            only the first is used. `foldfuse recipes` lists them.
        forbid: recipes that are not allowed.
        image_size: image sizes that are allowed, in pixels, all by default; or auto to choose sizes from the data for every
            recipe, as most recipes do.
        folds: number of folds of the annotated images, or a file of `foldfuse split`. The members of a fold learn all
            images but its own, which they predict to choose the ensemble; fold 0 is always trained.
        train_folds: number of folds that are trained, each with members of its own; or auto for as many as there is time
            for.
        external_run: folder of a run that was trained without the held-out images; it joins the ensemble. Repeat for more.
        external_predictions: VAL:TEST, another toolkit's predictions of the held-out and of the test images, in any format
            that `fuse` reads; they join the ensemble. Repeat for more.
        seed: the seed of every random choice.
        pseudo_labels: train the last members on confident predictions of the test images too, where the competition's
            rules allow it; the held-out images stay held out.
        format: layout of the boxes, such as score_xywh or csv_boxes_xywh, where the sample of --like leaves it open.
        tracker: a second place for the segments' curves and the scores: tensorboard:DIR, mlflow:URI, wandb:PROJECT or
            trackio:PROJECT. Repeat for more.
        resume: folder of a stopped campaign; give it alone, with --ray, or with the --device of another machine. The campaign
            continues with its own options; a --metric of your own is named again. The time that it has worked counts against its
            deadline, the time in between does not.
        ray: address of a running Ray cluster, such as 10.0.0.1:6379, or auto for the cluster of this machine: its nodes
            train the members. Needs foldfuse[ray].
        plan: only measure the candidates, show the plan, and stop.

    Returns:
        The folder; None for a plan.

    Raises:
        InputError: the data cannot be used, the deadline is too short, the folder is in use, the disk is full, or there is
            no such cluster.

    Examples:
        foldfuse campaign data --deadline 2h
        foldfuse campaign data/train.json --test data/test.json --out night
        foldfuse campaign data --like sample_submission.csv --deadline 2h --out kaggle
        foldfuse campaign data --deadline 1h --plan
        foldfuse campaign --resume night
    """
    start = time.monotonic()
    if offline:
        go_offline()
    options.require_torch()
    open_metric(metric)
    request = CampaignRequest(
        data=data or Path(),
        test=test,
        deadline=deadline,
        out=out,
        recipe=tuple(recipe),
        forbid=tuple(forbid),
        image_size=tuple(size for size in image_size if size != AUTO),
        set=(*set, f"image_size={AUTO_WORD}") if AUTO in image_size else tuple(set),
        folds=folds if isinstance(folds, int) else str(folds),
        train_folds=train_folds,
        external_run=tuple(external_run),
        external_predictions=tuple(external_predictions),
        seed=seed,
        metric=metric,
        pseudo_labels=pseudo_labels,
        like=like,
        sample_format=format,
        labels=labels,
        image_names=image_names,
        images=images,
        ignore_orientation=ignore_orientation,
        tracker=tuple(tracker),
        device=device,
        offline=offline,
    )
    host.tune_malloc()
    if resume is not None:
        others = replace(request, offline=False, metric="ap50", device="auto")
        if others != CampaignRequest(data=Path()) or plan or overwrite:
            raise InputError(
                f"--resume {resume} continues with the campaign's own options. Give it alone, or with --ray, with --device, or "
                "with --metric where that is a function of your own."
            )
        named = None if metric == "ap50" else metric
        chosen, console = None if device == "auto" else device, printing.console(stderr=True)
        return resume_campaign(resume, ray=ray, metric=named, device=chosen, console=console, start=start)
    if data is None:
        raise InputError("no data is given. Give a dataset, or --resume FOLDER.")
    inputs = [data, test, images, *external_run, None if isinstance(folds, int) else folds]
    inputs += [Path(part) for pair in external_predictions for part in pair.split(":")]
    options.refuse_folder(out, inputs=inputs)
    if plan:
        if ray is not None:
            raise InputError("--plan measures this machine, not the nodes of a cluster. Leave out --ray.")
        _print_campaign_plan(request)
        return None
    return run_campaign(request, ray=ray, overwrite=overwrite, console=printing.console(stderr=True), start=start)


def _print_campaign_plan(request: CampaignRequest) -> None:
    """Prints the cost of each candidate, and the plan."""
    estimate = plan_campaign(request)
    table = Table(title="Candidates, measured here", title_justify="left")
    for head in ("recipe", "px", "batch", "s/step", "s/image", f"{c.MIN_COMPARED_STEPS} steps", "planned"):
        words = head in ("recipe", "planned")
        table.add_column(head, justify="left" if words else "right", no_wrap=head == "recipe")
    for cost in estimate.costs:
        table.add_row(
            cost.name,
            str(cost.recipe.image_size),
            str(cost.recipe.batch_size),
            f"{cost.step_seconds:.2f}",
            f"{cost.image_seconds:.3f}",
            format_duration(c.MIN_COMPARED_STEPS * cost.step_seconds),
            "yes" if cost.name in estimate.tried else "no time",
        )
    console = printing.console()
    console.print(table)
    if estimate.candidates_reason is not None:
        console.print(estimate.candidates_reason, soft_wrap=True)
    console.print(_plan_table(estimate.plan, f"The plan for {format_duration(estimate.deadline)}"))
    if estimate.image_size_reason is not None:
        console.print(estimate.image_size_reason)
    if estimate.folds_reason is not None:
        console.print(estimate.folds_reason, soft_wrap=True)
    members = counted(len(estimate.plan.segments), "member")
    which = "fold 0" if estimate.num_trained == 1 else "its own fold"
    console.print(f"{members}; {which} of {estimate.num_folds} is held out from each of them.")


def _plan_table(plan: Plan, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for head in ("work", "px", "batch", "seconds"):
        table.add_column(head, justify="left" if head == "work" else "right")
    for segment in plan.segments:
        table.add_row(
            f"train {segment.name}", str(segment.image_size), str(segment.batch_size), f"{segment.seconds:.0f}"
        )
    for purpose, seconds in plan.reserved.items():
        table.add_row(purpose, "", "", f"{seconds:.0f}")
    return table


def watch(folder: Path) -> None:
    """Show a running campaign live until it ends; without a terminal, show it once.

    Args:
        folder: the folder of the campaign.

    Raises:
        InputError: the folder holds no campaign, or no process works on it any more.

    Examples:
        foldfuse watch night
    """
    follow(folder, console=printing.console())


def note(
    folder: Path, text: str | None = None, *, leaderboard: float | None = None, submission: int | None = None
) -> Path:
    """Attach a note or a leaderboard score to a campaign; report and comparison show it.

    Args:
        folder: the folder of the campaign, which may be running.
        text: the text of the note.
        leaderboard: score that a submission got.
        submission: the submission's number in `submissions/`; the current submission by default.

    Returns:
        The note's file.

    Raises:
        InputError: the folder holds no campaign or no such submission, or neither text nor score is given.

    Examples:
        foldfuse note night "uploaded in the evening" --leaderboard 0.61
        foldfuse note night --leaderboard 0.60 --submission 1
    """
    count = len(notes.submission_scores(notes.read_snapshot(folder)))
    if text is not None and not text.strip():
        raise InputError("the note is empty. Write a text, or leave it out and give --leaderboard SCORE.")
    if text is None and leaderboard is None:
        raise InputError(f"there is nothing to note on {folder}. Give a text, --leaderboard SCORE, or both.")
    if leaderboard is not None and not math.isfinite(leaderboard):
        raise InputError(f"--leaderboard is {leaderboard}, and must be a finite number.")
    if submission is not None and not 1 <= submission <= count:
        has = f"submissions 1 to {count}" if count > 1 else "submission 1 alone" if count else "no submission yet"
        raise InputError(f"{folder}: --submission is {submission}, and the campaign has {has}.")
    if leaderboard is not None and submission is None:
        if not count:
            raise InputError(f"{folder}: has no submission yet that could have a score. Wait for the first one.")
        submission = count
    return notes.write_note(folder, text=text, leaderboard=leaderboard, submission=submission)


def demo(
    *,
    out: options.Out = Path("demo"),
    deadline: options.Duration = 480.0,
    num_images: options.Count = 240,
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> Path:
    """Draw a dataset of litter in ten classes, run a campaign on it, and score the submission.

    Args:
        out: folder to make; the images go to `data` in it, the campaign to `campaign`.
        deadline: the deadline of the campaign.
        num_images: images to train on; a third as many are test images.
        seed: the seed of every random choice.

    Returns:
        The campaign's folder.

    Raises:
        InputError: the folder is in use.

    Examples:
        foldfuse demo --deadline 3m --out demo
    """
    check_target(out, is_folder=True)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: exists already. Choose another --out, or remove it.")
    data = synthetic.make_dataset(out / "data", num_images=num_images, num_test_images=num_images // 3, seed=seed)
    folder = campaign(data, deadline=deadline, out=out / "campaign", seed=seed, device=device)
    assert folder is not None, "only a plan leaves no folder"
    score(folder / "submission.json", data / "test_truth.json", image_ids="id", category_ids="id")
    printing.write(f"The submission is {folder / 'submission.csv'}; {folder / 'report.html'} explains it.")
    return folder
