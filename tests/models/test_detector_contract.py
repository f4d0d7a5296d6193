"""What every detector must do. A new entry in DETECTORS is tested by all of this, with no new test."""

import functools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from foldfuse.detections import Annotations
from foldfuse.errors import InputError
from foldfuse.models import DETECTORS, make_detector

SMALL = 4e6  # parameters: beyond, a detector is looked at on shapes alone, which takes neither memory nor time
WEIGHTS_AT_HAND = ("efficientdet_lite0", "lite0_fpn", "lite1_fpn")  # ImageNet weights that need no network


def num_parameters(name):
    with torch.device("meta"):
        return sum(p.numel() for p in DETECTORS[name](3, pretrained=False).parameters())


PARAMETERS = {name: num_parameters(name) for name in DETECTORS}
every_detector = pytest.mark.parametrize("name", [name for name, n in PARAMETERS.items() if n <= SMALL])
LEARN_FAST = ("lite0_fpn", "yolov5n")  # the others learn in the slow tests
every_large_one = pytest.mark.parametrize("name", [name for name, n in PARAMETERS.items() if n > SMALL])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@functools.cache
def untrained(name):
    """One model for all tests that change nothing in it."""
    torch.manual_seed(0)
    return make_detector(name, 3, pretrained=False).eval()


def annotated(boxes, labels):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return Annotations(boxes, np.array(labels, np.int64), np.zeros(len(boxes), bool), np.ones(len(boxes)))


def norms_of(module):
    return [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]


def flat(raw):
    """The tensors in what `forward` gives."""
    return [part for part in raw if isinstance(part, torch.Tensor)]


@every_detector
@torch.no_grad()
def test_decode_gives_ordered_boxes_inside_the_input_with_scores_and_labels(name):
    model = untrained(name)
    found = model.decode(model(torch.rand(2, 3, 128, 96)))
    assert len(found) == 2
    for one in found:
        assert len(one) > 0
        assert (one.boxes.dtype, one.scores.dtype, one.labels.dtype) == (np.float32, np.float32, np.int64)
        assert ((one.scores >= 0) & (one.scores <= 1)).all()
        assert ((one.labels >= 0) & (one.labels < 3)).all()
        assert (one.boxes[:, 2:] >= one.boxes[:, :2]).all()
        assert (one.boxes >= 0).all()
        assert (one.boxes <= [96, 128, 96, 128]).all()


@every_detector
@torch.no_grad()
def test_an_image_does_not_see_its_neighbours_in_the_batch(name):
    model, images = untrained(name), torch.rand(2, 3, 128, 128)
    for both, alone in zip(flat(model(images)), flat(model(images[1:])), strict=True):
        torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    other = images.clone()
    other[0] = 0
    for before, after in zip(flat(model(images)), flat(model(other)), strict=True):
        assert not torch.equal(before[0], after[0]), "the outputs do not depend on the image at all"
        torch.testing.assert_close(before[1], after[1], rtol=1e-4, atol=1e-5)


@every_detector
@torch.no_grad()
def test_eval_is_deterministic(name):
    model, images = untrained(name), torch.rand(2, 3, 96, 96)
    for first, second in zip(flat(model(images)), flat(model(images)), strict=True):
        assert torch.equal(first, second)


@every_detector
@pytest.mark.parametrize("frozen", [0, 3])
def test_images_without_objects_give_a_finite_gradient(name, frozen):
    model = make_detector(name, 3, pretrained=False)
    model.freeze(frozen)
    terms = model.loss(model(torch.rand(2, 3, 128, 128)), [annotated([], [])] * 2)
    loss = sum(terms.values())
    loss.backward()
    assert loss.isfinite()
    assert all(term.ndim == 0 for term in terms.values())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


