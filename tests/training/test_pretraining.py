"""Pre-training on many datasets: shared classes, masks, sampling, augmentation on the device, and the start from it."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from foldfuse import cli
from foldfuse.data.dataset import Dataset
from foldfuse.data.readers.coco import read
from foldfuse.detections import Annotations
from foldfuse.errors import InputError
from foldfuse.models import make_detector
from foldfuse.models.pretrained.detection import (
    CLASS_BRANCH,
    OBJECT_CLASS,
    has_detection_weights,
    keep_object_class,
    pretraining_images,
    save_detection_weights,
    shipped_weights,
    start_from_pretrained,
)
from foldfuse.recipes import load_recipe
from foldfuse.storage.run import Run
from foldfuse.training.budget import Budget
from foldfuse.training.detector import train_detector
from foldfuse.training.device_batches import DeviceBatches, DeviceImages, SourceTarget, jitter_colors
from foldfuse.training.init_weights import load_init_weights
from foldfuse.training.pretraining import (
    OBJECT_WEIGHT,
    PretrainingDetector,
    join_sources,
    normalized,
    pretrain,
    pretraining_recipe,
    sampling_probability,
)
from foldfuse.training.session import TrainingSession, run_metadata
from learning_samples import COLORS, write_dataset

CLASS_ROWS = ("head.class_head.weight", "head.class_head.bias")
RECIPE = replace(
    load_recipe("lite0_fpn"), image_size=64, batch_size=4, mosaic=0.5, init_weights="none", frozen_stages=0
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    large, small = (read(write_dataset(folder / str(n), n, seed=n)) for n in (12, 3))
    renamed = replace(small, classes=("RED", "green"))
    return join_sources({"large": large, "small": renamed})


def batches_of(sources, recipe=RECIPE, longest=96):
    images = DeviceImages.load(sources.dataset.samples, longest=longest, device="cpu")
    return DeviceBatches(
        sources.dataset.samples, images, sources.source, sampling_probability(sources), recipe, (64, 64), 0
    )


def test_sources_agree_by_normalized_names(sources):
    assert sources.dataset.classes == ("blue", "green", "red", OBJECT_CLASS)
    small = pytest.approx(OBJECT_WEIGHT)
    assert sources.class_weights.tolist() == [[1, 0, 1, small], [0, 1, 1, small]]
    assert sources.source.tolist() == [0] * 12 + [1] * 3
    assert normalized("Traffic_Light ") == normalized("traffic-light") == "traffic light"
    assert normalized("Object") != OBJECT_CLASS
    assert len(set(sources.dataset.image_ids)) == 15


def test_a_source_of_many_rare_classes_becomes_one_class(tmp_path):
    dataset = read(write_dataset(tmp_path / "d", 4))
    joined = join_sources({"signs": dataset}, one_class={"signs": "road sign"})
    assert joined.dataset.classes == ("road sign", OBJECT_CLASS)
    assert {int(v) for s in joined.dataset.samples for v in s.annotations.labels} == {0}


def test_no_datasets_and_images_without_annotations_are_refused(tmp_path):
    with pytest.raises(InputError, match="no dataset"):
        join_sources({})
    with pytest.raises(InputError, match="has no annotations"):
        join_sources({"d": read(write_dataset(tmp_path / "d", 2)).without_annotations()})


def test_sampling_is_balanced_over_sources_and_sizes(sources):
    p = sampling_probability(sources)
    assert p.sum() == pytest.approx(1)
    assert p[:12].sum() / p[12:].sum() == pytest.approx((12 / 3) ** 0.5)

    def sample(i, side):
        box = np.array([[0.0, 0.0, side, side]])
        annotations = Annotations(box, np.zeros(1, np.int64), np.zeros(1, bool), np.array([side**2]))
        return replace(sources.dataset.samples[0], id=i, width=100, height=100, annotations=annotations)

    rare = Dataset(tuple(sample(i, 3.0 if i == 0 else 90.0) for i in range(10)), ("a",), (1,), sources.dataset.source)
    p = sampling_probability(join_sources({"d": rare}))
    assert p[0] / p[1] == pytest.approx(9**0.5)


def test_the_background_teaches_the_classes_of_the_source_alone(sources):
    torch.manual_seed(0)
    detector = make_detector("lite0_fpn", 4, pretrained=False)
    model = PretrainingDetector(detector, sources.class_weights)
    model.freeze(0)
    images = torch.rand(2, 3, 64, 64)
    box = np.array([[10.0, 10.0, 40.0, 40.0]])
    one = Annotations(box, np.array([2]), np.zeros(1, bool), np.array([900.0]))
    raw = model(images)
    raw.logits.retain_grad()
    sum(model.loss(raw, [SourceTarget(one, 0), SourceTarget(Annotations.empty(), 1)]).values()).backward()
    positive = raw.logits.grad[0] < 0  # the score is to rise
    touched = raw.logits.grad != 0  # (B, A, K)
    assert touched[0][:, [0, 2, 3]].all()
    assert touched[1].all(0).tolist() == [False, True, True, True]
    assert not touched[1, :, 0].any(), "image 1 has no box, and its source does not know the class blue"
    foreign = touched[0, :, 1]  # green is a class of the other source
    assert 0 < foreign.sum() <= 27
    assert foreign[positive.any(1)].all(), "an object of one class is none of another source's"
    assert (raw.logits.grad[0, foreign, 1] > 0).all()
    assert positive[:, 2].any()
    assert torch.equal(positive[:, 2], positive[:, 3]), "an object is an example of its class and of any object"
    assert not positive[:, :2].any()


def test_without_a_mask_the_loss_is_as_before():
    torch.manual_seed(0)
    head = make_detector("lite0_fpn", 3, pretrained=False).eval()
    raw = head(torch.rand(1, 3, 64, 64))
    box = np.array([[10.0, 10.0, 40.0, 40.0]])
    one = [Annotations(box, np.array([1]), np.zeros(1, bool), np.array([900.0]))]
    plain, all_known = head.loss(raw, one), head.head.loss(raw, one, class_weights=torch.ones(1, 3))
    assert plain["class"] == all_known["class"]
    assert plain["box"] == all_known["box"]


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_boxes_move_with_their_pixels(sources, mosaic):
    recipe = replace(RECIPE, mosaic=mosaic, color_jitter=0.0, scale_jitter=0.6, vflip=0.5, batch_size=16)
    batches = batches_of(sources, recipe)
    seen = 0
    for step in range(3):
        images, targets = batches.batch(step)
        assert images.shape == (16, 3, 64, 64)
        assert images.dtype == torch.uint8
        for image, (annotations, source) in zip(images, targets, strict=True):
            assert (annotations.boxes >= 0).all()
            assert (annotations.boxes <= 64).all()
            for box, label in zip(annotations.boxes, annotations.labels, strict=True):
                x1, y1, x2, y2 = box
                x, y = int((x1 + x2) / 2), int((y1 + y2) / 2)
                color = COLORS[{(0, 0): 1, (0, 2): 0, (1, 2): 0, (1, 1): 1}[source, int(label)]]
                away = (image[:, y, x].numpy().astype(int) - np.array(color)).__abs__().max()
                seen += away < 40
                seen -= 10 * (away >= 40 and min(x2 - x1, y2 - y1) > 6 and not _overlaps(annotations, box))
    assert seen > 20


def _overlaps(annotations, box):
    """Whether another square may lie over this one."""
    sides = np.minimum(annotations.boxes[:, 2:], box[2:]) - np.maximum(annotations.boxes[:, :2], box[:2])
    return (sides.min(1) > 0).sum() > 1


def test_the_edges_of_a_box_lie_where_its_pixels_change(tmp_path):
    dataset = read(write_dataset(tmp_path / "d", 8, seed=5))
    recipe = replace(RECIPE, mosaic=0.0, color_jitter=0.0, batch_size=48)
    images, targets = batches_of(join_sources({"d": dataset}), recipe).batch(0)
    differences = []
    for image, (annotations, _) in zip(images.numpy().astype(int), targets, strict=True):
        spread = image.max(0) - image.min(0) > 90  # the noise around is gray in its mean, the squares are not
        for x1, y1, x2, y2 in annotations.boxes:
            if x1 > 4 and x2 < 60 and not _overlaps(annotations, (x1, y1, x2, y2)):
                row = spread[int((y1 + y2) / 2), int(x1) - 3 : int(x2) + 4]
                differences.append(abs(row.sum() - (x2 - x1)))
    assert len(differences) > 5
    assert np.median(differences) < 1.5


def test_an_untouched_image_comes_back_as_it_is(sources):
    recipe = replace(RECIPE, mosaic=0, color_jitter=0, scale_jitter=0, translate=0, hflip=0, batch_size=8)
    batches = batches_of(sources, recipe, longest=64)
    images, targets = batches.batch(0)
    for i, image, (annotations, _) in zip(batches.indices(0), images, targets, strict=True):
        _, height = batches.images.sizes[i].astype(int)
        own = batches.images.pixels[i, :, :height]
        boxes = batches.images.boxes[batches.images.offsets[i] : batches.images.offsets[i + 1]]
        top = 0 if len(boxes) == 0 else (annotations.boxes - boxes)[0, 1]
        assert np.allclose(annotations.boxes - boxes, [0, top, 0, top], atol=1e-6)
        shift = round(top)
        inner = slice(1, height - 1)  # the slack of a landscape is not a whole number of pixels
        away = (image[:, shift : shift + height].int() - own.int()).abs()[:, inner]
        assert away.float().mean() < 25


def test_a_batch_depends_on_seed_and_step_alone(sources):
    batches = batches_of(sources)
    (a, first), (b, second) = batches.batch(3), batches.batch(3)
    assert torch.equal(a, b)
    assert all(np.array_equal(x.annotations.boxes, y.annotations.boxes) for x, y in zip(first, second, strict=True))
    part, targets = batches.batch(3, range(1, 3))
    assert torch.equal(part, a[1:3])
    assert [t.source for t in targets] == [t.source for t in first[1:3]]
    assert not torch.equal(a, batches.batch(4)[0])


def test_colors_change_by_their_factors():
    images = torch.full((1, 3, 4, 4), 100.0)
    assert (jitter_colors(images, np.array([[1.5, 1.0, 1.0]])) == 150).all()
    assert (jitter_colors(images, np.array([[1.0, 0.5, 0.2]])) - 100).abs().max() <= 1


def test_a_pretraining_resumes_and_a_detector_starts_from_it(sources, tmp_path):
    recipe, export = replace(RECIPE, batch_size=2), tmp_path / "weights.safetensors"
    metadata = run_metadata(sources.dataset, data="many", seed=0)

    def trained(name, *parts):
        run, checkpoint = Run.create(tmp_path / name, recipe, metadata), None
        for steps in parts:
            pretrain(
                run, sources, TrainingSession(Budget(steps=steps), checkpoint=checkpoint), export=export, longest=64
            )
            checkpoint, _ = run.load_checkpoint()
        return run

    whole = trained("whole", 3)
    resumed = Run.create(tmp_path / "resumed", recipe, metadata)
    stopped = _Stop(2)
    with pytest.raises(KeyboardInterrupt):
        pretrain(
            resumed,
            sources,
            TrainingSession(Budget(steps=3), checkpoint_seconds=0, progress=stopped),
            export=export,
            longest=64,
        )
    checkpoint, _ = resumed.load_checkpoint()
    assert checkpoint is not None
    pretrain(resumed, sources, TrainingSession(Budget(steps=3), checkpoint=checkpoint), export=export, longest=64)
    ours, theirs = whole.load_weights(), resumed.load_weights()
    assert all(torch.equal(t, theirs[key]) for key, t in ours.items())

    assert has_detection_weights(export)
    assert pretraining_images(export).counts == {"large": 12, "small": 3}
    model = make_detector("lite0_fpn", 5, pretrained=False)
    load_init_weights(replace(recipe, init_weights=str(export)), model, tuple("abcde"))
    assert torch.allclose(model.state_dict()["neck.smooth.0.0.weight"], ours["neck.smooth.0.0.weight"], atol=1e-3)
    rows, bias = model.head.class_head.weight, model.head.class_head.bias
    assert (rows == rows[0]).all()
    assert torch.allclose(rows[0], ours["head.class_head.weight"][-1], atol=1e-3)
    assert torch.allclose(bias, ours["head.class_head.bias"][-1] - math.log(5), atol=1e-2)


def test_a_file_without_a_class_branch_leaves_the_new_one_as_it_is(tmp_path):
    torch.manual_seed(0)
    theirs, ours = (make_detector("lite0_fpn", k, pretrained=False) for k in (2, 3))
    path = tmp_path / "w.safetensors"
    weights = {key: t for key, t in theirs.state_dict().items() if not key.startswith(CLASS_BRANCH)}
    save_detection_weights(path, weights, detector="lite0_fpn", classes=("a", OBJECT_CLASS))
    before = {key: t.clone() for key, t in ours.state_dict().items()}
    assert "the class branch" in start_from_pretrained(path, ours)
    changed = {key for key, t in ours.state_dict().items() if not torch.equal(t, before[key])}
    assert not any(key.startswith(CLASS_BRANCH) for key in changed)
    assert {"head.box_head.weight", "neck.smooth.0.0.weight"} <= changed


class _Stop:
    """Progress that interrupts the training after some steps."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, share):
        self.steps -= 1
        if not self.steps:
            raise KeyboardInterrupt


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "w.safetensors"
    model = make_detector("lite0_fpn", 2, pretrained=False)
    save_detection_weights(path, model.state_dict(), detector="lite0_fpn", classes=("a", OBJECT_CLASS))
    with pytest.raises(InputError, match=r"weights of lite0_fpn: .*another network"):
        start_from_pretrained(path, make_detector("lite1_fpn", 2, pretrained=False))
    with pytest.raises(InputError, match=r"anchor-free head"):
        start_from_pretrained(path, make_detector("yolov5n", 2, pretrained=False))
    with pytest.raises(InputError, match=r"anchor-free head"):
        PretrainingDetector(make_detector("yolov5n", 2, pretrained=False), np.ones((1, 2), bool))
    with pytest.raises(InputError, match=r"no detection weights of nothing, only of: lite0_fpn, lite1_fpn"):
        shipped_weights("nothing")


