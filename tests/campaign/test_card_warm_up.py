"""What a card needs is loaded before the plan is made."""

import pytest

from foldfuse.campaign import card_warm_up
from foldfuse.campaign.card_warm_up import CardWarmUp, warm_up


def test_a_step_and_a_prediction_run():
    warm_up("cpu")


def test_without_a_card_nothing_is_done(monkeypatch):
    monkeypatch.setattr(card_warm_up, "warm_up", lambda device: pytest.fail("computed"))
    waiting = CardWarmUp("cpu")
    waiting.wait()
    waiting.close()


def test_a_card_is_warmed_up_and_its_failure_is_left_to_the_training(monkeypatch):
    seen = []

    def fail(device):
        seen.append(device)
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(card_warm_up, "card_names", lambda name: ("Tesla T4",))
    monkeypatch.setattr(card_warm_up, "choose_device", lambda name: "cuda")
    monkeypatch.setattr(card_warm_up, "warm_up", fail)
    waiting = CardWarmUp("auto")
    waiting.wait()
    waiting.close()
    assert seen == ["cuda"]
