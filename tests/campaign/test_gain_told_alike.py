"""The gain of an ensemble has one baseline and the interval of its own difference, and log, terminal and page say the same."""

import io
import re
from contextlib import closing

import numpy as np
from rich.console import Console

from foldfuse.campaign.affordable import by_name
from foldfuse.campaign.submissions import ensemble_summary, log_ensemble
from foldfuse.ensemble.build import build_ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.evaluation.bootstrap import difference
from foldfuse.evaluation.coco import score_predictions
from foldfuse.reporting.campaign_page import write_campaign_page
from foldfuse.reporting.live import CurrentWork, render
from foldfuse.storage import ledger
from page_samples import read_page
from score_samples import noisy, random_dataset

GAIN = re.compile(
    r"a gain of (\S+) \(95 % interval (\S+) to (\S+)\) over the best single member, also chosen without each fold, with (\S+);"
)


def test_log_terminal_and_page_state_the_same_gain_with_its_own_interval(tmp_path):
    truth = random_dataset(5, images=24)
    views = {MemberView("a", "1"): 1, MemberView("a", "1+hflip"): 2, MemberView("b", "1"): 3}
    candidates = {key: noisy(truth, seed, jitter=0.1, keep=0.7) for key, seed in views.items()}
    report = build_ensemble(by_name(candidates), truth, seconds=1e9, folds=3, threads=1)
    with closing(ledger.create(tmp_path, {"state": "finished"}, deadline=600, start=0.0)) as book:
        book.add_submission(
            report.score, ensemble_summary(report, candidates, score_predictions(noisy(truth, 1), truth))
        )
        log_ensemble(report, candidates, book)
    facts = ledger.snapshot(tmp_path)
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(render(facts, CurrentWork()))
    texts = [facts["notes"][-1], console.export_text(), " ".join(read_page(write_campaign_page(tmp_path)).text)]
    told = {GAIN.search(" ".join(text.split())).groups() for text in texts}
    assert len(told) == 1
    point, low, high, score = told.pop()
    assert float(low) <= float(point) <= float(high)
    assert float(score) == round(report.nested_single, 3)
    assert report.nested_single <= report.best_single[1]
    assert abs(float(point) - (report.nested_score - report.nested_single)) < 0.0006
    page = (tmp_path / "report.html").read_text()
    assert f"95 % interval {low} to {high} over" in page


def test_the_interval_contains_the_difference_itself_however_skewed_the_resamples():
    def only_the_whole(image_counts):
        return (image_counts == 1).all(1).astype(float)

    def nothing(image_counts):
        return np.zeros(len(image_counts))

    got = difference(only_the_whole, nothing, num_images=12)
    assert (got.low, got.value, got.high) == (0.0, 1.0, 1.0)
