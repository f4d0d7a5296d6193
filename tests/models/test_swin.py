"""Swin: any size, windows that do not leak, features of every stage."""

import pytest
import torch

from foldfuse.errors import InputError
from foldfuse.models.backbones.swin import (
    SIZES,
    WINDOW,
    Swin,
    attend,
    shift_mask,
    swin,
    window_partition,
    window_reverse,
)


def small():
    torch.manual_seed(0)
    return Swin(3, channels=8, depths=(2, 2, 2), heads=(1, 2, 4), drop_path=0.1).eval()


@pytest.mark.parametrize("size", [(64, 96), (68, 36), (4, 4), (112, 224)])
def test_any_multiple_of_four_works(size):
    model = small()
    images = torch.rand(2, 3, *size)
    assert model(images).shape == (2, 3)
    sides = [tuple(-(-s // stride) for s in size) for stride in (4, 8, 16)]
    assert [tuple(f.shape) for f in model.features(images)] == [(2, 8 * 2**i, *s) for i, s in enumerate(sides)]


def test_a_size_between_patches_is_refused():
    with pytest.raises(InputError, match=r"66 x 64 pixels.*multiples of 4"):
        small()(torch.rand(1, 3, 66, 64))


def test_window_reverse_undoes_window_partition():
    x = torch.arange(2 * 14 * 21 * 3.0).view(2, 14, 21, 3)
    windows = window_partition(x)
    assert windows.shape == (2, 6, 49, 3)
    assert torch.equal(windows[1, 1], x[1, :7, 7:14].reshape(49, 3))
    assert torch.equal(window_reverse(windows, 14, 21), x)


@pytest.mark.parametrize("size", [(14, 14), (14, 21), (10, 16), (14, 7)])
def test_the_mask_separates_tokens_that_only_the_shift_made_neighbours(size):
    """Tokens may attend to each other if they lie within a window's side in the image, wrapped or not."""
    height, width = (s + -s % WINDOW for s in size)
    shifts = (3 * (size[0] > WINDOW), 3 * (size[1] > WINDOW))
    at = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).float()
    rolled = window_partition(torch.roll(at, (-shifts[0], -shifts[1]), (0, 1))[None])[
        0
    ]  # (R, 49, 2): whence a token came
    near = ((rolled[:, :, None] - rolled[:, None]).abs() < WINDOW).all(-1)
    mask = shift_mask(*size, shifts, torch.device("cpu"))
    assert torch.equal(mask == 0, near)


def test_without_shift_there_is_no_mask():
    assert shift_mask(7, 7, (0, 0), torch.device("cpu")) is None


def test_shifted_windows_reach_across_borders():
    """A token's change is seen within its window by one block, and across the border by the next, shifted one."""
    model = small()
    images = torch.rand(1, 3, 112, 112)
    changed = images.clone()
    changed[..., 24:28, 24:28] += 0.5  # the last token of the first 7 x 7 window
    with torch.no_grad():
        stage = model.layers[0]
        a, b = (model.patch_embed((x - model.mean) / model.std) for x in (images, changed))
        one = (stage.blocks[0](a, (0, 0), None) - stage.blocks[0](b, (0, 0), None)).abs().amax(-1)[0] > 1e-7
        two = (stage(a) - stage(b)).abs().amax(-1)[0] > 1e-7
    assert one[:7, :7].all()
    assert not one[7:].any()
    assert not one[:, 7:].any()
    assert two[:10, :10].all()


def test_attention_is_the_same_whether_its_bias_learns_or_not():
    torch.manual_seed(0)
    q, k, v, bias = (
        torch.randn(2, 3, 49, 8),
        torch.randn(2, 3, 49, 8),
        torch.randn(2, 3, 49, 8),
        torch.randn(1, 3, 49, 49),
    )
    learning = bias.clone().requires_grad_()
    torch.testing.assert_close(attend(q, k, v, learning), attend(q, k, v, bias))
    assert torch.autograd.gradcheck(
        lambda b: attend(q[:1, :1, :4].double(), k[:1, :1, :4].double(), v[:1, :1, :4].double(), b),
        bias[:, :1, :4, :4].double().requires_grad_(),
    )


@pytest.mark.parametrize(("name", "millions"), [("swin_tiny", 28.3), ("swin_small", 49.6), ("swin_base", 87.8)])
def test_parameter_counts_are_the_papers(name, millions):
    channels, depths, heads = SIZES[name]
    with torch.device("meta"):
        model = Swin(1000, channels=channels, depths=depths, heads=heads)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_drop_path_grows_linearly_over_all_stages():
    rates = [block.drop_path.rate for stage in swin("swin_tiny", 2, drop_path=0.22).layers for block in stage.blocks]
    assert rates == pytest.approx([0.02 * i for i in range(12)])
