"""The YOLOv5-style detector: counts, boxes, matches and losses; the contract is tested with all detectors."""

import numpy as np
import pytest
import torch

from foldfuse.detections import Annotations
from foldfuse.errors import InputError
from foldfuse.models import make_detector
from foldfuse.models.detection.dense_prediction import gather_targets
from foldfuse.models.detection.pan import PAN
from foldfuse.models.detection.yolov5 import build_yolov5


def small(num_classes=3):
    torch.manual_seed(0)
    return build_yolov5(num_classes, depth=0.33, width=0.125)


def annotated(boxes, labels=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.array(labels, np.int64)
    sides = boxes[:, 2:] - boxes[:, :2]
    return Annotations(boxes, labels, np.zeros(len(boxes), bool), sides.prod(1))


def matches(model, raw, targets):
    return model.head._match(raw, gather_targets(targets, torch.device("cpu")))


@pytest.mark.parametrize(
    ("name", "millions"), [("yolov5n", 1.87), ("yolov5s", 7.2), ("yolov5m", 21.2), ("yolov5l", 46.5), ("yolov5x", 86.7)]
)
def test_parameter_counts_are_the_published_ones(name, millions):
    model = make_detector(name, 80, pretrained=False)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_levels_have_the_strides():
    model = small().eval()
    raw = model(torch.rand(2, 3, 64, 96))
    assert raw.sizes == ((8, 12), (4, 6), (2, 3))
    assert raw.logits.shape == (2, 3 * (96 + 24 + 6), 8)
    assert [tuple(x.shape[-2:]) for x in model.neck(model.backbone(torch.rand(1, 3, 64, 96)))] == list(raw.sizes)


def test_pan_takes_any_number_of_levels():
    neck = PAN([8, 16, 24, 32], repeats=1)
    levels = [torch.rand(1, c, 32 // 2**i, 16 // 2**i) for i, c in enumerate((8, 16, 24, 32))]
    assert [x.shape for x in neck(levels)] == [x.shape for x in levels]


def test_logits_of_zero_are_the_anchor_in_the_middle_of_its_cell():
    model = small()
    with torch.no_grad():
        raw = model.eval()(torch.rand(1, 3, 64, 96))
    row = torch.tensor([(2 * 12 + 5) * 3 + 1])  # level 0, row 2, column 5, the second anchor
    (box,) = model.head._priors(raw).decode(torch.zeros(1, 8), row)
    centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    assert centre.tolist() == pytest.approx([(5 + 0.5) * 8, (2 + 0.5) * 8])
    assert size.tolist() == pytest.approx(model.head.anchors[0, 1].tolist())


def test_an_object_is_matched_in_its_cell_and_the_two_nearest():
    model = small().eval()
    model.head.anchors.copy_(torch.full((3, 3, 2), 1000.0))  # no object has such sides
    model.head.anchors[0, 2] = torch.tensor([16.0, 16.0])
    with torch.no_grad():
        raw = model(torch.rand(1, 3, 64, 96))
    # centre (43, 21): cell (5, 2), left of its middle and below it
    n, anchor = matches(model, raw, [annotated([[35, 13, 51, 29]], [2])])
    cells = {(a // 3 % 12, a // 3 // 12) for a in anchor.tolist()}
    assert cells == {(5, 2), (4, 2), (5, 3)}
    assert set((anchor % 3).tolist()) == {2}
    assert n.tolist() == [0, 0, 0]


def test_an_object_over_four_times_an_anchor_is_no_match():
    model = small().eval()
    model.head.anchors.copy_(torch.full((3, 3, 2), 10.0))
    with torch.no_grad():
        raw = model(torch.rand(1, 3, 64, 96))
    assert len(matches(model, raw, [annotated([[0, 0, 39, 39]])])[0])
    assert not len(matches(model, raw, [annotated([[0, 0, 41, 20]])])[0])
    assert not len(matches(model, raw, [annotated([])])[0])


def test_right_outputs_cost_less_than_wrong_ones():
    model = small().eval()
    target = [annotated([[16, 16, 48, 56]], [1])]
    with torch.no_grad():
        raw = model(torch.rand(1, 3, 64, 96))
        _, anchor = matches(model, raw, target)
        wrong = model.loss(raw, target)
        logits = torch.full_like(raw.logits, -6.0)
        cells, sides, strides = model.head._priors(raw)
        centre = (torch.tensor([32.0, 36.0]) / strides[anchor] + 0.5 - cells[anchor]) / 2
        size = (torch.tensor([32.0, 40.0]) / sides[anchor]).sqrt() / 2
        logits[0, anchor, :4] = torch.logit(torch.cat([centre, size], 1).clamp(1e-4, 1 - 1e-4))
        logits[0, anchor, 4] = 6.0
        logits[0, anchor, 6] = 6.0
        right = model.loss(raw._replace(logits=logits), target)
        (found,) = model.decode(raw._replace(logits=logits))
    assert all(right[term] < 0.1 * wrong[term] for term in ("box", "class", "object"))
    assert right["box"] < 1e-4
    np.testing.assert_allclose(found.boxes[0], [16, 16, 48, 56], atol=0.1)
    assert found.labels[0] == 1


def test_an_untrained_head_gives_the_prior():
    for num_classes in (1, 2, 10):
        model = small(num_classes)
        for conv in model.head.predict:
            score = conv.bias.view(3, -1).sigmoid()
            torch.testing.assert_close(score[:, 4], torch.full((3,), 0.01))
            assert score[:, 5:].flatten().tolist() == pytest.approx([1 / max(num_classes, 2)] * 3 * num_classes)


def test_of_a_single_class_the_objectness_is_the_score():
    model = small(1).eval()
    with torch.no_grad():
        raw = model(torch.rand(1, 3, 64, 64))
        raw.logits[..., 5] = -20.0  # which no loss term trains
        (found,) = model.decode(raw)
        terms = model.loss(raw, [annotated([[16, 16, 48, 56]])])
    assert found.scores.max() == pytest.approx(raw.logits[..., 4].sigmoid().max().item())
    assert terms["class"] == 0


def test_the_loss_of_a_batch_does_not_grow_with_it():
    model = small().eval()
    image, target = torch.rand(1, 3, 64, 96), annotated([[16, 16, 48, 56]], [1])
    with torch.no_grad():
        one = model.loss(model(image), [target])
        three = model.loss(model(image.expand(3, -1, -1, -1)), [target] * 3)
    for term in one:
        torch.testing.assert_close(three[term], one[term], rtol=1e-4, atol=1e-6)


def test_images_without_objects_have_finite_gradients():
    model = small()
    terms = model.loss(model(torch.rand(2, 3, 64, 64)), [annotated([]), annotated([])])
    sum(terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.head.predict[0].bias.grad.abs().sum() > 0


def test_anchors_are_the_clusters_of_the_objects():
    model = small()
    kinds = torch.tensor([[4.0 * 1.6**i, 4.0 * 1.6**i * (1 + i % 2)] for i in range(9)])
    model.fit_anchors(kinds.repeat(5, 1))
    torch.testing.assert_close(model.head.anchors.view(-1, 2), kinds[kinds.prod(1).argsort()])
    before = model.head.anchors.clone()
    model.fit_anchors(torch.ones(100, 2) * 20)
    assert torch.equal(model.head.anchors, before)
    assert "head.anchors" in model.state_dict()


def test_frozen_stages_do_not_learn():
    model = small()
    model.freeze(2)
    assert not model.backbone.stages[1][0][1].training
    assert {p.requires_grad for p in model.backbone.stages[1].parameters()} == {False}
    assert {p.requires_grad for p in model.backbone.stages[2].parameters()} == {True}
    model.freeze(0)
    assert all(p.requires_grad for p in model.parameters())


def test_there_are_no_imagenet_weights():
    with pytest.raises(InputError, match="yolov5n has no ImageNet weights"):
        make_detector("yolov5n", 2)
