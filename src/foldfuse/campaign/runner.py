"""What a campaign does with its time: train what the strategy names, predict with it, choose, submit; until it is over.

Every piece of work is written down in the ledger when it is whole, and files come before the row that speaks of them. So a
campaign that was killed is carried on by the same function that carried it out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from foldfuse.campaign.execution.jobs import Seen, look
from foldfuse.campaign.execution.workers import Assignment, End, Lost, Workers
from foldfuse.campaign.planning.allocation import FINISH, VIEWS, Strategy, opinion_seconds, outlook, reserve, views
from foldfuse.campaign.planning.estimates import costs, table_of
from foldfuse.campaign.planning.segments import COMPARED_FROM, largest_side, plan, trunks
from foldfuse.campaign.planning.state import CampaignState, Segment
from foldfuse.campaign.rescoring import second_opinion
from foldfuse.campaign.submissions import Found, publish, refresh_report, submit_best
from foldfuse.campaign.task import Task
from foldfuse.data.dataset import Dataset
from foldfuse.ensemble.pseudo_labels import labelled, sure
from foldfuse.ensemble.ranking import by_gain, worth_going_on
from foldfuse.errors import InputError
from foldfuse.evaluation.coco import score_predictions
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.storage.ledger import Ledger, SegmentRecord
from foldfuse.storage.run import Run
from foldfuse.system import host
from foldfuse.system.durations import format_duration
from foldfuse.system.progress import error_console
from foldfuse.training.checkpoints import run_metadata

CHECKPOINTS = 40  # in a deadline, at most: more would cost more time than they save
LOOK = 1.0  # seconds between two looks at workers that train aside
TRIES = 3  # a segment that was lost so often is left out


def carry_out(task: Task, ledger: Ledger, strategy: Strategy, workers: Workers) -> None:
    """Spend the time until the deadline; leave the submission and the report in the campaign's folder.

    Raises:
        KeyboardInterrupt: while there was no member, or a second time; a later one ends the campaign early, with what
            there is.
    """
    ledger.set(machine=host.describe(), state="running", reported=False)
    publish(ledger)
    try:
        if ledger.get("plan") is None:
            begin(task, ledger, workers)
        keep_plan(task, ledger, workers)
        conduct(task, ledger, strategy, recalled(task, ledger), workers)
    except KeyboardInterrupt:
        found = recalled(task, ledger)  # anew: what was under way may be half done in memory
        if not found.held:
            raise
        ledger.set(state="interrupted")
        ledger.log("Interrupted: delivering what there is; Ctrl-C again stops at once.")
        if found.unchosen:
            submit_best(task, ledger, found, last=False)
        ledger.log(f"Go on with: foldfuse campaign --resume {ledger.folder}")
    except (FloatingPointError, InputError):
        ledger.set(state="failed")
        ledger.export()
        raise
    else:
        ledger.set(state="finished")
    ledger.set(finished=datetime.now(UTC).isoformat(timespec="seconds"), peak_memory_mb=round(host.peak_memory_mb()))
    keep_plan(task, ledger, workers)
    refresh_report(ledger)
    ledger.set(reported=True)


def begin(task: Task, ledger: Ledger, workers: Workers) -> None:
    """Measure what the candidates cost where there is time to compare them, and show the plan."""
    if ledger.deadline >= COMPARED_FROM and len(task.recipes) > 1:
        with ledger.timed("measure the candidates", "setup"):
            found = costs(standing(task, ledger, workers), task.train)
        ledger.set(steps={cost.name: round(cost.step, 4) for cost in found})
        told = ", ".join(f"{cost.name} {cost.step:.2f}" for cost in found)
        ledger.log(f"Seconds of a step as a trunk, measured here: {told}.")
    ahead = outlook(standing(task, ledger, workers))
    error_console().print(table_of(ahead, "The plan"))
    ledger.log(f"The plan: {', then '.join(part.name for part in ahead.segments)}.")


def promote(task: Task, ledger: Ledger, found: Found, workers: Workers) -> None:
    """Once all trunks are over, write down which of them add most to the ensemble: those go on."""
    now = standing(task, ledger, workers)
    tried = [part.name for part in trunks(now)]
    over = all(now.states.get(name) in ("done", "failed") for name in tried)
    if len(tried) < 2 or now.ranking or not over:
        return
    members = {name: found.held[f"{name}@{VIEWS[0]}"] for name in tried if now.states[name] == "done"}
    if not members:
        return
    with ledger.timed("compare the trunks", "fuse"):
        ranking = by_gain(members, task.held, metric=task.metric)
    ledger.set(ranking=worth_going_on(ranking), gains=ranking)
    first, *others = ranking
    told = [f"{first.name} {first.value:.3f}"]
    told += [f"with {one.name} {one.value:.3f} (more in {one.sure:.0%} of draws)" for one in others]
    what = f"{task.metric.upper()} of the ensemble out-of-fold"
    ledger.log(f"The trunks by what they add to {what}, one after another: {'; '.join(told)}.")


def conduct(task: Task, ledger: Ledger, strategy: Strategy, found: Found, workers: Workers) -> None:
    """Give the workers what the strategy names until training is over; each new member may bring a better submission.

    Workers that train aside are given their next segment first, and the ensemble is chosen while they work.

    Raises:
        FloatingPointError: every trunk diverged, and there is no member.
        InputError: no member was trained.
    """
    lost: Counter[str] = Counter()
    diverged: FloatingPointError | None = None
    seen: dict[str, Seen] = {}
    wait = 0.0
    while True:
        for end in workers.ended(wait):
            settle(end, ledger, lost)
            if isinstance(end.error, FloatingPointError):
                diverged = end.error
            if end.seen is not None:
                seen[end.name] = end.seen
        for row in ledger.segments():
            if row.state == "trained":
                predict_held(row, task, ledger, found, workers, seen.pop(row.name, None))
        promote(task, ledger, found, workers)
        wait, now = 0.0, standing(task, ledger, workers)
        hopeless = not workers.busy and all(now.states.get(part.name) == "failed" for part in trunks(now))
        if diverged is not None and not found.held and hopeless:
            raise diverged  # branches that take the trunk's place would only do so again
        coming = strategy(now)
        if coming.segment is None and not workers.busy:
            break
        startable = coming.segment is not None and len(workers.busy) < workers.capacity
        if found.unchosen and not (startable and workers.aside):
            submit_best(task, ledger, found, last=False)
            keep_plan(task, ledger, workers)
            refresh_report(ledger)
            continue  # that took time: the strategy is asked again
        if coming.segment is not None and startable:
            if coming.views < len(views(now)):
                ledger.set(most_views=coming.views)
                what = ", ".join(map(str, VIEWS[: coming.views]))
                ledger.log(
                    f"Time is short for {coming.segment.name}: pictures are looked at in fewer views from now on ({what})."
                )
            if not workers.prepare(round(largest_side(now) * 1.1)):
                workers.begin(assigned(coming.segment, coming.seconds, task, ledger, workers))
        elif (found.held or not workers.busy) and now.remaining < reserve((), now) - opinion_seconds(now):
            break
        else:
            wait = LOOK
    leave_out(now, ledger)
    if not found.held:
        raise InputError(
            f"{ledger.folder}: the time was over before a first member was trained. Begin anew, with more time."
        )
    submit_best(task, ledger, found, last=True)
    now = standing(task, ledger, workers)
    if 0 < opinion_seconds(now) <= now.remaining - FINISH:
        second_opinion(task, ledger, found)


def settle(end: End, ledger: Ledger, lost: Counter[str]) -> None:
    """Write down what came of a segment. One that is lost is trained again, unless it has been `lost` too often."""
    row = next(r for r in ledger.segments() if r.name == end.name)
    if isinstance(end.error, Lost):
        lost[end.name] += 1
        if lost[end.name] < TRIES:
            again = f"from its checkpoint after {format_duration(end.seconds)}" if end.seconds else "from its beginning"
            ledger.put_segment(replace_row(row, seconds=end.seconds))
            ledger.log(f"{end.name}: {end.error} It is to be trained again, {again}.")
            return
    if end.error is None:
        ledger.put_segment(replace_row(row, state="trained", seconds=end.seconds))
        return
    ledger.put_segment(replace_row(row, state="failed", ended=ledger.elapsed))
    ledger.log(f"{end.name} is left out: {end.error}")


def leave_out(now: CampaignState, ledger: Ledger) -> None:
    """Write down which segments no time is left for, whether they have begun or not."""
    for part in plan(now):
        row = now.row(part.name)
        if row is not None and row.state != "running":
            continue
        if row is not None:
            ledger.put_segment(replace_row(row, state="failed", ended=ledger.elapsed))
        ledger.log(f"{part.name} is left out: no time is left to train it.")


def keep_plan(task: Task, ledger: Ledger, workers: Workers) -> None:
    """Write the plan down as it is now, for the report."""
    ledger.set(plan=asdict(outlook(standing(task, ledger, workers))))


def standing(task: Task, ledger: Ledger, workers: Workers) -> CampaignState:
    """What a strategy looks at, as it is now."""
    return CampaignState(
        recipes=task.recipes,
        sizes=task.sizes,
        seed=task.seed,
        deadline=ledger.deadline,
        elapsed=ledger.elapsed,
        num_held=len(task.held),
        num_target=len(task.target),
        rows=ledger.segments(),
        steps=ledger.get("steps") or {},
        ranking=tuple(ledger.get("ranking") or ()),
        busy=workers.busy,
        workers=max(1, workers.capacity),
        pseudo=task.pseudo,
        most_views=ledger.get("most_views"),
    )


def replace_row(row: SegmentRecord, **changes: Any) -> SegmentRecord:
    """The row with some of its values replaced."""
    return SegmentRecord(**vars(row) | changes)


def recalled(task: Task, ledger: Ledger) -> Found:
    """What the members that are done have found, read from their folders."""
    found = Found()
    for row in ledger.segments():
        folder = ledger.folder / "members" / row.name
        found.runs[row.name] = Run(folder)
        if row.state != "done":
            continue
        for stem, into, dataset in (("held", found.held, task.held), ("target", found.target, task.target)):
            for path in sorted(folder.glob(f"{stem}@*.parquet")):
                into[f"{row.name}@{path.stem.split('@')[1]}"] = read_predictions(path, dataset)
        if row.name not in (ledger.get("chosen_from") or ()):
            found.unchosen.append(row.name)
    kept = ledger.latest_submission()
    found.score = kept[1] if kept else None
    return found


def assigned(segment: Segment, seconds: float, task: Task, ledger: Ledger, workers: Workers) -> Assignment:
    """A segment ready to be trained until it has had `seconds`, from its own last checkpoint, else from its parent's end."""
    run = Run(ledger.folder / "members" / segment.name)
    state, trouble = run.load_checkpoint() if run.exists else (None, None)
    if trouble:
        ledger.log(trouble)
    if not run.exists:
        metadata = run_metadata(task.train, data=task.train.source, seed=segment.seed, val_ids=task.held.image_ids)
        Run.create(run.folder, segment.recipe, metadata)
    had = state["seconds"] if state is not None else 0.0
    before = standing(task, ledger, workers).row(segment.name)
    row = SegmentRecord(
        segment.name,
        "train",
        vars(segment.recipe),
        before.parent if before else segment.parent,
        segment.fold,
        segment.seed,
        "running",
        seconds,
        had,
        before.started if before else ledger.elapsed,
        None,
        {},
    )
    ledger.put_segment(row)
    if state is not None:
        ledger.log(f"{segment.name} goes on from its checkpoint after {format_duration(had)} of training.")
    parent = Run(ledger.folder / "members" / row.parent) if row.parent and state is None else None
    every = max(10.0, ledger.deadline / CHECKPOINTS)
    more = taught_by(run, task, ledger) if segment.pseudo else None
    return Assignment(run, seconds, state, parent, every, standing(task, ledger, workers), more)


