"""Optimizers: which parts of a model learn at which rate, and how a step is made.

Layer-wise learning rates follow Bao et al., "BEiT", arXiv:2106.08254, appendix: of two neighbouring layers the one nearer to the
pixels learns more slowly. `ScheduleFree` is AdamW as Defazio et al., "The Road Less Scheduled", arXiv:2405.15682, algorithm 1,
have it.

The moving average of a model's weights: what is predicted with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from foldfuse.models.classifiers import layer_indices
from foldfuse.recipes import ClassifierRecipe, Recipe


class ScheduleFree(Optimizer):
    """AdamW that averages as it goes, and so needs no falling rate.

    Steps are made from a point z; x is the average of all z, and what is evaluated and saved. The gradient is taken at y, between
    the two, which is what the parameters are; their x and z are in the optimizer's state.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"beta1": beta1, "beta2": beta2, "eps": eps, "steps": 0, "weights": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """z makes a step, x moves towards it by the share of the squares of all rates so far, y lies between them."""
        assert closure is None
        for group in self.param_groups:
            ys = [p for p in group["params"] if p.grad is not None]
            if not ys:
                continue
            for p in ys:
                if p not in self.state:
                    self.state[p] = {"z": p.detach().clone(), "x": p.detach().clone(), "v": torch.zeros_like(p)}
            zs, xs, vs = ([self.state[p][name] for p in ys] for name in ("z", "x", "v"))
            grads = [p.grad for p in ys]
            group["steps"] += 1
            torch._foreach_mul_(vs, group["beta2"])
            torch._foreach_addcmul_(vs, grads, grads, 1 - group["beta2"])
            rate = group["lr"] * (1 - group["beta2"] ** group["steps"]) ** 0.5
            divisors = torch._foreach_sqrt(vs)
            torch._foreach_add_(divisors, group["eps"])
            torch._foreach_addcdiv_(zs, grads, divisors, -rate)
            torch._foreach_add_(zs, ys, alpha=-rate * group["weight_decay"])
            group["weights"] += rate**2
            torch._foreach_lerp_(xs, zs, rate**2 / group["weights"] if group["weights"] else 1.0)
            torch._foreach_copy_(ys, zs)
            torch._foreach_lerp_(ys, xs, group["beta1"])


def averaged_state(model: nn.Module, optimizer: Optimizer) -> Mapping[str, Tensor]:
    """The model's state as it is to be evaluated: under a schedule-free optimizer the averages x, else the weights themselves."""
    now: dict[str, Tensor] = model.state_dict()
    if isinstance(optimizer, ScheduleFree):
        now |= {name: optimizer.state[p]["x"] for name, p in model.named_parameters() if p in optimizer.state}
    return now


def detector_optimizer(model: Any, recipe: Recipe) -> Optimizer:
    """The optimizer of a detector, as its recipe wants it."""
    groups = detector_groups(model, recipe)
    return ScheduleFree(groups) if recipe.optimizer == "schedule_free" else AdamW(groups, fused=True)


def classifier_optimizer(model: Any, recipe: ClassifierRecipe) -> Optimizer:
    """The optimizer of a classifier."""
    return AdamW(classifier_groups(model, recipe), fused=True)


def detector_groups(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """The optimizer's groups: by rate, and decayed (matrices) or not (biases and norms); `base_lr` is a group's rate."""
    layer_of = layer_indices(model.backbone)
    last = max(layer_of.values())
    rates = {
        id(p): recipe.lr * recipe.backbone_lr_mult * recipe.layer_decay ** (last - layer_of[name])
        for name, p in model.backbone.named_parameters()
    }
    return _groups(
        ((p, rates.get(id(p)), rates.get(id(p), recipe.lr), p.ndim > 1) for p in model.parameters()),
        recipe.weight_decay,
    )


def classifier_groups(model: Any, recipe: ClassifierRecipe) -> list[dict[str, Any]]:
    """As `detector_groups`, by layer; tokens and position embeddings are not decayed either."""
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
    """Groups of (parameter, what it is grouped by, its rate, whether it is decayed); what is not trained is left out.

    A checkpoint is good for the same groups alone: how they are formed is not to change.
    """
    groups: dict[tuple[float | None, bool], tuple[float, list[Tensor]]] = {}
    for p, key, rate, decayed in parameters:
        if p.requires_grad:
            groups.setdefault((key, decayed), (rate, []))[1].append(p)
    return [
        {"params": params, "base_lr": rate, "lr": 0.0, "weight_decay": weight_decay if decayed else 0.0}
        for (_, decayed), (rate, params) in groups.items()
    ]


class Ema:
    """Moving average of a model's weights and buffers; young averages forget faster, so that the start is not kept."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.weights = {key: t.detach().clone() for key, t in model.state_dict().items()}

    def load(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Take over the average that an earlier part of the run has made."""
        for key, t in self.weights.items():
            t.copy_(weights[key])
        self.steps = steps

    @torch.no_grad()
    def update(self, now: Mapping[str, Tensor]) -> None:
        """Move the average towards a model's present weights."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        means = [key for key, t in self.weights.items() if t.is_floating_point()]
        torch._foreach_lerp_([self.weights[key] for key in means], [now[key] for key in means], share)
        for key in self.weights.keys() - set(means):
            self.weights[key].copy_(now[key])