def test_the_recipe_of_a_pretraining_keeps_the_detector():
    recipe = pretraining_recipe(load_recipe("lite0_fpn"))
    assert (recipe.detector, recipe.init_weights, recipe.frozen_stages) == ("lite0_fpn", "imagenet", 1)
    assert pretraining_recipe(RECIPE).frozen_stages == 0


@pytest.mark.parametrize("name", ["lite0_fpn", "lite1_fpn"])
def test_a_detector_starts_from_the_weights_of_the_package(name):
    torch.manual_seed(0)
    model = make_detector(name, 3, pretrained=False)
    sentence = load_init_weights(replace(RECIPE, detector=name, init_weights="detection"), model, ("a", "b", "c"))
    assert re.fullmatch(
        rf"{name}.safetensors of this package \(SHA-256 \w{{12}}\): all weights were loaded; every class .*", sentence
    )
    theirs, ours = load_file(shipped_weights(name)), model.state_dict()
    row, bias = theirs.pop("head.class_head.weight"), theirs.pop("head.class_head.bias")
    assert (len(row), len(bias)) == (1, 1)
    del theirs["pretraining_images"]
    assert all(torch.equal(ours[key], t.float()) for key, t in theirs.items())
    assert torch.equal(ours["head.class_head.weight"], row.float().expand(3, -1, -1, -1))
    assert torch.allclose(ours["head.class_head.bias"], bias.float() - math.log(3))
    missing = {key for key, t in ours.items() if t.is_floating_point()} - {*theirs, *CLASS_ROWS}
    assert not missing


