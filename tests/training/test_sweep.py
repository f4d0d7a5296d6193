"""A sweep: its grid, its time, its page, and that nothing is trained twice."""

import json

import pytest

from foldfuse.commands.train import sweep
from foldfuse.errors import InputError
from foldfuse.reporting.sweep_page import page
from foldfuse.training import sweep as module
from foldfuse.training.sweep import combinations, rows
from learning_samples import write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", 10)


def test_the_rate_goes_with_the_square_root_of_the_batch_size_and_the_largest_come_first():
    grid = combinations(["efficientdet_lite0"], [192, 256], [2, 8])
    assert list(grid) == [f"efficientdet_lite0-{size}-b{batch}" for batch in (8, 2) for size in (256, 192)]
    small, usual = (grid[f"efficientdet_lite0-256-b{batch}"] for batch in (2, 8))
    assert usual.lr == pytest.approx(2 * small.lr)
    assert (small.image_size, small.batch_size) == (256, 2)


@pytest.mark.slow
def test_a_sweep_scores_each_training_at_moments_and_trains_nothing_twice(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "SHORTEST", 0.1)
    monkeypatch.setattr(module, "seconds_each", lambda grid, held, left: 1.5)
    arguments = {"out": tmp_path / "s", "sizes": "64,96", "batches": "2", "budget": "30s", "k": 2}
    text = sweep(data, **arguments).read_text()
    record = json.loads((tmp_path / "s" / "sweep.json").read_text())
    names = ["lite0_fpn-96-b2", "lite0_fpn-64-b2"]
    assert list(record["runs"]) == names
    for name in names:
        scores = record["runs"][name]["scores"]
        assert 2 <= len(scores) <= module.MOMENTS
        assert [row["seconds"] for row in scores] == sorted(row["seconds"] for row in scores)
        assert scores[-1]["step"] == record["runs"][name]["steps"]
        assert f'<th scope="row">{name}</th>' in text
    assert text.count("<svg") >= 2
    assert "pictures/s" in capsys.readouterr().out

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train_run", never)
    sweep(data, **arguments)
    with pytest.raises(InputError, match="holds a sweep with other arguments"):
        sweep(data, **(arguments | {"sizes": "64"}))


def test_what_cannot_be_swept_is_refused_before_anything_is_written(data, tmp_path):
    for arguments, message in [
        ({"sizes": "64,x"}, "expected whole numbers"),
        ({"sizes": "64,64"}, "expected different values"),
        ({"sizes": "70"}, "multiple of 32"),
        ({"recipes": "efficientdet_lite"}, "Did you mean"),
        ({"sizes": "64", "batches": "2", "budget": "1s"}, "for each of 1 combinations"),
    ]:
        with pytest.raises(InputError, match=message):
            sweep(data, out=tmp_path / "s", **arguments)
        assert not (tmp_path / "s").exists(), message


def test_a_training_that_diverged_is_told_last():
    recipe = {"lr": 0.002}
    run = {"recipe": recipe, "steps": 3, "images_per_second": 2.0, "scores": [{"seconds": 1.0, "ap": 0.1, "ap50": 0.2}]}
    record = {"seconds_each": 60.0, "runs": {"bad": {**run, "scores": [], "failed": "step 3"}, "<good>": run}}
    assert [row[:3] for row in rows(record)] == [("<good>", "0.100", "0.200"), ("bad", "failed", "–")]
    assert "&lt;good&gt;" in page(record, "d")
