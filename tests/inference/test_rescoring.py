"""Crop rescoring helps where crops show the class, and leaves scores unchanged where they do not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from foldfuse import cli
from foldfuse.boxes import pairwise_iou
from foldfuse.commands import rescore as rescore_command
from foldfuse.data.crops import Crops, object_crops
from foldfuse.data.folds import Folds, make_folds
from foldfuse.data.readers.coco import read
from foldfuse.detections import Detections, Predictions
from foldfuse.errors import InputError
from foldfuse.evaluation.metrics import measure
from foldfuse.formats.predictions import read_predictions, write_predictions
from foldfuse.inference import rescoring as rescore
from foldfuse.inference import rescoring_data
from foldfuse.inference.crop_encoder import CropEncoder, features
from foldfuse.inference.crop_features import fit_probe, fit_probes, torch_encoder
from foldfuse.inference.rescorer import Blend, Rescorer, apply_rescorer, rescored
from foldfuse.inference.rescoring_data import label_detections, sample_objects
from learning_samples import write_dataset


def mean_color_encoder() -> CropEncoder:
    """The mean colour of the crop's middle, in 1 ms."""
    return torch_encoder(lambda images: images[:, :, 8:24, 8:24].mean((2, 3)), size=32, context=1.0)


def blind_encoder() -> CropEncoder:
    """An encoder with the same features for every crop."""
    return torch_encoder(lambda images: torch.zeros(len(images), 3), size=32, context=1.0)


