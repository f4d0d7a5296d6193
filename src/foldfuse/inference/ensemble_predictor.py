"""The predictor of an ensemble: its members predict in their views, are fused, and are rescored where a rescorer belongs to it.

The ensemble.json of `foldfuse ensemble` names prediction files, which do not say which run made them: a member is looked for
among the folders beside the file, or named by the user. Torch is needed by members whose network is no ONNX file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foldfuse.data.content_hashes import known_images
from foldfuse.data.dataset import Dataset, Sample
from foldfuse.detections import Predictions
from foldfuse.ensemble.ensemble import Ensemble, apply_ensemble, read_ensemble
from foldfuse.ensemble.member_views import MemberView
from foldfuse.errors import InputError, counted, unknown_name
from foldfuse.fusion.methods import wbf
from foldfuse.inference.base_predictor import Predictor
from foldfuse.inference.network_predictor import NetworkPredictor
from foldfuse.inference.networks import has_onnx, load_network
from foldfuse.inference.rescorer import Rescorer, apply_rescorer
from foldfuse.inference.tta import PLAIN_VIEW, View, parse_views
from foldfuse.inference.views import BATCH_SIZE
from foldfuse.storage.run import Run
from foldfuse.system.device import choose_device, free_bytes
from foldfuse.system.progress import Progress, no_progress, span

RESCORING_SHARE = 0.2  # of the progress
NETWORKS_SHARE = 0.25  # of a card's memory that the networks may take; the images of a batch need the rest


@dataclass(frozen=True)
class Part:
    """One pass of a run over the images.

    Attributes:
        run: the run.
        members: {member of the ensemble: its TTA views, which are fused by WBF where there are several}.
        decoded_for: TTA views whose largest decides at which size images are decoded; see `predict_images`.
    """

    run: Run
    members: Mapping[str, tuple[View, ...]]
    decoded_for: tuple[View, ...] = ()

    @property
    def views(self) -> tuple[View, ...]:
        """The TTA views of all members, each once."""
        return tuple(dict.fromkeys(view for views in self.members.values() for view in views))


@dataclass(frozen=True, eq=False, repr=False)
class EnsemblePredictor(Predictor):
    """The members of an ensemble and their fusion.

    Attributes:
        ensemble: weights and settings of the fusion.
        parts: who predicts for which members.
        device: the device of every network.
        rescorer: the crop rescorer of the fused predictions; None where there is none.
        learnt_hashes: content hashes of further images that it has learnt from; see `data.content_hashes`.
        noun: "ensemble" or "campaign".
        engine: what runs every network; see `load`.
        notes: sentences that say which parts of the ensemble cannot predict new images.

    Every network stays loaded after its first use, so that many calls with one image are fast. On a card the networks share
    `NETWORKS_SHARE` of the memory that is free for them and for images; those that find no room wait in the host's memory.
    """

    ensemble: Ensemble
    parts: tuple[Part, ...]
    device: str
    rescorer: Rescorer | None = None
    learnt_hashes: frozenset[str] = frozenset()
    noun: str = "ensemble"
    engine: str = "auto"
    notes: tuple[str, ...] = ()
    _loaded: dict[Path, NetworkPredictor] = field(default_factory=dict)  # the last used is the last
    _waiting: set[Path] = field(default_factory=set)  # in the host's memory

    @property
    def kind(self) -> str:
        """Such as "campaign of 2 networks in 3 views by WBF, crop rescoring"."""
        networks = counted(len(self.runs), "network")
        views = counted(sum(len(part.views) for part in self.parts), "view")
        rescoring = ", crop rescoring" if self.rescorer is not None else ""
        learned = f", {self.ensemble.learned}" if self.ensemble.learned else ""
        return f"{self.noun} of {networks} in {views} by {self.ensemble.method.upper()}{learned}{rescoring}"

    @property
    def runs(self) -> tuple[Run, ...]:
        """The run of each member, once."""
        return tuple(dict.fromkeys(part.run for part in self.parts))

    def parse_views(self, names: Sequence[str]) -> tuple[View, ...]:
        """No view: the ensemble has its own. Raises InputError where views are named."""
        if names:
            raise InputError(
                f"{self.source}: the TTA views of an ensemble are its own, since its weights were chosen for them. Leave out "
                "--view."
            )
        return ()

    def learnt_ids(self, dataset: Dataset) -> frozenset[int]:
        """The ids of the images of `dataset` that a member, or the rescorer, has learnt from."""
        further = known_images(dataset.samples, self.learnt_hashes) if self.learnt_hashes else []
        return super().learnt_ids(dataset) | {sample.id for sample in further}

    def predict_samples(
        self,
        samples: Sequence[Sample],
        *,
        views: Sequence[View] = (),
        batch_size: int = BATCH_SIZE,
        progress: Progress = no_progress,
    ) -> Predictions:
        """The fused predictions of opened samples, always in the views of the ensemble; see `Predictor.predict_samples`."""
        end = 1.0 if self.rescorer is None else 1 - RESCORING_SHARE
        costs = [sum(view.cost for view in part.views) for part in self.parts]
        done = 0.0
        members: dict[str, Predictions] = {}
        for part, cost in zip(self.parts, costs, strict=True):
            share = end * cost / sum(costs)
            members |= self._predict_part(part, samples, batch_size, span(progress, done, done + share))
            done += share
        fused = apply_ensemble(self.ensemble, members)
        if self.rescorer is not None:
            fused = apply_rescorer(self.rescorer, fused, samples, progress=span(progress, end, 1.0))
        progress(1.0)
        return fused

    def _predict_part(
        self, part: Part, samples: Sequence[Sample], batch_size: int, progress: Progress
    ) -> dict[str, Predictions]:
        one = self.network(part.run)
        sizes = [view.decoded_size(one.image_size, one.stride) for view in part.decoded_for or part.views]
        by_view = one.predict_each(samples, part.views, batch_size=batch_size, longest=max(sizes), progress=progress)
        return {
            name: by_view[views[0]] if len(views) == 1 else wbf([by_view[view] for view in views])
            for name, views in part.members.items()
        }

    def network(self, run: Run) -> NetworkPredictor:
        """The network of a run, on the device; the last of `_loaded` from now on."""
        one = self._loaded.pop(run.folder, None) or load_network(run, device=self.device, engine=self.engine)
        self._make_room(one)
        self._loaded[run.folder] = one
        if run.folder in self._waiting:
            one.move(self.device)
            self._waiting.remove(run.folder)
        return one

    def _make_room(self, wanted: NetworkPredictor) -> None:
        """Moves networks from a card to the host's memory until those that stay fit in their share beside the wanted one.

        The last used goes first: in a series of calls with one image each it is needed again latest.
        """
        free = free_bytes(self.device)
        if free is None:
            return
        on_card = {path: one.num_bytes for path, one in self._loaded.items() if path not in self._waiting}
        taken = sum(on_card.values())
        room = NETWORKS_SHARE * (free + taken) - wanted.num_bytes
        for path, num_bytes in reversed(on_card.items()):
            if taken <= room:
                break
            self._loaded[path].move("cpu")
            self._waiting.add(path)
            taken -= num_bytes


def predictor_of(
    source: Path,
    ensemble: Ensemble,
    parts: Sequence[Part],
    *,
    device: str,
    rescorer: Rescorer | None = None,
    learnt_hashes: frozenset[str] = frozenset(),
    noun: str = "ensemble",
    notes: Sequence[str] = (),
) -> EnsemblePredictor:
    """The predictor of an ensemble whose runs are known; networks are loaded when they first predict.

    Raises:
        InputError: a run is not trained, is a classifier's, or was trained for other classes than the first.
    """
    first = parts[0].run.metadata
    for part in parts:
        metadata = part.run.metadata
        if part.run.is_classifier or not (part.run.is_trained or has_onnx(part.run)):
            what = "the run of a classifier" if part.run.is_classifier else "not trained to its end"
            raise InputError(f"{part.run.folder}: is {what}, so it cannot be a member of {source}.")
        if metadata.classes != first.classes:
            raise InputError(
                f"{part.run.folder}: was trained for the classes {', '.join(metadata.classes)}, and {parts[0].run.folder} for "
                f"{', '.join(first.classes)}. The members of an ensemble have the same classes in the same order."
            )
    return EnsemblePredictor(
        source=source,
        classes=first.classes,
        category_ids=tuple(first.category_ids),
        ignore_orientation=first.ignore_orientation,
        value_ranges=first.value_ranges,
        ensemble=ensemble,
        parts=tuple(parts),
        device=device if all(has_onnx(part.run) for part in parts) else choose_device(device),
        rescorer=rescorer,
        learnt_hashes=learnt_hashes,
        noun=noun,
        notes=tuple(notes),
    )


def load_ensemble(path: Path, *, device: str, members: Mapping[str, str | Path]) -> EnsemblePredictor:
    """The predictor of an ensemble.json, or of a folder that holds one.

    Args:
        path: the file or folder.
        device: see `load`.
        members: {member: RUN or RUN@VIEW,...}; the others are looked for beside the file, see `find_run`.

    Raises:
        InputError: the file cannot be used, or the run of a member is not found.
    """
    file = path / "ensemble.json" if path.is_dir() else path
    ensemble = read_ensemble(file)
    for name in members:
        if name not in ensemble.weights:
            raise unknown_name("member of the ensemble", name, ensemble.weights)
    parts: dict[Path, dict[str, tuple[View, ...]]] = {}
    missing = []
    for name in ensemble.weights:
        run, views = _given(str(members[name])) if name in members else find_run(name, file.parent)
        if run is None:
            missing.append(name)
        else:
            parts.setdefault(run, {})[name] = views
    if missing:
        raise InputError(
            f"{file}: the run of {'the member' if len(missing) == 1 else 'the members'} {', '.join(missing)} is not beside the "
            f"file. Name each: --member {missing[0]}=RUN, or RUN@1,1+hflip where it predicted in several views."
        )
    return predictor_of(path, ensemble, [Part(Run(run), names) for run, names in parts.items()], device=device)


def find_run(member: str, folder: Path) -> tuple[Path | None, tuple[View, ...]]:
    """The run of a member, and its TTA views: a folder of the member's name in `folder`, above it, or in members/ of these.

    "NAME@VIEW", as campaigns name their members, is the view of the run NAME.
    """
    key = MemberView.parse(member) or MemberView("", "")
    for name, views in ((member, (PLAIN_VIEW,)), (key.member, _view(key.view))):
        for place in (
            folder,
            folder / "members",
            folder.parent,
            folder.parent / "members",
            folder.parent.parent / "members",
        ):
            if name and views and (place / name / "run.json").is_file():
                return place / name, views
    return None, ()


def _view(name: str) -> tuple[View, ...]:
    """The TTA view of this name; none where it is no view."""
    try:
        return (View.parse(name),)
    except InputError:
        return ()


def _given(text: str) -> tuple[Path, tuple[View, ...]]:
    """The run and the TTA views in RUN or RUN@VIEW,..."""
    folder, at, names = text.rpartition("@")
    if Path(text).exists() or not at:
        return Path(text), (PLAIN_VIEW,)
    return Path(folder), parse_views(names.split(","))
