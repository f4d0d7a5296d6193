"""What the user asks of a campaign: the arguments of the command, checked and made absolute."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foldfuse.campaign.planning.candidates import candidates, check_sizes
from foldfuse.campaign.task import Inputs, Task, look, read_inputs
from foldfuse.evaluation.metrics import get_metric
from foldfuse.recipes import Recipe
from foldfuse.storage.ledger import Ledger


@dataclass(frozen=True)
class Asked:
    """What a campaign was asked, as the command line says it; paths as text."""

    data: str | None = None
    test: str | None = None
    deadline: str = "10m"
    out: str = "campaign"
    recipe: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    size: tuple[int, ...] = ()
    change: tuple[str, ...] = ()
    folds: int | str = 5
    member: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    seed: int = 0
    metric: str = "ap50"
    pseudo_labels: bool = False

    @staticmethod
    def of(value: dict[str, Any]) -> Asked:
        """What `asdict` gave, read back from JSON."""
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
        return Asked(**plain)

    def command(self) -> str:
        """The command that asks this."""
        words = ["foldfuse", "campaign", str(self.data)]
        for name, value in vars(self).items():
            if name != "data" and (value != getattr(Asked, name) or name in ("deadline", "out", "seed")):
                flag = f"--{name.replace('_', '-')}"
                for one in value if isinstance(value, tuple) else (value,):
                    words += [flag] if one is True else [flag, str(one)]
        return shlex.join(words)

    def absolute(self) -> Asked:
        """The same, from whatever folder it is asked."""
        folds = self.folds if isinstance(self.folds, int) else str(Path(self.folds).resolve())
        data, test = (None if path is None else str(Path(path).resolve()) for path in (self.data, self.test))
        member = tuple(str(Path(folder).resolve()) for folder in self.member)
        foreign = tuple(":".join(str(Path(p).resolve()) for p in pair.rpartition(":")[::2]) for pair in self.foreign)
        return replace(self, data=data, test=test, folds=folds, member=member, foreign=foreign)

    def inputs(self) -> Inputs:
        """The data, read. Raises InputError where it cannot be used."""
        assert self.data is not None
        test = None if self.test is None else Path(self.test)
        return read_inputs(Path(self.data), test, self.folds if isinstance(self.folds, int) else Path(self.folds))

    def recipes(self) -> dict[str, Recipe]:
        """{name: recipe} of what members may be made of. Raises InputError where there is none, or no such metric."""
        recipes = candidates(self.recipe, self.forbid, self.change)
        for recipe in recipes.values():
            check_sizes(self.size, recipe)
        get_metric(self.metric)
        return recipes

    def task(self, inputs: Inputs, recipes: dict[str, Recipe], ledger: Ledger) -> Task:
        """What is to be done with the data, once it has been looked at."""
        made = look(inputs, recipes, sizes=self.size, seed=self.seed, ledger=ledger)
        return replace(made, metric=self.metric, pseudo=self.pseudo_labels)


def on_cluster(command: str, ray: str | None) -> str:
    """A campaign's command, to be carried out on the Ray cluster at an address; unchanged where there is no address."""
    if ray is None:
        return command
    words = shlex.split(command)
    if "--ray" in words:
        at = words.index("--ray")
        del words[at : at + 2]
    return shlex.join([*words, "--ray", ray])
