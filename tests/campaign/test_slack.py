"""Whole campaigns on a simulated clock, whose work takes other times than planned: none is late, and little time stays unused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from campaign_samples import THREE_RECIPES, campaign_state, record_of
from foldfuse.campaign import constants as c
from foldfuse.campaign.extra_views import MemberCost, next_view
from foldfuse.campaign.planning.allocation import (
    crops_per_image,
    margin_seconds,
    pending_view_seconds,
    rescoring_seconds,
    reserved_seconds,
    search_seconds,
    successive_halving,
)
from foldfuse.campaign.planning.segments import plan_segments
from foldfuse.campaign.planning.slack import (
    extra_cooldown,
    last_search_seconds,
    measured_reserves,
    to_the_deadline,
    views_in_time,
)
from foldfuse.campaign.planning.soups import ready_soups
from foldfuse.campaign.planning.state import CampaignState, Reserves
from foldfuse.storage.ledger import Interval


@dataclass
class Machine:
    """What work takes on a simulated machine.

    Attributes:
        pixel_seconds: of the prediction of one pixel.
        overhead: seconds of a segment beside trainings and predictions.
        delivery: seconds of a submission and the report.
        crop: seconds of a crop of crop rescoring.
        accepted: whether crop rescoring helps, so that it goes on to the test images.
        failing: names of segments that fail halfway.
    """

    pixel_seconds: float = c.DEFAULT_PIXEL_SECONDS
    overhead: float = 0.4
    delivery: float = 0.8
    crop: float = 0.0045
    accepted: bool = True
    failing: set[str] = field(default_factory=set)

    def run(self, state: CampaignState) -> tuple[CampaignState, list[str]]:
        """The end of a campaign, and the names of its segments."""
        timeline: list[Interval] = []
        names = []

        def spend(name: str, kind: str, seconds: float) -> None:
            nonlocal state
            timeline.append(Interval(name, kind, state.elapsed, state.elapsed + seconds))
            state = replace(state, elapsed=state.elapsed + seconds)

        while (decision := to_the_deadline(state)).segment is not None:
            segment = decision.segment
            names.append(segment.name)
            if decision.num_views < len(c.VIEWS):
                state = replace(state, max_views=decision.num_views)
            failed = segment.name in self.failing
            spend(f"train {segment.name}", "train", decision.seconds / (2 if failed else 1))
            image_seconds = self.pixel_seconds * segment.recipe.image_size**2
            result = {} if failed else {"image_seconds": image_seconds}
            record = record_of(segment, state, decision.seconds, state="failed" if failed else "trained", result=result)
            state = replace(state, segments=(*state.segments, record))
            if failed:
                continue
            state = replace(state, elapsed=state.elapsed + self.overhead)
            self._predict(segment, record, state, spend)
            state = replace(state, segments=(*state.segments[:-1], replace(record, state="done")))
            for soup, _ in ready_soups(state).values():
                plain = self.pixel_seconds * soup.recipe.image_size**2 * state.num_images
                if state.remaining < reserved_seconds((), replace(state, soups=False)) + plain:
                    state = replace(state, soups=False)
                    break
                result = {"image_seconds": self.pixel_seconds * soup.recipe.image_size**2}
                record = record_of(soup, state, 0.0, state="trained", result=result)
                state = replace(state, segments=(*state.segments, record))
                self._predict(soup, record, state, spend)
                state = replace(state, segments=(*state.segments[:-1], replace(record, state="done")))
            spend("submit", "submit", self.delivery / 2)
            spend("report", "report", self.delivery / 2)
            state = replace(state, reserves=measured_reserves(timeline, crop_seconds=1.1 * self.crop))
        spend("search", "fuse", last_search_seconds(state))
        spend("predict the test images", "predict", pending_view_seconds(state))
        spend("submit", "submit", self.delivery / 2)
        if 0 < rescoring_seconds(state) <= state.remaining - state.reserves.delivery:
            test = state.crops_per_image * state.num_test
            crops = rescoring_seconds(state) / state.reserves.crop - (0 if self.accepted else test)
            spend("crop rescoring", "fuse", self.crop * crops)
        if not (self.accepted and rescoring_seconds(state)):
            self._views(state, spend)
        spend("report", "report", self.delivery / 2)
        return state, names

    def _predict(self, segment, record, state: CampaignState, spend) -> None:
        """The predictions of a segment: of the held-out images in as many views as there is time for, then of the test images."""
        image_seconds = record.result["image_seconds"]
        plain = state.num_val * image_seconds
        now = replace(state, elapsed=state.elapsed + plain)
        cost = sum(view.cost for view in views_in_time(now, segment.name))
        spend("out-of-fold", "predict", plain * cost)
        spend("predict the test images", "predict", state.num_test * image_seconds)

    def _views(self, state: CampaignState, spend) -> None:
        """The views that fill the rest, as `spend_on_views` predicts them."""
        reserved = margin_seconds(state.deadline) + state.reserves.delivery + c.FIRST_SEARCH_SECONDS
        views = frozenset(c.VIEWS[: state.max_views])
        members = [
            MemberCost(1.0 + i, r.result["image_seconds"], views)
            for i, r in enumerate(state.segments)
            if r.state == "done"
        ]
        left, spent = state.remaining - reserved, 0.0
        while chosen := next_view(members, num_images=state.num_images, seconds=left - spent):
            member, view, cost = chosen
            spent += cost
            members = [replace(m, views=m.views | {view}) if m is member else m for m in members]
        if spent:
            spend("views", "predict", spent)
            spend("search", "fuse", c.FIRST_SEARCH_SECONDS + left - spent)
            spend("submit", "submit", self.delivery / 2)


DEADLINES = [180.0, 300.0, 600.0, 1800.0, 3600.0]
MACHINES = {
    "as planned": Machine(),
    "fast predictions": Machine(pixel_seconds=c.DEFAULT_PIXEL_SECONDS / 5),
    "slow predictions": Machine(pixel_seconds=2 * c.DEFAULT_PIXEL_SECONDS),
    "rescoring without a gain": Machine(accepted=False),
    "the last segment fails": Machine(failing={"cooldown2-384"}),
    "the base run fails": Machine(failing={"base-256"}),
    "slow files": Machine(overhead=3.0, delivery=1.5),
}


@pytest.mark.parametrize("deadline", DEADLINES)
@pytest.mark.parametrize("name", MACHINES)
def test_no_campaign_is_late_and_less_than_2_percent_stay_unused(name, deadline):
    end, _ = MACHINES[name].run(campaign_state(deadline))
    assert 0 <= end.remaining < 0.02 * deadline


@pytest.mark.parametrize("deadline", [60.0, 75.0, 90.0])
def test_a_minute_is_enough_for_a_member_and_is_not_exceeded(deadline):
    end, names = Machine().run(campaign_state(deadline, num_val=20, num_test=30))
    assert names[0] == "base-256"
    assert 0 <= end.remaining < 0.06 * deadline


@pytest.mark.parametrize(("objects", "images", "crops"), [(0, 0, 12), (125, 100, 12), (500, 100, 20), (1360, 100, 30)])
def test_images_with_many_objects_have_more_boxes_rescored(objects, images, crops):
    assert crops_per_image(objects, images) == crops


def test_an_extra_cooldown_run_takes_the_place_of_one_that_failed():
    _, names = Machine(failing={"cooldown2-384"}).run(campaign_state())
    assert names == ["base-256", "cooldown1-320", "cooldown2-384", "cooldown3-320"]
    _, names = Machine().run(campaign_state())
    assert names == ["base-256", "cooldown1-320", "cooldown2-384"], "where nothing failed there is no time for it"


def finished(state: CampaignState, seconds: float) -> CampaignState:
    """The state with all segments of its plan done, each after so many seconds."""
    segments = tuple(record_of(s, state, seconds) for s in plan_segments(state))
    return replace(state, elapsed=3.0 + seconds * len(segments), segments=segments)


def test_an_extra_cooldown_run_has_its_own_name_and_seed_and_stays_in_the_plan():
    state = finished(campaign_state(), 120.0)
    extra = extra_cooldown(state)
    assert extra == to_the_deadline(state)
    planned = plan_segments(state)
    assert extra.segment.name not in {s.name for s in planned}
    assert extra.segment.seed not in {s.seed for s in planned}
    assert extra.segment.parent == "base-256"
    begun = replace(
        state, segments=(*state.segments, record_of(extra.segment, state, 100.0, state="running", seconds=40.0))
    )
    assert plan_segments(begun)[-1].name == extra.segment.name
    assert to_the_deadline(begun).segment.name == extra.segment.name, "a killed one is resumed"


def test_no_extra_cooldown_run_where_it_would_be_short_or_alone_in_its_fold():
    assert extra_cooldown(finished(campaign_state(), 175.0)) is None
    assert extra_cooldown(finished(campaign_state(folds=(0, 1)), 60.0)) is None
    assert extra_cooldown(campaign_state()) is None, "segments are open"
    busy = replace(finished(campaign_state(), 120.0), busy=frozenset({"cooldown2-384"}))
    assert to_the_deadline(busy) == successive_halving(busy)
    steps = dict.fromkeys(THREE_RECIPES, 0.1)
    several = campaign_state(4200.0, recipes=THREE_RECIPES, step_seconds=steps)
    assert extra_cooldown(finished(several, 100.0)) is None


def test_reserves_are_measured_from_the_timeline():
    assert measured_reserves([]) == Reserves()
    reserves = measured_reserves([], crop_seconds=0.01)
    assert (reserves.crop, reserves.object_crop) == (0.01, 0.01)
    assert measured_reserves([], crop_seconds=0.01, object_crop_seconds=0.03).object_crop == 0.03
    one = [
        Interval("train a", "train", 0, 10),
        Interval("submit", "submit", 13, 13.4),
        Interval("r", "report", 13.4, 14),
    ]
    first = measured_reserves(one)
    assert first.delivery == pytest.approx(c.RESERVE_SAFETY * 1.0 + c.RESERVE_SECONDS)
    assert (first.overhead, first.between) == (c.SEGMENT_OVERHEAD, 0.0), "no second training has begun"
    two = [*one, Interval("out-of-fold a", "predict", 10.5, 12), Interval("search", "fuse", 12, 12.5)]
    second = measured_reserves([*two, Interval("train b", "train", 14.5, None)])
    assert second.overhead == pytest.approx(c.RESERVE_SAFETY * 1.5 + c.RESERVE_SECONDS)
    assert second.between == pytest.approx(c.RESERVE_SAFETY * 1.5 + c.RESERVE_SECONDS)
    beside = [Interval("train a", "train", 0, 10), Interval("train b", "train", 1, 11)]
    assert measured_reserves([*beside, *one[1:]]).overhead == c.SEGMENT_OVERHEAD


def test_crop_rescoring_gets_no_time_where_wrong_classes_cost_little():
    state = campaign_state()
    assert rescoring_seconds(state) > 0
    assert rescoring_seconds(replace(state, class_error_cost=c.MIN_CLASS_ERROR_COST)) == rescoring_seconds(state)
    assert rescoring_seconds(replace(state, class_error_cost=0.9 * c.MIN_CLASS_ERROR_COST)) == 0.0


def test_the_last_search_takes_what_is_left_and_ends_in_time():
    state = finished(campaign_state(), 150.0)
    needed = reserved_seconds((), state) - search_seconds(600.0)
    for left, seconds in [(4.0, 4.0), (0.0, 2.0), (10.0, 10.0), (200.0, 3 * search_seconds(600.0))]:
        assert last_search_seconds(replace(state, elapsed=600.0 - needed - left)) == pytest.approx(seconds)


def test_the_last_segment_predicts_in_no_more_views_than_there_is_time_for():
    state = finished(campaign_state(), 150.0)
    name = state.segments[-1].name
    state = replace(state, segments=(*state.segments[:-1], replace(state.segments[-1], state="trained")))
    counts = [len(views_in_time(replace(state, elapsed=elapsed), name)) for elapsed in (450.0, 515.0, 590.0)]
    assert counts[0] == 3
    assert counts[2] == 1
    assert counts == sorted(counts, reverse=True)
    assert len(views_in_time(replace(campaign_state(), elapsed=590.0), "base-256")) == 3, "others are still open"


def test_further_views_go_to_the_member_with_most_weight_for_its_time():
    whole = frozenset(c.VIEWS)
    light, heavy = MemberCost(0.7, 0.01, whole), MemberCost(0.3, 0.04, whole)
    member, view, cost = next_view([heavy, light], num_images=100, seconds=5.0)
    assert (member, str(view), cost) == (light, "1.25+hflip", pytest.approx(1.5625))
    short = replace(light, views=frozenset(c.VIEWS[:1]))
    assert str(next_view([short], num_images=100, seconds=5.0)[1]) == "1+hflip"
    assert next_view([heavy, light], num_images=100, seconds=1.0) is None
    every = replace(light, views=whole | set(c.EXTRA_VIEWS))
    assert next_view([every, replace(heavy, weight=0.0)], num_images=100, seconds=1000.0) is None
