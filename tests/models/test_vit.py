"""ViT: any size, every kind of position embedding, attention maps, weights from elsewhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from foldfuse.errors import InputError
from foldfuse.models.backbones.transformer_layers import DropPath, drop_path_rates
from foldfuse.models.backbones.vit import SIZES, ViT, sincos, vit
from foldfuse.models.pretrained.vit_swin import load_matching, read_vit_npz
from vit_samples import jax_checkpoint

KINDS = ("none", "learned_1d", "learned_2d", "sincos")


def small(positions="learned_1d", *, num_classes=3, image_size=(32, 48)):
    torch.manual_seed(0)
    model = ViT(num_classes, width=16, depth=2, heads=2, patch=8, image_size=image_size, positions=positions).eval()
    nn.init.normal_(model.head.weight)
    return model


@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("size", [(32, 48), (48, 32), (8, 64), (40, 40)])
def test_any_multiple_of_the_patch_works(positions, size):
    model = small(positions)
    images = torch.rand(2, 3, *size)
    assert model(images).shape == (2, 3)
    (features,) = model.features(images)
    assert features.shape == (2, 16, size[0] // 8, size[1] // 8)


@pytest.mark.parametrize("positions", KINDS)
def test_positions_matter_only_if_they_are_embedded(positions):
    model = small(positions)
    images = torch.rand(1, 3, 32, 48)
    swapped = torch.cat([images[..., 8:16], images[..., :8], images[..., 16:]], -1)  # two columns of patches
    same = torch.allclose(model(images), model(swapped), atol=1e-5)
    assert same == (positions == "none")


def test_features_lie_where_their_patches_lie():
    model = small("none")
    for block in model.blocks:  # without attention, a patch sees itself alone
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.attn.proj.bias)
    images = torch.zeros(1, 3, 32, 48)
    images[..., 8:16, 24:32] = 1
    (features,) = model.features(images)
    changed = (features - features[..., :1, :1]).abs().amax(1)[0] > 1e-4
    assert changed.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize("positions", ["learned_1d", "learned_2d"])
def test_resampled_positions_keep_their_shape(positions):
    """A grid that rises along x alone does so at another size too."""
    model = small(positions)
    with torch.no_grad():
        if positions == "learned_1d":
            ramp = torch.arange(6.0).expand(4, 6).reshape(1, 24, 1)
            model.pos_embed[:] = torch.cat([torch.zeros(1, 1, 1), ramp], 1).expand(-1, -1, 16)
        else:
            model.pos_embed_rows.zero_()
            model.pos_embed_columns[:] = torch.arange(6.0)
    grid = model.position_embedding((8, 12))[0, 1:].view(8, 12, 16)[..., -1]
    assert torch.allclose(grid, grid[:1].expand(8, -1), atol=1e-5)
    assert (grid[0].diff() > 0).all()


def test_sincos_gives_each_position_a_vector_of_its_own():
    vectors = sincos((7, 9), 16)[0]
    apart = torch.cdist(vectors, vectors) + torch.eye(63) * 9
    assert apart.min() > 0.1


def test_attention_maps_are_the_weights_that_the_blocks_use():
    model = small()
    images = torch.rand(2, 3, 16, 24)
    maps = model.attention_maps(images)
    assert maps.shape == (2, 2, 2, 7, 7)
    assert torch.allclose(maps.sum(-1), torch.ones(2, 2, 2, 7), atol=1e-5)
    attention = model.blocks[0].attn
    x = model.blocks[0].norm1(model.tokens(images))
    mixed = (maps[:, 0] @ attention.split(x)[2]).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(attention.proj(mixed), attention(x), atol=1e-5)


def test_a_size_between_patches_is_refused():
    with pytest.raises(InputError, match=r"30 x 48 pixels.*multiples of 8"):
        small()(torch.rand(1, 3, 30, 48))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("vit_tiny", 5.7), ("vit_small", 22.1), ("vit_base", 86.6), ("vit_large", 304.3), ("vit_huge", 632.4)],
)
def test_parameter_counts_are_the_papers(name, millions):
    with torch.device("meta"):
        model = ViT(1000, **dict(zip(("width", "depth", "heads", "patch"), SIZES[name], strict=True)))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.35)


def test_drop_path_keeps_the_expectation_and_drops_whole_samples():
    torch.manual_seed(0)
    drop = DropPath(0.3)
    dropped = drop(torch.zeros(20000, 2, 3), torch.ones_like)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert set(dropped.flatten(1).std(1).tolist()) == {0.0}
    assert (dropped[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(drop.eval()(torch.ones(4, 2), torch.ones_like), torch.full((4, 2), 2.0))


def test_drop_path_skips_the_samples_that_a_mask_would_drop(monkeypatch):
    torch.manual_seed(0)
    drop, branch, x = DropPath(0.5), nn.Linear(3, 3), torch.rand(8, 2, 3, requires_grad=True)
    sizes = []
    branch.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    torch.manual_seed(1)
    got = drop(x, branch)
    got_grads = torch.autograd.grad(got.square().sum(), [x, *branch.parameters()])
    torch.manual_seed(1)
    kept = torch.empty(8).bernoulli_(0.5)
    want = x + branch(x) * 2 * kept[:, None, None]
    want_grads = torch.autograd.grad(want.square().sum(), [x, *branch.parameters()])
    assert 0 < kept.sum() < 8
    assert sizes == [kept.sum(), 8]
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_grads, want_grads)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.manual_seed(1)
    torch.testing.assert_close(drop(x, branch), want)
    assert sizes == [kept.sum(), 8, 8]  # compiled, the branch runs on all samples and a mask follows


def test_a_branch_that_is_dropped_for_all_samples_has_zero_gradients():
    torch.manual_seed(0)
    branch, x = nn.Linear(3, 3), torch.rand(2, 3)
    out = DropPath(1 - 1e-6)(x, branch)
    assert torch.equal(out, x)
    out.sum().backward()
    assert branch.weight.grad.equal(torch.zeros(3, 3))


def test_drop_path_grows_linearly_with_depth():
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]
    model = vit("vit_tiny", 2, drop_path=0.11)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.01 * i for i in range(12)])


def test_the_papers_npz_is_read(tmp_path: Path):
    model = small()
    np.savez(tmp_path / "vit.npz", **jax_checkpoint(model))
    state = read_vit_npz(tmp_path / "vit.npz")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(t, model.state_dict()[key]) for key, t in state.items())


def test_a_head_of_other_classes_keeps_its_initial_weights_and_says_so(tmp_path: Path):
    np.savez(tmp_path / "vit.npz", **jax_checkpoint(small()))
    other = small(num_classes=5)
    before = other.head.weight.clone()
    (note,) = load_matching(other, read_vit_npz(tmp_path / "vit.npz"), source="vit.npz")
    assert note == "vit.npz: was trained for 3 classes, not 5: the head starts from random values."
    assert torch.equal(other.head.weight, before)
    with pytest.raises(InputError, match="another network: pos_embed is"):
        load_matching(small(image_size=(32, 32)), read_vit_npz(tmp_path / "vit.npz"), source="vit.npz")
    with pytest.raises(InputError, match=r"another network: it has blocks\.9\.norm1\.weight, and the model has not"):
        load_matching(small(), small().state_dict() | {"blocks.9.norm1.weight": torch.zeros(1)}, source="timm")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not a zip"])
def test_a_broken_npz_is_an_error(tmp_path: Path, content: bytes):
    (tmp_path / "vit.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"vit\.npz: is not an \.npz"):
        read_vit_npz(tmp_path / "vit.npz")


def test_an_npz_of_something_else_is_an_error(tmp_path: Path):
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(InputError, match="has no array 'cls'"):
        read_vit_npz(tmp_path / "other.npz")
    np.savez(tmp_path / "code.npz", cls=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="is not an"):
        read_vit_npz(tmp_path / "code.npz")
    with pytest.raises(InputError, match="no such file"):
        read_vit_npz(tmp_path / "nowhere.npz")
