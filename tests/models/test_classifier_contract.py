"""What every classifier of the registry keeps, tried on the small ones; the large are the same code."""

import pytest
import torch

from foldfuse.errors import InputError
from foldfuse.models import CLASSIFIERS

HEAD_WEIGHTS = {"vit_tiny": "head.weight", "swin_tiny": "head.fc.weight"}
SMALL = tuple(HEAD_WEIGHTS)


@pytest.fixture(scope="module", params=SMALL)
def model(request):
    torch.manual_seed(0)
    made = CLASSIFIERS[request.param](4, pretrained=False)
    torch.nn.init.normal_(made.get_parameter(HEAD_WEIGHTS[request.param]), std=0.1)
    return made.eval()


def test_small_ones_are_registered():
    assert set(SMALL) <= set(CLASSIFIERS)


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_logits_do_not_depend_on_neighbours(model, size):
    images = torch.rand(3, 3, *size)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
        again = model(images)
    assert together.shape == (3, 4)
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert torch.equal(together, again)


def test_wrong_sizes_are_refused(model):
    with pytest.raises(InputError, match="multiples of"):
        model(torch.rand(1, 3, 64, 65))


def test_every_parameter_learns(model):
    model.train()
    try:
        torch.manual_seed(0)
        torch.nn.functional.cross_entropy(model(torch.rand(4, 3, 64, 64)), torch.tensor([0, 1, 2, 3])).backward()
    finally:
        model.eval()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    model.zero_grad()
    assert not idle


def test_weights_are_saved_and_loaded(model):
    name = "vit_tiny" if hasattr(model, "cls_token") else "swin_tiny"
    other = CLASSIFIERS[name](4, pretrained=False).eval()
    other.load_state_dict(model.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(other(images), model(images))
