"""A loader gives the batches of (seed, step), however many threads make them, and whenever mosaics end."""

import pytest
import torch

from foldfuse.errors import InputError
from foldfuse.training.loading import MAX_THREADS, Loader, loader_threads, open_loader

CPU = torch.device("cpu")


class Numbered:
    """Batches that say their step, their shard's length and whether they may have mosaics."""

    mosaic_until = 0.5

    def batch(self, step, shard=None, *, mosaic=True):
        if step == 99:
            raise InputError("a.jpg: cannot be decoded.")
        return torch.full((1, 3, 2, 2), step, dtype=torch.uint8), [(step, len(shard or ()), mosaic)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_batches_are_the_same_for_any_number_of_threads(threads):
    loader = Loader(Numbered(), CPU, shard=range(2), threads=threads)
    found = []
    for step in range(12):
        if step == 6:
            loader.end_mosaics(7)
        images, (target,) = loader.get(step)
        assert images.eq(step).all()
        found.append(target)
    loader.close()
    assert found == [(step, 2, step < 7) for step in range(12)]


def test_a_resumed_loader_knows_that_mosaics_have_ended():
    with open_loader(Numbered(), CPU, mosaic_end=3) as loader:
        assert [loader.get(step)[1][0][2] for step in (2, 3, 4, 4)] == [True, False, False, False]


def test_an_image_that_cannot_be_decoded_is_named():
    with open_loader(Numbered(), CPU) as loader, pytest.raises(InputError, match=r"a\.jpg"):
        loader.get(98), loader.get(99)


def test_the_number_of_threads_follows_the_device_and_the_variable(monkeypatch):
    monkeypatch.delenv("FOLDFUSE_LOADER_THREADS", raising=False)
    assert loader_threads(CPU) == 1
    assert 1 <= loader_threads(torch.device("cuda", 0)) <= MAX_THREADS
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert loader_threads(torch.device("cuda", 0)) == 1
    monkeypatch.setenv("FOLDFUSE_LOADER_THREADS", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert loader_threads(CPU) == 3
    monkeypatch.setenv("FOLDFUSE_LOADER_THREADS", "many")
    with pytest.raises(InputError, match=r"FOLDFUSE_LOADER_THREADS is 'many', and must be a whole number in 1\.\.256"):
        loader_threads(CPU)


def test_processes_side_by_side_share_the_threads(monkeypatch):
    monkeypatch.setattr("foldfuse.training.loading.usable_cores", lambda: 8)
    monkeypatch.delenv("FOLDFUSE_LOADER_THREADS", raising=False)
    assert [loader_threads(torch.device("cuda", 1), processes=n) for n in (1, 2, 8)] == [7, 3, 1]
    monkeypatch.setenv("FOLDFUSE_LOADER_THREADS", "6")
    assert [loader_threads(CPU, processes=n) for n in (1, 2, 8)] == [6, 3, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert loader_threads(CPU) == 2