@every_detector
def test_one_image_with_objects_beside_one_without_gives_finite_gradients(name):
    model = make_detector(name, 3, pretrained=False)
    model.freeze(0)
    terms = model.loss(model(torch.rand(2, 3, 128, 128)), [annotated([], []), annotated([[10, 20, 90, 60]], [2])])
    sum(terms.values()).backward()
    missing = [key for key, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in LEARN_FAST else [pytest.mark.slow])
        for name, n in PARAMETERS.items()
        if n <= SMALL
    ],
)
def test_it_overfits_one_image(name):
    # Wider than high, with an object further right than the image is high: x and y cannot be confused.
    want = annotated([[120, 30, 180, 60], [10, 40, 50, 120]], [1, 2])
    images = torch.rand(1, 3, 128, 192).repeat(2, 1, 1, 1)
    for box, colour in zip(want.boxes.astype(int), (0.0, 1.0)):
        images[:, :, box[1] : box[3], box[0] : box[2]] = colour
    model = make_detector(name, 3, pretrained=name in WEIGHTS_AT_HAND)
    model.freeze(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        loss = sum(model.loss(model(images), [want, want]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for norm in model.modules():  # statistics of this one image, not of earlier steps
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
    with torch.no_grad():
        model(images)
        found = model.eval().decode(model(images))[0]
    best = found[np.argsort(-found.scores)[:2]]
    best = best[np.argsort(best.labels)]
    assert best.labels.tolist() == [1, 2]
    assert best.scores.min() > 0.5
    np.testing.assert_allclose(best.boxes, want.boxes, atol=5)  # pixels


@every_detector
@torch.no_grad()
def test_saving_and_loading_gives_equal_outputs(name, tmp_path):
    model = untrained(name)
    save_file({key: t.contiguous() for key, t in model.state_dict().items()}, tmp_path / "w.safetensors")
    torch.manual_seed(1)
    loaded = make_detector(name, 3, pretrained=False).eval()
    images = torch.rand(1, 3, 96, 128)
    assert not torch.equal(flat(model(images))[0], flat(loaded(images))[0])
    loaded.load_state_dict(load_file(tmp_path / "w.safetensors"))
    for before, after in zip(flat(model(images)), flat(loaded(images)), strict=True):
        assert torch.equal(before, after)


@every_detector
@pytest.mark.parametrize("times", [(1, 1), (1, 5), (5, 1), (3, 4), (7, 3)])
@torch.no_grad()
def test_any_multiple_of_the_stride_works(name, times):
    model = untrained(name)
    height, width = (t * model.stride for t in times)
    found = model.decode(model(torch.rand(1, 3, height, width)))[0]
    assert len(found) > 0
    assert (found.boxes <= [width, height, width, height]).all()


@every_detector
def test_a_size_that_is_no_multiple_of_the_stride_is_named(name):
    model = untrained(name)
    height, width = 3 * model.stride, 2 * model.stride + 1
    with pytest.raises(InputError, match=f"{height} x {width}.*multiples of {model.stride}"):
        model(torch.zeros(1, 3, height, width))


@every_detector
def test_frozen_stages_are_not_trained_and_change_nothing(name):
    model = make_detector(name, 3, pretrained=False)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    images = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        want = flat(model.eval()(images))
    model.freeze(2)
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    sum(model.loss(model(images), [annotated([[10, 20, 90, 60]], [0])] * 2).values()).backward()
    optimizer.step()
    grads = {key: p.grad for key, p in model.named_parameters()}
    assert all(grads[key] is None for key in frozen)
    assert all(grads[key] is not None for key in grads.keys() - frozen)
    after = model.state_dict()
    assert after.keys() == before.keys()
    folders = {key.rpartition(".")[0] for key in frozen}
    still = [key for key in before if key.rpartition(".")[0] in folders]
    assert any("running_mean" in key for key in still) or not norms_of(model.backbone)
    assert all(torch.equal(before[key], after[key]) for key in still)
    # With the rest's statistics as they were, the frozen model in eval mode is the model that it was.
    model.load_state_dict(before)
    with torch.no_grad():
        for got, expected in zip(flat(model.eval()(images)), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@every_large_one
@torch.no_grad()
def test_a_large_one_gives_outputs_of_the_batch_for_any_multiple_of_its_stride(name):
    with torch.device("meta"):
        model = DETECTORS[name](3, pretrained=False).eval()
        for height, width in ((3 * model.stride, 4 * model.stride), (model.stride, 5 * model.stride)):
            raw = model(torch.empty(2, 3, height, width))
            assert all(part.shape[0] == 2 and part.ndim == 3 for part in flat(raw))
        with pytest.raises(InputError, match=f"multiples of {model.stride}"):
            model(torch.empty(1, 3, model.stride, model.stride + 1))


def test_an_unknown_detector_is_named_with_its_neighbour():
    with pytest.raises(InputError, match="Did you mean 'efficientdet_lite0'"):
        make_detector("efficientdet-lite0", 3)
