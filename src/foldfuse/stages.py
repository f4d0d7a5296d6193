"""What a campaign does with its time: the plan, the trunk and its branches, the choice among them, the delivery.

`campaign` tells what for; here is how. Times are seconds of the campaign's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from foldfuse import machine
from foldfuse.campaign import Ledger, Task
from foldfuse.detections import Detections, Predictions
from foldfuse.durations import clock_text
from foldfuse.ensemble import Built, Ensemble, apply, build
from foldfuse.formats import write_predictions
from foldfuse.images import Pictures
from foldfuse.predict import load_detector, predict_views
from foldfuse.progress import bar
from foldfuse.report import report
from foldfuse.run import Run
from foldfuse.score import Score, score_predictions
from foldfuse.submit import write_submission
from foldfuse.train import Budget, run_facts, train_run
from foldfuse.tta import View, parse_views

MARGIN = 0.01  # share of the deadline kept free at the end, against surprises
FINISH = 5.0  # seconds for the last submission and report
VIEWS = parse_views(["1", "1+hflip", "1.25"])
TRUNK_SHARE = 0.5  # of the training time; the branches share the rest alike
PREDICTING_SHARE = 0.3  # of the deadline: predictions that would need more are done with fewer views


@dataclass(frozen=True)
class Plan:
    """Who is trained, and for which share of the training time.

    Attributes:
        name: of the member, and of its folder.
        image_size: pixels.
        batch_size: pictures.
        seed: of its random choices.
        share: of the training time.
    """

    name: str
    image_size: int
    batch_size: int
    seed: int
    share: float


def plan(task: Task) -> list[Plan]:
    """The trunk first, then its branches: sizes around the recipe's, each with a seed of its own."""
    size = task.recipe.image_size
    small, large = max(128, round(size * 0.8 / 32) * 32), round(size * 1.2 / 32) * 32
    branches = [size, large]
    parts = [(small, TRUNK_SHARE), *((side, (1 - TRUNK_SHARE) / len(branches)) for side in branches)]
    made = []
    for i, (side, portion) in enumerate(parts):
        # The memory of a step goes with its pixels: larger pictures come fewer at a time.
        batch = max(2, min(task.recipe.batch_size, round(task.recipe.batch_size * (size / side) ** 2)))
        role = "trunk" if i == 0 else f"branch{i}"
        made.append(Plan(f"{role}-{side}", side, batch, task.seed * 1000 + i, portion))
    return made


@dataclass
class Found:
    """What the campaign has in hand.

    Attributes:
        held: {"member@view": predictions of the held-back pictures}.
        runs: {member: its run folder}.
        target: as `held`, of the pictures to submit; filled when an ensemble asks for it.
        score: of the ensemble that is submitted now, on the held-back pictures.
        cost: {member: seconds that one picture takes in one view at scale 1}.
    """

    held: dict[str, Predictions] = field(default_factory=dict)
    target: dict[str, Predictions] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    score: Score | None = None
    cost: dict[str, float] = field(default_factory=dict)


