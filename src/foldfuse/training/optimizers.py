"""The optimizer of a model (AdamW with a learning rate for each part), and the moving average of its weights.

Layer-wise learning rates follow Bao et al., "BEiT", arXiv:2106.08254, appendix: each layer nearer to the pixels has a smaller
rate than the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from foldfuse.models.classifiers import layer_indices
from foldfuse.recipes import ClassifierRecipe, Recipe


def make_detector_optimizer(model: Any, recipe: Recipe) -> Optimizer:
    """The optimizer of a detector."""
    return AdamW(detector_groups(model, recipe), fused=True)


def make_classifier_optimizer(model: Any, recipe: ClassifierRecipe) -> Optimizer:
    """The optimizer of a classifier."""
    return AdamW(classifier_groups(model, recipe), fused=True)


def detector_groups(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameter groups of a detector by learning rate, with weight decay for matrices but not for biases and norms.

    Class tokens, positions and tables of relative positions do not decay either, nor what timm's `no_weight_decay` names; in
    the runs of earlier versions (`numerics` 1) they do. "base_lr" of a group is its learning rate before the schedule.
    """
    layer_of = layer_indices(model.backbone)
    last = max(layer_of.values())
    rates = {
        id(p): recipe.lr * recipe.backbone_lr_mult * recipe.layer_decay ** (last - layer_of[name])
        for name, p in model.backbone.named_parameters()
    }
    kept = set() if recipe.numerics == 1 else set(_undecayed(model))
    return _groups(
        (
            (p, rates.get(id(p)), rates.get(id(p), recipe.lr), p.ndim > 1 and id(p) not in kept)
            for p in model.parameters()
        ),
        recipe.weight_decay,
    )


_UNDECAYED = ("cls_token", "pos_embed", "reg_token", "dist_token", "mask_token", "relative_position_bias_table")


def _undecayed(model: nn.Module) -> Iterator[int]:
    """The ids of parameters that have no weight decay whatever their shape: tokens, positions and tables of positions."""
    for name, p in model.named_parameters():
        if name.rpartition(".")[2] in _UNDECAYED:
            yield id(p)
    for part in model.modules():
        names = getattr(part, "no_weight_decay", None)
        if callable(names):
            own = dict(part.named_parameters())
            yield from (id(own[name]) for name in names() if name in own)


def classifier_groups(model: Any, recipe: ClassifierRecipe) -> list[dict[str, Any]]:
    """Parameter groups of a classifier by layer, with weight decay for matrices but not for tokens and position embeddings."""
    layer_of = layer_indices(model.net)
    last = max(layer_of.values())
    return _groups(
        (
            (p, layer, recipe.lr * recipe.layer_decay ** (last - layer), p.ndim > 1 and name.endswith("weight"))
            for name, p in model.net.named_parameters()
            for layer in [layer_of[name]]
        ),
        recipe.weight_decay,
    )


def _groups(
    parameters: Iterable[tuple[Tensor, float | None, float, bool]], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups of (parameter, grouping key, rate, whether it decays); frozen parameters are left out.

    The grouping must not change: a checkpoint's optimizer state fits the same groups alone.
    """
    groups: dict[tuple[float | None, bool], tuple[float, list[Tensor]]] = {}
    for p, key, rate, decays in parameters:
        if p.requires_grad:
            groups.setdefault((key, decays), (rate, []))[1].append(p)
    return [
        {"params": params, "base_lr": rate, "lr": 0.0, "weight_decay": weight_decay if decays else 0.0}
        for (_, decays), (rate, params) in groups.items()
    ]


class Ema:
    """Moving average of a model's weights and buffers; a young average forgets faster, so that the start does not linger."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.weights = {key: t.detach().clone() for key, t in model.state_dict().items()}

    def load(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Continue from the average of an earlier part of the training."""
        for key, t in self.weights.items():
            t.copy_(weights[key])
        self.steps = steps

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        self.steps += 1
        now = model.state_dict()
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = [(t, now[key]) for key, t in self.weights.items()]
        means = [pair for pair in pairs if pair[0].is_floating_point()]
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in means], [value for _, value in means], share)
        if counts:
            torch._foreach_copy_([mean for mean, _ in counts], [value for _, value in counts])