def random_class_predictions(dataset, seed=0):
    """Predictions that find each object with a random class, and one box an image on the background."""
    rng = np.random.default_rng(seed)
    found = {}
    for sample in dataset.samples:
        objects = sample.annotations.boxes
        off = np.array([[0, 0, 10, 10]]) + rng.integers(0, 50, 2)[[0, 1, 0, 1]]
        off = off[pairwise_iou(off.astype(float), objects).max(1) == 0]
        boxes = np.concatenate([objects + rng.uniform(-1, 1, objects.shape), off]).astype(np.float32)
        labels = rng.integers(0, 2, len(boxes))
        found[sample.id] = Detections(boxes, rng.uniform(0.3, 0.7, len(boxes)).astype(np.float32), labels)
    return Predictions.of(found, dataset.classes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return read(write_dataset(tmp_path_factory.mktemp("squares"), 40))


@pytest.fixture(scope="module")
def test_data(tmp_path_factory):
    return read(write_dataset(tmp_path_factory.mktemp("others"), 20, seed=1))


def test_rescoring_helps_where_colours_show_the_class(data, test_data):
    predictions, test = random_class_predictions(data), random_class_predictions(test_data, seed=1)
    fitted = rescore.fit_rescorer(predictions, data, encoder=mean_color_encoder())
    assert fitted.accepted
    assert fitted.facts.accuracy > 0.9  # some squares lie upon others
    assert fitted.gain.low > 0
    after = apply_rescorer(fitted.rescorer, test, test_data.samples)
    assert measure(after, test_data) > measure(test, test_data) + 0.1
    np.testing.assert_array_equal(after.boxes, test.boxes)
    np.testing.assert_array_equal(after.labels, test.labels)


def test_scores_stay_where_crops_show_nothing(data):
    predictions = random_class_predictions(data)
    fitted = rescore.fit_rescorer(predictions, data, encoder=blind_encoder())
    assert not fitted.accepted
    np.testing.assert_array_equal(fitted.predictions.scores, predictions.scores)
    after = apply_rescorer(fitted.rescorer, predictions, data.samples)
    np.testing.assert_array_equal(after.scores, predictions.scores)


def test_a_probe_can_memorise_its_training_data():
    """So the next test means something: features that name the row and random labels are learnt exactly."""
    rng = np.random.default_rng(0)
    x = np.eye(200, dtype=np.float32)
    y = rng.integers(0, 2, 200)
    probe = fit_probe(x, y, np.ones(200), num_classes=2, ridge=1e-3)
    assert (probe.log_probabilities(x).argmax(1) == y).all(), "a probe cannot overfit these features"


def test_each_image_is_rescored_by_a_probe_trained_without_it(data, monkeypatch):
    """Every probe is fitted without the rows of the part that it then predicts."""
    fits = []

    def spy(x, y, weights, **settings):
        fits.append({tuple(row) for row in x.tolist()})
        return fit_probes(x, y, weights, **settings)

    predicted = []
    real = rescoring_data.LinearProbe.log_probabilities
    monkeypatch.setattr(rescoring_data, "fit_probes", spy)
    monkeypatch.setattr(
        rescoring_data.LinearProbe,
        "log_probabilities",
        lambda probe, x: predicted.append((fits[-1], {tuple(row) for row in x.tolist()})) or real(probe, x),
    )
    wide = torch_encoder(
        lambda images: images.mean((2, 3)), size=32, context=2.0
    )  # with noise around the object, so that no two crops are equal
    rescore.fit_rescorer(random_class_predictions(data), data, encoder=wide)
    assert len(predicted) == rescore.PARTS * len(rescore.RIDGES)
    for trained, rows in predicted:
        assert not trained & rows


def test_several_folds_are_the_parts_and_a_single_fold_is_split(data):
    given = make_folds(data, num_folds=4)
    assert rescore._parts(data, given, 0) == {i: given.fold_of[i] for i in data.image_ids}
    one = Folds(dict.fromkeys(data.image_ids, 0), 4)
    assert len(set(rescore._parts(data, one, 0).values())) == rescore.PARTS


def test_a_detection_has_the_label_of_the_object_that_it_overlaps(data):
    sample = next(s for s in data.samples if len(s.annotations) == 1)
    x1, y1, x2, y2 = sample.annotations.boxes[0]
    side = x2 - x1
    boxes = np.array(
        [[x1, y1, x2, y2], [x1 + 0.42 * side, y1, x2 + 0.42 * side, y2], [x1 + 0.8 * side, y1, x2 + side, y2]]
    )
    crops = Crops((sample,), np.zeros(3, int), boxes, np.full(3, -1))
    assert label_detections(crops, 2).labels.tolist() == [sample.annotations.labels[0], -1, 2]


def predictions_of(scores, labels):
    boxes = np.tile(np.float32([0, 0, 9, 9]), (len(scores), 1))
    return Predictions.of({0: Detections(boxes, np.float32(scores), np.array(labels))}, ("a", "b"))


def test_a_blend_is_the_weighted_geometric_mean_of_score_and_probability():
    found = predictions_of([0.9, 0.4, 0.1], [0, 1, 1])
    log_p = np.log([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])
    out = rescored(found, np.array([0, 1]), log_p, Blend(0.25))
    np.testing.assert_allclose(out.scores[:2], [0.9**0.75 * 0.5**0.25, 0.4**0.75 * 0.6**0.25], rtol=1e-6)
    np.testing.assert_allclose(out.scores[2], 0.1**0.75 * np.sqrt(0.5 * 0.6) ** 0.25, rtol=1e-6)
    given = rescored(found, np.array([0, 1]), log_p, Blend(0.25, background=False))
    np.testing.assert_allclose(given.scores[0], 0.9**0.75 * (0.5 / 0.7) ** 0.25, rtol=1e-6)
    assert rescored(found, np.array([0]), log_p[:1], Blend(0.0)) is found


def test_scores_of_0_and_tiny_probabilities_stay_in_range():
    found = predictions_of([0.0, 1.0], [0, 0])
    out = rescored(found, np.array([0, 1]), np.array([[0.0, -900, -900], [-900, -900, 0]]), Blend(0.5))
    assert np.isfinite(out.scores).all()
    assert ((out.scores >= 0) & (out.scores <= 1)).all()


def test_a_probe_is_the_minimum_that_scikit_learn_finds():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5)).astype(np.float32)
    y, weights = rng.integers(0, 3, 80), rng.uniform(0.5, 2, 80)
    probe = fit_probe(x, y, weights, num_classes=3, ridge=0.1)
    theirs = LogisticRegression(C=1 / (0.1 * weights.sum()), tol=1e-8, max_iter=1000)
    theirs.fit((x - probe.mean) / probe.std, y, sample_weight=weights)
    want = theirs.predict_log_proba((x - probe.mean) / probe.std)
    np.testing.assert_allclose(probe.log_probabilities(x), want, atol=2e-3)