def carry_out(task: Task, ledger: Ledger) -> None:
    """Spend the time until the deadline; leave the submission and the report in the campaign's folder."""
    ledger.facts["machine"] = machine.facts()
    found, planned = Found(), plan(task)
    longest = round(max(p.image_size for p in planned) * 1.1)
    with ledger.stage("decode the pictures", "setup"):
        pictures = Pictures.of(task.train.samples, longest=longest)
    ledger.note(
        f"The plan: a trunk at {planned[0].image_size} px, then {len(planned) - 1} branches at "
        f"{', '.join(str(p.image_size) for p in planned[1:])} px, each with its own seed."
    )
    state: dict[str, Any] | None = None
    try:
        for i, part in enumerate(planned):
            seconds = training_seconds(planned[i:], task, ledger, found)
            if seconds < 5:
                ledger.note(f"{part.name} is left out: no time is left to train it.")
                continue
            try:
                last = train_member(part, task, ledger, found, pictures, seconds, state)
            except FloatingPointError as error:  # it diverged; the others may do well
                ledger.note(f"{part.name} is left out: {error}")
                if not found.held:
                    ledger.facts["state"] = "failed"
                    ledger.save()
                    raise
                continue
            state = last if state is None else state
            predict_held(part, task, ledger, found)
            if i + 1 < len(planned):
                submit_best(task, ledger, found, last=False)
                refresh_report(ledger)
        submit_best(task, ledger, found, last=True)
    except KeyboardInterrupt:
        ledger.facts["state"] = "interrupted"
        ledger.note("Interrupted: delivering what there is.")
    else:
        ledger.facts["state"] = "finished"
    ledger.facts["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    ledger.facts["peak_memory_mb"] = round(machine.peak_memory_mb())
    refresh_report(ledger)


def reserve(parts: Sequence[Plan], task: Task, ledger: Ledger, found: Found) -> float:
    """Seconds that must be kept for all but the training of `parts`: their predictions, the choice, the delivery."""
    pictures = len(task.held) + len(task.target)
    per_picture = sum(cost_of(part, found) for part in parts) * sum(v.scale**2 for v in views(task, ledger, found))
    held_back = MARGIN * ledger.deadline + FINISH + search_seconds(ledger) + 4.0 * len(parts)
    return held_back + pictures * per_picture


def search_seconds(ledger: Ledger) -> float:
    """Seconds for the last choice of the ensemble."""
    return min(60.0, max(3.0, 0.012 * ledger.deadline))


def cost_of(part: Plan, found: Found) -> float:
    """Seconds that one picture takes in one view: as measured, else taken from members measured at other sizes."""
    if part.name in found.cost:
        return found.cost[part.name]
    per_pixel = [cost / found.runs[name].recipe.image_size ** 2 for name, cost in found.cost.items()]
    return part.image_size**2 * (max(per_pixel) if per_pixel else 0.03 / 256**2)


def views(task: Task, ledger: Ledger, found: Found) -> tuple[View, ...]:
    """As many of `VIEWS` as a fair share of the deadline allows for all members."""
    pictures = len(task.held) + len(task.target)
    once = pictures * sum(cost_of(part, found) for part in plan(task))
    chosen = VIEWS
    while len(chosen) > 1 and once * sum(v.scale**2 for v in chosen) > PREDICTING_SHARE * ledger.deadline:
        chosen = chosen[:-1]
    return chosen


def training_seconds(parts: Sequence[Plan], task: Task, ledger: Ledger, found: Found) -> float:
    """Seconds that the first of `parts` may train: its share of what is left for training."""
    free = ledger.left - reserve(parts, task, ledger, found)
    return free * parts[0].share / sum(p.share for p in parts)


def train_member(
    part: Plan,
    task: Task,
    ledger: Ledger,
    found: Found,
    pictures: Pictures,
    seconds: float,
    start: dict[str, Any] | None,
) -> dict[str, Any]:
    """Train one member for `seconds`, from the trunk's last state if there is one; its last state comes back."""
    recipe = replace(task.recipe, image_size=part.image_size, batch_size=part.batch_size)
    if start is None:
        recipe = replace(recipe, decay_from=1.0)
    else:
        recipe = replace(recipe, warmup=0.0, decay_from=0.0, mosaic_until=min(0.4, recipe.mosaic_until))
    facts = run_facts(task.train, data=task.train.source, seed=part.seed, held=task.held.image_ids)
    run = Run.create(ledger.folder / "members" / part.name, recipe, facts)
    with ledger.stage(f"train {part.name}", "train"), bar(f"training {part.name}") as progress:
        last = train_run(
            run, task.train, Budget(seconds=seconds), part.seed, pictures=pictures, start=start, progress=progress
        )
    found.runs[part.name] = run
    return last


def predict_held(part: Plan, task: Task, ledger: Ledger, found: Found) -> None:
    """Predict the held-back pictures with one member in every view; it joins the members."""
    run = found.runs[part.name]
    model, classes = load_detector(run)
    began = ledger.used
    with ledger.stage(f"out-of-fold {part.name}", "predict"):
        first = predict_views(model, task.held.samples, classes, image_size=part.image_size, views=VIEWS[:1])
        found.cost[part.name] = (ledger.used - began) / len(task.held)
        more = views(task, ledger, found)[1:]
        rest = predict_views(model, task.held.samples, classes, image_size=part.image_size, views=more) if more else {}
    for view, predictions in (first | rest).items():
        found.held[f"{part.name}@{view}"] = predictions
        write_predictions(predictions, run.folder / f"held@{view}.parquet", task.held)
    score = score_predictions(first[VIEWS[0]], task.held)
    facts = run.facts
    ledger.facts["members"].append(
        {
            "name": part.name,
            "recipe": task.recipe.detector,
            "image_size": part.image_size,
            "seed": part.seed,
            "fold": 0,
            "views": [str(v) for v in (first | rest)],
            "seconds": facts["seconds"],
            "steps": facts["steps"],
            "images_per_second": facts["images_per_second"],
            "ap": score.ap,
            "ap50": score.ap50,
            "adds": None,
            "weight": None,
        }
    )
    run.write_log([*run.log, {"step": facts["steps"], "seconds": facts["seconds"], "ap": score.ap, "ap50": score.ap50}])
    ledger.note(
        f"{part.name}: AP50 {score.ap50:.3f}, AP {score.ap:.3f} on the held-back pictures after {facts['steps']} steps in "
        f"{clock_text(facts['seconds'])} ({facts['images_per_second']:.1f} pictures a second)."
    )


def submit_best(task: Task, ledger: Ledger, found: Found, *, last: bool) -> None:
    """Choose the best ensemble of what there is, and submit it if it does better on the held-back pictures than before.

    Until the last member is there only plain views are in the choice, so that little time is spent on predictions that
    a later choice may not want.
    """
    candidates = {
        name: predictions for name, predictions in found.held.items() if last or name.endswith(f"@{VIEWS[0]}")
    }
    with ledger.stage("choose the ensemble", "fuse"):
        seconds = search_seconds(ledger) if last else 2.0
        built = build(candidates, task.held, metric="ap50", seconds=seconds, seed=task.seed)
    if found.score is not None and built.score <= (found.score.ap50 or 0.0):
        ledger.note(
            f"The ensemble with the new member scores AP50 {built.score:.3f} out-of-fold, no more than before: kept."
        )
        return
    with ledger.stage("predict the pictures to submit", "predict"):
        predict_target(built.ensemble, task, ledger, found)
    with ledger.stage("submit", "submit"):
        fused_held = apply(built.ensemble, candidates)
        fused = all_pictures(apply(built.ensemble, found.target), task)
        write_submission(fused, task.target, ledger.folder / "submission.csv", "contest_csv")
        write_submission(fused, task.target, ledger.folder / "submission.json", "coco_json")
        write_predictions(fused_held, ledger.folder / "fused_oof.parquet", task.held)
        write_predictions(fused, ledger.folder / "fused_test.parquet", task.target)
        built.ensemble.write(ledger.folder / "ensemble.json")
    found.score = score_predictions(fused_held, task.held)
    describe(built, found.score, ledger)


def predict_target(ensemble: Ensemble, task: Task, ledger: Ledger, found: Found) -> None:
    """Predict the pictures to submit with every member and view that `ensemble` wants and that has not done so."""
    wanted: dict[str, list[View]] = {}
    for name in ensemble.weights:
        if name not in found.target:
            member, view = name.split("@")
            wanted.setdefault(member, []).append(View.parse(view))
    seen = [s for s in task.target.samples if s.id not in task.unseen]
    for member, its_views in wanted.items():
        run = found.runs[member]
        model, classes = load_detector(run)
        with bar(f"predicting with {member}") as progress:
            made = predict_views(
                model, seen, classes, image_size=run.recipe.image_size, views=its_views, progress=progress
            )
        for seen_in, predictions in made.items():
            found.target[f"{member}@{seen_in}"] = predictions
            write_predictions(predictions, run.folder / f"target@{seen_in}.parquet", task.target)


def all_pictures(predictions: Predictions, task: Task) -> Predictions:
    """The predictions with an empty entry for each picture that could not be decoded, in the order of the target."""
    return Predictions.of(
        {i: predictions[i] if i in predictions else Detections.empty() for i in task.target.image_ids},
        predictions.classes,
    )


def describe(built: Built, score: Score, ledger: Ledger) -> None:
    """Tell in campaign.json, and in a sentence, what was chosen and why."""
    ensemble, (best_name, best_score) = built.ensemble, built.best_single
    total = sum(ensemble.weights.values())
    for member in ledger.facts["members"]:
        parts = [name for name in ensemble.weights if name.split("@")[0] == member["name"]]
        member["weight"] = round(sum(ensemble.weights[name] for name in parts) / total, 3) if parts else 0.0
        member["adds"] = round(sum(built.adds.get(name, 0.0) for name in parts), 4) if parts and built.adds else None
        member["views"] = [name.split("@")[1] for name in parts] or member["views"]
    ledger.facts["best_member"] = best_name.split("@")[0]
    ledger.facts["fused"] = {
        "kind": ensemble.kind,
        "iou": ensemble.iou,
        "skip": ensemble.skip,
        "weights": dict(ensemble.weights),
        "nested_ap50": built.nested_score,
        "all_alike_ap50": built.all_alike,
        "interval": [built.interval.low, built.interval.high] if built.interval else None,
        **score.to_dict(),
    }
    members = ", ".join(f"{weight:g} x {name}" for name, weight in ensemble.weights.items())
    honest = f" ({built.nested_score:.3f} on pictures not chosen on)" if built.nested_score is not None else ""
    ledger.note(
        f"Submitted {ensemble.kind.upper()} at IoU {ensemble.iou:g} of {members}: AP50 {built.score:.3f} out-of-fold"
        f"{honest}; the best member in one view, {best_name}, has {best_score:.3f}, plain WBF of all {built.all_alike:.3f}."
    )


def refresh_report(ledger: Ledger) -> None:
    """Write the page anew from what lies in the folder."""
    ledger.save()
    with ledger.stage("report", "report"):
        report(ledger.folder)