def test_the_row_for_any_object_is_all_that_ships(tmp_path):
    torch.manual_seed(0)
    model = make_detector("lite0_fpn", 4, pretrained=False)
    whole, small = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    save_detection_weights(whole, model.state_dict(), detector="lite0_fpn", classes=("a", "b", "c", OBJECT_CLASS))
    keep_object_class(whole, small)
    started = []
    for path in (whole, small):
        torch.manual_seed(1)
        started.append(make_detector("lite0_fpn", 2, pretrained=False))
        start_from_pretrained(path, started[-1])
    first, second = (detector.state_dict() for detector in started)
    assert all(torch.equal(t, second[key]) for key, t in first.items())
    assert len(load_file(small)["head.class_head.bias"]) == 1


def test_a_training_from_boxes_says_and_remembers_what_it_began_from(tmp_path, caplog):
    dataset = read(write_dataset(tmp_path / "data", 4))
    recipe = load_recipe("lite0_fpn", ["init_weights=detection", "image_size=64", "batch_size=2"])
    run = Run.create(tmp_path / "run", recipe, run_metadata(dataset, data="few", seed=0))
    result = train_detector(run, dataset, TrainingSession(Budget(steps=2)))
    assert result.steps == 2
    assert run.recipe.init_weights == "detection"
    assert run.metadata.started_from.startswith("lite0_fpn.safetensors of this package")
    assert run.metadata.started_from in caplog.text
    stem, theirs = "backbone.parts.0.weight", load_file(shipped_weights("lite0_fpn"))
    assert torch.equal(run.load_weights()[stem], theirs[stem].float()), "a frozen stage stays as it was"


def test_nothing_is_written_where_the_package_has_no_such_weights(tmp_path, capsys):
    data = write_dataset(tmp_path / "data", 4)
    out = tmp_path / "run"
    for recipe in ("efficientdet_lite0", "classify_lite0"):
        argv = ["train", str(data), "--out", str(out), "--recipe", recipe, "--steps", "1"]
        assert cli.main([*argv, "--set", "init_weights=detection"]) == 2
        assert "only of: lite0_fpn, lite1_fpn" in " ".join(capsys.readouterr().err.split())
        assert not out.exists()


def test_damaged_weights_are_named(tmp_path):
    path, model = tmp_path / "w.safetensors", make_detector("lite0_fpn", 2, pretrained=False)
    weights = model.state_dict() | {"head.box_head.bias": torch.full((4,), math.nan)}
    save_detection_weights(path, weights, detector="lite0_fpn", classes=("a", OBJECT_CLASS))
    with pytest.raises(InputError, match=r"head\.box_head\.bias.*NaN"):
        start_from_pretrained(path, model)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="or is damaged"):
        load_init_weights(replace(RECIPE, init_weights=str(path)), model, ("a", "b"))