def test_probes_of_several_ridges_are_those_of_each_ridge_alone():
    rng = np.random.default_rng(1)
    x, y, weights = rng.normal(size=(120, 7)).astype(np.float32), rng.integers(0, 18, 120), rng.uniform(0.5, 2, 120)
    probes = fit_probes(x, y, weights, num_classes=18, ridges=(0.03, 1.0, 0.1))
    assert set(probes) == {0.03, 0.1, 1.0}
    for ridge, probe in probes.items():
        alone = fit_probe(x, y, weights, num_classes=18, ridge=ridge)
        assert probe.weight.shape == (7, 18)
        np.testing.assert_allclose(probe.log_probabilities(x), alone.log_probabilities(x), atol=0.02)
    assert abs(probes[0.03].weight - probes[1.0].weight).max() > 0.05


def test_too_many_objects_are_sampled_evenly_over_the_classes():
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    crops = Crops((None,), np.zeros(84, int), np.zeros((84, 4)), labels)
    sampled = sample_objects(crops, 24, 3, np.random.default_rng(0))
    assert np.bincount(sampled.labels).tolist() == [10, 10, 4]
    assert sample_objects(crops, 84, 3, np.random.default_rng(0)) is crops


def test_only_the_best_boxes_of_an_image_get_crops(data):
    sizes = []
    encoder = torch_encoder(lambda images: sizes.append(len(images)) or images.mean((2, 3)), size=8, context=1.0)
    predictions = random_class_predictions(data)
    probe = fit_probe(np.zeros((3, 3), np.float32), np.arange(3), np.ones(3), num_classes=3, ridge=1.0)
    apply_rescorer(Rescorer(probe, encoder, Blend(0.3), 1, -1.0), predictions, data.samples)
    assert sum(sizes) == (np.diff(predictions.offsets) > 0).sum()


def test_features_come_in_the_order_of_the_crops_and_progress_ends_at_1(data):
    shares = []
    crops = object_crops(data)
    found = features(crops, mean_color_encoder(), progress=shares.append)
    assert found.shape == (len(crops), 3)
    assert ((found[:, 0] > found[:, 2]) == (crops.labels == 0)).mean() > 0.9  # class 0 is red; some lie under others
    assert shares[-1] == 1.0


def test_the_encoder_gets_crops_on_its_device(data):
    devices = []
    encoder = torch_encoder(
        lambda images: devices.append(images.device.type) or torch.zeros(len(images), 3), size=8, device="meta"
    )
    assert features(object_crops(data), encoder).shape[1] == 3
    assert set(devices) == {"meta"}


def test_bad_input_is_named(data):
    nothing = Predictions.of({i: Detections.empty() for i in data.image_ids}, data.classes)
    with pytest.raises(InputError, match="there are 0 boxes on 40 images"):
        rescore.fit_rescorer(nothing, data, encoder=blind_encoder())
    with pytest.raises(InputError, match="on 3 images to rescore"):
        rescore.fit_rescorer(
            random_class_predictions(data).select_images(data.image_ids[:3]), data, encoder=blind_encoder()
        )
    with pytest.raises(InputError, match="not one object is annotated"):
        rescore.fit_rescorer(random_class_predictions(data), data.without_annotations(), encoder=blind_encoder())


def test_the_command_writes_both_files_and_the_gain(data, test_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rescore_command, "imagenet_encoder", lambda device: mean_color_encoder())
    oof, test = tmp_path / "oof.parquet", tmp_path / "test.parquet"
    write_predictions(random_class_predictions(data), oof, data)
    write_predictions(random_class_predictions(test_data, seed=1), test, test_data)
    words = ["rescore", str(oof), "--data", str(data.source), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--test-predictions", str(test), "--test", str(test_data.source)]) == 0
    assert "nested cross-validation: +0." in capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "rescore.json").read_text())
    assert facts["accepted"]
    assert facts["after"] == measure(read_predictions(tmp_path / "out" / "oof.parquet", data), data)
    after = read_predictions(tmp_path / "out" / "test.parquet", test_data)
    assert measure(after, test_data) > measure(random_class_predictions(test_data, seed=1), test_data)
    assert cli.main([*words[:-1], str(tmp_path / "two"), "--test", str(test_data.source)]) == 2
    assert "belong together" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


def test_the_command_says_whether_scores_change(data):
    fitted = rescore.fit_rescorer(random_class_predictions(data), data, encoder=blind_encoder())
    assert "is not likely" in rescore_command.summary(fitted)
    accepted = replace(fitted, facts=replace(fitted.facts, accepted=True, alpha=0.2))
    assert "alpha 0.2" in rescore_command.summary(accepted)
