"""Where timm's weights lie, under which licence, and what they were trained on, as far as timm and the hub's card say.

A name of timm is "ARCHITECTURE" or "ARCHITECTURE.TAG"; the tag names the weights, such as "resnet50.a1_in1k". Without a tag
timm's default weights are meant, but never weights under a licence that is not permissive: such weights are taken by name alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import timm

from foldfuse.errors import InputError, shown
from foldfuse.models.pretrained.published import HUB, PublishedWeights
from foldfuse.provenance import UNKNOWN, is_permissive

FROM_SCRATCH = "--set init_weights=none --set frozen_stages=0 (pretrained=False in Python)"
_ANONYMOUS = ("unknown", "other")  # words of a card that name no licence
_HUB_FILES = {  # what timm names, and the file that its repositories hold too; it runs no code
    None: "model.safetensors",
    "pytorch_model.bin": "model.safetensors",
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}
_DATA = (  # a part of a tag that is the name of a data set; methods and authors in a tag do not say what was seen
    (r"in1k", "ImageNet-1k"),
    (r"in12k", "ImageNet-12k"),
    (r"in21k", "ImageNet-21k"),
    (r"in22k", "ImageNet-22k"),
    (r"yfcc\w*", "YFCC"),
    (r"laion\w+", "LAION"),
    (r"datacomp\w*", "DataComp"),
    (r"webli", "WebLI"),
    (r"jft", "JFT"),
    (r"cc12m", "CC12M"),
    (r"redcaps", "RedCaps"),
)
_FINE_TUNED = "_ft_"  # between the tag of the weights that a training started from, and its own


def timm_config(name: str) -> Any:
    """timm's settings of a network's weights, without weights where it has none.

    Raises:
        InputError: the tag is no tag of this network.
    """
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = ", ".join(key.partition(".")[2] for key in _tagged(name)) or "none"
        raise InputError(f"timm:{name}: timm has no weights of that tag. Its tags: {tags}.") from None
    return config if config is not None else timm.models.PretrainedCfg()


def default_weights(name: str) -> str:
    """The name with the tag of the weights that it stands for; a name with a tag stays.

    Raises:
        InputError: timm has no weights of this network, or none whose licence is permissive.
    """
    config = timm_config(name)
    if "." in name:
        if not config.has_weights:
            raise _no_weights(name)
        return name
    if config.has_weights and not _is_restricted(config):
        return f"{name}.{config.tag}" if config.tag else name
    with_weights = {key: each for key, each in _tagged(name).items() if each.has_weights}
    if not with_weights:
        raise _no_weights(name)
    for key, each in with_weights.items():
        if not _is_restricted(each):
            return key
    first = next(iter(with_weights))
    licences = ", ".join(sorted({each.license for each in with_weights.values()}))
    raise InputError(
        f"timm:{name}: all weights of this network are under licences that are not permissive ({licences}), and such weights are "
        f"never taken unasked. Name them, as in timm:{first}, if the rules of the contest allow it, or take another network."
    )


def timm_source(name: str) -> PublishedWeights:
    """The weights of timm's network `name`: their file, and licence and training data as far as they are known.

    Raises:
        InputError: timm has no weights of this network, or they are in a format that is not read.
    """
    name = default_weights(name)
    config = timm_config(name)
    if config.custom_load or not (config.hf_hub_id or isinstance(config.url, str)):
        raise InputError(
            f"timm:{name}: the weights are in a format that is not read. Take other weights, or {FROM_SCRATCH}."
        )
    licence = config.license if config.license and config.license not in _ANONYMOUS else UNKNOWN
    data = data_of_tag(name.partition(".")[2])
    if not config.hf_hub_id:
        folder, _, file = config.url.rpartition("/")
        return PublishedWeights(name, folder, file, licence, data, config.origin_url or config.url)
    repository = config.hf_hub_id.partition("@")[0]
    carded_licence, carded_data = card(repository)
    file = _HUB_FILES.get(config.hf_hub_filename, config.hf_hub_filename)
    return PublishedWeights(
        name,
        f"{HUB}{repository}",
        file,
        licence if licence != UNKNOWN else carded_licence,
        carded_data if data == UNKNOWN else data,
        f"https://huggingface.co/{repository}",
    )


def data_of_tag(tag: str) -> str:
    """What weights were trained on, in order, as the tag in timm's name of them says; "unknown" where it does not say.

    A fine-tuning's tag may leave open what was seen before it: then "unknown" is one of the data.
    """
    found: dict[str, None] = {}
    for stage in tag.split(_FINE_TUNED):
        named = [data for part in stage.split("_") for pattern, data in _DATA if re.fullmatch(pattern, part)]
        found |= dict.fromkeys(named or [UNKNOWN])
    return ", ".join(found)


def card(repository: str) -> tuple[str, str]:
    """Licence and training data in the card of a hub's repository, where the card is in the local cache; else "unknown"."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, "README.md")
    if not isinstance(path, str):
        return UNKNOWN, UNKNOWN
    try:
        head = Path(path).read_text(encoding="utf-8", errors="replace")[:20_000].split("---")
    except OSError:
        return UNKNOWN, UNKNOWN
    front = head[1] if len(head) > 2 and not head[0].strip() else ""
    licence = re.search(r"^license_name:\s*(\S+)", front, re.M) or re.search(r"^license:\s*(\S+)", front, re.M)
    listed = re.search(r"^datasets:\s*\n((?:\s*-\s*\S.*\n?)+)", front, re.M)
    data = re.findall(r"-\s*(\S+)", listed[1]) if listed else []
    name = licence[1].strip("'\"") if licence else UNKNOWN
    return (UNKNOWN if name in _ANONYMOUS else shown(name)[1:-1]), ", ".join(data[:10]) or UNKNOWN


def _tagged(name: str) -> dict[str, Any]:
    """{name with tag: settings} of all weights of a network, the default ones first."""
    arch = name.partition(".")[0]
    return dict(timm.models.get_arch_pretrained_cfgs(arch))


def _is_restricted(config: Any) -> bool:
    return bool(config.license) and config.license != UNKNOWN and not is_permissive(config.license)


def _no_weights(name: str) -> InputError:
    return InputError(
        f"timm:{name}: timm has no weights of this network. Take another, or train from scratch, which needs far more images "
        f"and time, with {FROM_SCRATCH}."
    )