def taught_by(run: Run, task: Task, ledger: Ledger) -> Dataset | None:
    """The pseudo-labels that a run learns from: those it began with, else of the submission that holds now; None if none."""
    path, holds = run.folder / "pseudo.parquet", ledger.latest_submission()
    if not path.exists():
        if holds is None:
            ledger.log(f"{run.folder.name} learns without pseudo-labels: nothing has been submitted yet.")
            return None
        folder = ledger.folder / "submissions" / str(holds[0])
        held = read_predictions(folder / "fused_oof.parquet", task.held)
        target = read_predictions(folder / "fused_test.parquet", task.target)
        write_predictions(sure(held, task.held, target), path, task.target)
    more = labelled(task.target, read_predictions(path, task.target))
    what = f"{more.num_boxes} boxes that the ensemble is sure of in {len(more)} of the pictures to submit"
    ledger.log(f"{run.folder.name} learns from {what}, too.")
    return more if len(more) else None


def predict_held(
    row: SegmentRecord, task: Task, ledger: Ledger, found: Found, workers: Workers, seen: Seen | None
) -> None:
    """Let a trained member join with what it has `seen` of the held-back pictures; None where it has not looked yet."""
    run = Run(ledger.folder / "members" / row.name)
    recipe, metadata = run.recipe, run.metadata
    seconds, speed = metadata.seconds or 0.0, metadata.images_per_second or 0.0
    if seen is None:
        with ledger.timed(f"out-of-fold {row.name}", "predict"):
            seen = look(run, task.held, standing(task, ledger, workers))
    for view, predictions in seen.views.items():
        write_predictions(predictions, run.folder / f"held@{view}.parquet", task.held)
    score = score_predictions(seen.views[VIEWS[0]], task.held)
    trained = [r for r in run.log if "ap50" not in r or "loss" in r]
    run.write_log([*trained, {"step": metadata.steps, "seconds": seconds, "ap": score.ap, "ap50": score.ap50}])
    result = {
        "name": row.name,
        "recipe": recipe.detector,
        "image_size": recipe.image_size,
        "seed": row.seed,
        "fold": row.fold,
        "views": [str(v) for v in seen.views],
        "seconds": seconds,
        "steps": metadata.steps,
        "images_per_second": metadata.images_per_second,
        "ap": score.ap,
        "ap50": score.ap50,
        "adds": None,
        "weight": None,
        "cost": seen.cost,
    }
    ledger.put_segment(replace_row(row, state="done", ended=ledger.elapsed, result=result))
    found.runs[row.name] = run
    found.held |= {f"{row.name}@{view}": predictions for view, predictions in seen.views.items()}
    found.unchosen.append(row.name)
    ledger.log(
        f"{row.name}: AP50 {score.ap50:.3f}, AP {score.ap:.3f} on the held-back pictures after {metadata.steps} steps in "
        f"{format_duration(seconds)} ({speed:.1f} pictures a second)."
    )
