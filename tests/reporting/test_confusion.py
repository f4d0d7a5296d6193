"""The confusion matrix of the pages: which classes it names, what its cells mean, and that names are escaped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from foldfuse.evaluation.diagnosis import BestThreshold, Diagnosis
from foldfuse.reporting.campaign_page import template
from foldfuse.reporting.confusion import MAX_CLASSES, ConfusionMatrix, confusion_matrix

DIAGNOSIS = Diagnosis((), {}, (), BestThreshold(0.5, 1.0, 1.0, 1.0), (), np.zeros((1, 1), int), ())


def diagnosis_of(confusion: np.ndarray) -> Diagnosis:
    return replace(DIAGNOSIS, classes=tuple(map(str, range(len(confusion) - 1))), confusion=confusion)


def test_the_most_frequent_classes_are_named_and_the_others_summed_up():
    num_classes = MAX_CLASSES + 2
    confusion = np.diag(np.arange(num_classes + 1)) + 1  # the last class is the most frequent
    matrix = confusion_matrix(diagnosis_of(confusion))
    named = tuple(map(str, range(num_classes - 1, 1, -1)))
    assert matrix.names == (*named, "other classes", "background")
    assert sum(map(sum, matrix.counts)) == confusion.sum()
    assert matrix.counts[0][:2] == (num_classes, 1)
    assert matrix.counts[MAX_CLASSES] == (*(2,) * MAX_CLASSES, 5, 2)  # classes 0 and 1


def test_cells_say_what_they_count():
    matrix = ConfusionMatrix(("cup", "jar", "background"), ((6, 3, 1), (0, 2, 0), (0, 1, 0)))
    (_, cup), (_, jar), (_, nothing) = matrix.rows
    assert [(c.kind, c.share) for c in cup] == [("correct", 0.6), ("confused", 0.3), ("missed", 0.1)]
    assert cup[1].meaning == "3 of 10 objects annotated as cup: predicted as jar"
    assert jar[1].meaning == "2 of 2 objects annotated as jar: found"
    assert nothing[1].meaning == "1 detection of jar where nothing is"
    assert (nothing[2].kind, nothing[2].count) == ("none", 0)


def test_a_matrix_of_many_classes_turns_its_headings_and_escapes_every_name():
    names = ("<b>cup</b>", *map(str, range(29)))
    matrix = confusion_matrix(replace(diagnosis_of(np.eye(31, dtype=int)), classes=names))
    page = template("confusion.html").module.table(matrix, 0.25)
    assert 'class="confusion turned dense"' in page
    assert "<b>cup" not in page
    assert page.count("<tr>") == 1 + 31
    assert not ConfusionMatrix(("cup", "jar", "background"), ((1, 0, 0), (0, 1, 0), (0, 0, 0))).is_wide
