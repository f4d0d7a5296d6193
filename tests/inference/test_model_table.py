"""The table of models on file is that of the models themselves.

python tests/inference/test_model_table.py      writes the file, to be committed with the change of a model
"""

import json
from dataclasses import asdict

import pytest

from foldfuse.commands.model_table import models
from foldfuse.inference.cost import default_image_size, forward_cost, make_model
from foldfuse.inference.model_table import NUM_CLASSES, TABLE, ModelRow, read_model_table
from foldfuse.models import CLASSIFIERS, DETECTORS

REGISTRIES = {"detector": DETECTORS, "classifier": CLASSIFIERS}
KINDS = {name: kind for kind, registry in REGISTRIES.items() for name in registry}


def counted(name: str) -> ModelRow:
    """The row of a model, from the model."""
    kind = KINDS[name]
    net = make_model(name, NUM_CLASSES[kind], device="meta")
    size = default_image_size(net)
    cost = forward_cost(net, size)
    return ModelRow(name, kind, cost.num_parameters, cost.flops, size, net.stride, REGISTRIES[kind][name].__doc__)


@pytest.mark.parametrize("name", KINDS)
def test_a_row_is_that_of_the_model(name):
    assert {row.name: row for row in read_model_table()}[name] == counted(name)


def test_every_model_has_a_row_in_the_order_of_the_registries():
    assert [row.name for row in read_model_table()] == list(KINDS)


def test_the_command_lists_size_cost_and_description(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    models()
    rows = {words[0]: words[1:] for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    assert rows["efficientdet_d0"][:4] == ["3.9", "5.1", "512", "32"]
    assert " ".join(rows["efficientdet_d0"][4:]).startswith("EfficientNet-B0, 3 BiFPN layers")
    assert rows["vit_tiny"][:4] == ["5.7", "2.5", "224", "16"]
    assert rows.keys() >= KINDS.keys()


if __name__ == "__main__":
    rows = ",\n".join(f"  {json.dumps(asdict(counted(name)))}" for name in KINDS)
    TABLE.write_text(f'{{"models": [\n{rows}\n]}}\n', encoding="utf-8")
