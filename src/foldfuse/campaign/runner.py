"""Runs a campaign: trains the segments that the strategy picks, predicts with them, chooses ensembles and submits.

Each piece of work is recorded in the ledger when it is complete, and files are written before the record that names them. So
the same function starts a campaign and resumes a killed one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

from foldfuse.campaign import constants as c
from foldfuse.campaign.compiling import CompilingProcesses
from foldfuse.campaign.current_state import campaign_state
from foldfuse.campaign.execution.jobs import HeldOutPredictions
from foldfuse.campaign.execution.workers import SegmentJob, SegmentResult, WorkerLost, Workers
from foldfuse.campaign.extra_views import spend_on_views
from foldfuse.campaign.fold_members import choose_base_runs
from foldfuse.campaign.learning import settle_folds
from foldfuse.campaign.new_members import add_member
from foldfuse.campaign.pace import CoreUse
from foldfuse.campaign.planning.allocation import (
    Plan,
    Strategy,
    affordable_views,
    candidate_views,
    make_plan,
    rescoring_seconds,
    reserved_seconds,
)
from foldfuse.campaign.planning.estimates import measure_costs
from foldfuse.campaign.planning.segments import base_runs, compared_base_runs, largest_image_size, plan_segments
from foldfuse.campaign.planning.slack import last_search_seconds
from foldfuse.campaign.planning.state import CampaignState, Segment
from foldfuse.campaign.rescoring import measure_class_errors, measure_crops, rescore_submission
from foldfuse.campaign.segment_records import leave_out, new_record
from foldfuse.campaign.soups import make_soups
from foldfuse.campaign.submissions import MemberPredictions, load_predictions, publish, refresh_report, submit_best
from foldfuse.campaign.task import Task
from foldfuse.data.dataset import Dataset
from foldfuse.ensemble.pseudo_labels import confident_predictions, pseudo_labeled
from foldfuse.ensemble.ranking import promoted, rank_by_ensemble_gain
from foldfuse.errors import InputError, counted
from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.inference.learnt_images import learnt_before
from foldfuse.storage.ledger import Ledger
from foldfuse.storage.run import Run
from foldfuse.system import host
from foldfuse.system.device import choose_device
from foldfuse.system.durations import format_duration
from foldfuse.system.records import to_plain
from foldfuse.system.signals import deferred_interrupts
from foldfuse.training.session import run_metadata
from foldfuse.training.targets import missing_targets


def run(
    task: Task, ledger: Ledger, strategy: Strategy, workers: Workers, *, compiling: CompilingProcesses | None = None
) -> None:
    """Runs the campaign until its deadline, and writes the submission and the report to its folder.

    Args:
        task: data and settings.
        ledger: the ledger of the campaign.
        strategy: picks the segments.
        workers: train the segments.
        compiling: compiles loops besides this process; None where nothing does.

    Raises:
        KeyboardInterrupt: an interrupt before the first member, or a second interrupt. A first interrupt when there are
            members ends the campaign early with a submission of the members so far.
    """
    device = choose_device(task.device)
    cores = CoreUse.start()
    ledger.set(machine=host.describe(device), device=device, state="running", reported=False)
    publish(ledger)
    try:
        if ledger.get("plan") is None:
            measure_costs(task, ledger, campaign_state(task, ledger, workers))
            log_plan(make_plan(campaign_state(task, ledger, workers)), ledger)
        save_plan(task, ledger, workers)
        members = load_predictions(task, ledger)
        run_segments(task, ledger, strategy, members, workers, compiling=compiling)
    except KeyboardInterrupt:
        members = load_predictions(task, ledger)  # loaded again: the interrupt may have come in the middle of an update
        if not members.val:
            raise
        ledger.set(state="interrupted")
        ledger.log("Interrupted: submitting with the members so far; Ctrl-C again stops at once.")
        if members.new_members:
            submit_best(task, ledger, members, last=False)
        ledger.log(f"Resume with: foldfuse campaign --resume {ledger.folder}")
    except (FloatingPointError, InputError):
        ledger.set(state="failed")
        ledger.export()
        raise
    else:
        ledger.set(state="finished")
    with deferred_interrupts():  # nothing is left to stop but the report, which takes a moment
        memory = host.peak_memory_mb()
        ledger.set(
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            peak_memory_mb=None if memory is None else round(memory),
            cpu_share=None if workers.is_async else cores.share,  # other processes train
        )
        save_plan(task, ledger, workers)
        ledger.set(reported=(written := refresh_report(ledger) is not False))
        if not written:
            ledger.log(f"There is no time to write the report. Write it with: foldfuse report {ledger.folder}")


def log_plan(plan: Plan, ledger: Ledger) -> None:
    """Logs the planned segments with their training time, and the time reserved for everything else."""
    if plan.segments[0].state == "planned" and plan.segments[0].seconds < c.MIN_SEGMENT_SECONDS:
        ledger.log("The plan: the time does not suffice for all segments, so one member is trained.")
        return
    segments = ", ".join(f"{segment.name} for {format_duration(segment.seconds)}" for segment in plan.segments)
    reserved = format_duration(sum(plan.reserved.values()))
    ledger.log(f"The plan: {segments}; {reserved} for predictions, the ensemble and the submission.")


def rank_base_runs(task: Task, ledger: Ledger, members: MemberPredictions, workers: Workers) -> None:
    """Once all compared base runs have ended, records the promoted runs: the base runs that add most to the ensemble."""
    state = campaign_state(task, ledger, workers)
    names = [segment.name for segment in compared_base_runs(state)]
    if len(names) < 2 or state.ranking or any(state.state_of(name) not in ("done", "failed") for name in names):
        return
    chosen = choose_base_runs(state.segments, names, folds=state.folds)
    if not chosen.parts:
        return
    images = task.val_in(*chosen.folds)
    candidates = {key.member: p for key, p in chosen.candidates(members.val, images.image_ids).items()}
    with ledger.timed("compare the base runs", "fuse"):
        ranking = rank_by_ensemble_gain(candidates, images, metric=task.metric)
    ledger.set(ranking=promoted(ranking), gains=ranking)
    first, *others = ranking
    steps = [f"{first.name} {first.ensemble_score:.3f}"]
    steps += [
        f"with {run.name} {run.ensemble_score:.3f} (better in {run.prob_better:.0%} of resamples)" for run in others
    ]
    ledger.log(
        f"Base runs by {metric_label(task.metric)} of the ensemble on {counted(len(images), 'held-out image')}, added one by "
        f"one: {'; '.join(steps)}."
    )


def run_segments(
    task: Task,
    ledger: Ledger,
    strategy: Strategy,
    members: MemberPredictions,
    workers: Workers,
    *,
    compiling: CompilingProcesses | None = None,
) -> None:
    """Starts the segments that the strategy picks until training is over, and submits the best ensemble of the members so far.

    Asynchronous workers get their next segment first; the ensemble is searched while they train.

    Raises:
        FloatingPointError: every base run diverged, and there is no member.
        InputError: no member was trained.
    """
    losses: Counter[str] = Counter()
    diverged: FloatingPointError | None = None
    predictions: dict[str, HeldOutPredictions] = {}
    wait = 0.0
    while True:
        for result in workers.finished(wait):
            record_result(result, ledger, losses)
            if isinstance(result.error, FloatingPointError):
                diverged = result.error
            if result.predictions is not None:
                predictions[result.name] = result.predictions
        for record in ledger.segments():
            if record.state == "trained":
                add_member(record, task, ledger, members, workers, predictions.pop(record.name, None))
        for record in make_soups(task, ledger, workers):
            add_member(record, task, ledger, members, workers, None)
        rank_base_runs(task, ledger, members, workers)
        settle_folds(task, ledger, workers)
        wait, state = 0.0, campaign_state(task, ledger, workers)
        all_failed = not workers.busy and all(state.state_of(base.name) == "failed" for base in base_runs(state))
        if diverged is not None and not members.val and all_failed:
            raise diverged  # a cooldown run without a base run would diverge too
        decision = strategy(state)
        if decision.segment is None and not workers.busy:
            break
        can_start = decision.segment is not None and len(workers.busy) < workers.capacity
        if members.new_members and not (can_start and workers.is_async):
            submit_best(task, ledger, members, last=False)
            measure_class_errors(task, ledger)
            state = campaign_state(task, ledger, workers)
            if rescoring_seconds(state) and ledger.get("crop_seconds") is None:
                measure_crops(task, ledger)
            save_plan(task, ledger, workers)
            refresh_report(ledger)
            continue  # submitting took time: the strategy decides again
        if decision.segment is not None and can_start:
            if decision.num_views < len(affordable_views(state)):
                ledger.set(max_views=decision.num_views)
                views = ", ".join(map(str, candidate_views(tiles=state.tiles)[: decision.num_views]))
                ledger.log(
                    f"Time is short for {decision.segment.name}: from now on images are predicted in {views} only."
                )
            if decision.folds != state.folds:
                ledger.set(folds_in_time=list(decision.folds))
                ledger.log(
                    f"Time is short: {counted(len(decision.folds), 'fold')} of the planned {len(task.folds)} "
                    f"{'is' if len(decision.folds) == 1 else 'are'} trained."
                )
            if not workers.prepare(round(largest_image_size(state) * c.CACHE_MARGIN)):
                workers.start(make_job(decision.segment, decision.seconds, task, ledger, workers))
        elif (members.val or not workers.busy) and state.remaining < reserved_seconds((), state) - rescoring_seconds(
            state
        ):
            break
        else:
            wait = c.POLL_SECONDS
    drop_unaffordable(state, ledger)
    if not members.val:
        raise InputError(
            f"{ledger.folder}: the time was over before a first member was trained. Start again with more time."
        )
    if compiling is not None and not compiling.is_over:
        ledger.log(
            "The loops of scoring and fusion are still being compiled; the last choice of the ensemble waits for them."
        )
        with ledger.timed("compile", "setup"):
            compiling.wait(state.remaining - reserved_seconds((), state))
    seconds = last_search_seconds(campaign_state(task, ledger, workers))
    submit_best(task, ledger, members, last=True, seconds=seconds)
    measure_class_errors(task, ledger)
    state = campaign_state(task, ledger, workers)
    most = (1 + c.EARLY_PACE_TOLERANCE) * (state.remaining - state.reserves.delivery)
    if 0 < rescoring_seconds(state) <= most:  # its pace is watched
        spend_on_views(task, ledger, members, reserved=rescoring_seconds(state))
        rescore_submission(task, ledger, members)
    spend_on_views(task, ledger, members)


def record_result(result: SegmentResult, ledger: Ledger, losses: Counter[str]) -> None:
    """Records the result of a job. A lost segment is trained again, unless it has been lost `MAX_ATTEMPTS` times."""
    record = next(segment for segment in ledger.segments() if segment.name == result.name)
    if isinstance(result.error, WorkerLost):
        losses[result.name] += 1
        if losses[result.name] < c.MAX_ATTEMPTS:
            start = f"its checkpoint after {format_duration(result.seconds)}" if result.seconds else "the beginning"
            ledger.put_segment(replace(record, seconds=result.seconds))
            ledger.log(f"{result.name}: {result.error} It will be trained again, from {start}.")
            return
    if result.error is None:
        ledger.put_segment(replace(record, state="trained", seconds=result.seconds))
        return
    leave_out(record, str(result.error), ledger)


def drop_unaffordable(state: CampaignState, ledger: Ledger) -> None:
    """Logs that no time is left for the unfinished segments, and records them as failed."""
    for segment in plan_segments(state):
        record = state.record(segment.name)
        if record is not None and record.state != "running":
            continue
        if record is None:
            record = new_record(segment, ledger)
        leave_out(record, "no time is left to train it.", ledger)


def save_plan(task: Task, ledger: Ledger, workers: Workers) -> None:
    """Records the current plan, for the report."""
    ledger.set(plan=to_plain(make_plan(campaign_state(task, ledger, workers))))


def make_job(segment: Segment, seconds: float, task: Task, ledger: Ledger, workers: Workers) -> SegmentJob:
    """The job that trains a segment up to `seconds`, from the segment's last checkpoint, else from its parent's."""
    run = Run(ledger.folder / "members" / segment.name)
    checkpoint, warning = run.load_checkpoint() if run.exists else (None, None)
    if warning:
        ledger.log(warning)
    if not run.exists:
        train, val = task.train_in(segment.fold), task.val_in(segment.fold)
        metadata = run_metadata(train, data=str(train.source), seed=segment.seed, val_ids=val.image_ids)
        metadata = replace(metadata, ignore_orientation=task.ignore_orientation)
        Run.create(run.folder, segment.recipe, metadata)
        try:
            sentence = missing_targets(train, segment.recipe)
        except InputError as error:  # another image size may do; the campaign found that one does
            sentence = str(error)
        if sentence:
            ledger.log(f"{segment.name}: {sentence}")
        run.write_learnt_images({*task.train_hashes(segment.fold), *learnt_before(segment.recipe.init_weights)})
    trained = checkpoint["seconds"] if checkpoint is not None else 0.0
    previous = campaign_state(task, ledger, workers).record(segment.name)
    record = new_record(segment, ledger)
    if previous is not None:
        record = replace(record, parent=previous.parent, started=previous.started)
    resumed = (previous.result.get("resumed", 0) if previous is not None else 0) + (checkpoint is not None)
    record = replace(record, budget=seconds, seconds=trained, result={"resumed": resumed} if resumed else {})
    ledger.put_segment(record)
    if checkpoint is not None:
        ledger.log(f"{segment.name} resumes from its checkpoint after {format_duration(trained)} of training.")
    parent = Run(ledger.folder / "members" / record.parent) if record.parent and checkpoint is None else None
    return SegmentJob(
        run=run,
        fold=segment.fold,
        seconds=seconds,
        checkpoint=checkpoint,
        parent=parent,
        checkpoint_seconds=max(c.MIN_CHECKPOINT_SECONDS, ledger.deadline / c.MAX_CHECKPOINTS),
        state=campaign_state(task, ledger, workers),
        pseudo_labeled=load_pseudo_labels(run, task, ledger) if segment.pseudo_labels else None,
    )


def load_pseudo_labels(run: Run, task: Task, ledger: Ledger) -> Dataset | None:
    """Test images with pseudo-labels for a run: its earlier labels, else new labels from the submission; None without labels."""
    path, latest = run.folder / "pseudo.parquet", ledger.latest_submission()
    if not path.exists():
        if latest is None:
            ledger.log(f"{run.folder.name} trains without pseudo-labels: there is no submission yet.")
            return None
        folder = ledger.folder / "submissions" / str(latest[0])
        val = read_predictions(folder / "fused_oof.parquet", task.val)
        test = read_predictions(folder / "fused_test.parquet", task.test)
        write_predictions(confident_predictions(val, task.val, test), path, task.test)
    dataset = pseudo_labeled(task.test, read_predictions(path, task.test))
    ledger.log(
        f"{run.folder.name} also trains on pseudo-labels: {dataset.num_boxes} confident boxes of the ensemble in {len(dataset)} "
        "test images."
    )
    return dataset if len(dataset) else None
