"""Decoding here and in other processes gives the same; how it ends, however it ends."""

import multiprocessing
import os
import re
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from data_folders import PREPROCESSING, Counted, paint
from PIL import Image

from toolchain.data.decoding import AHEAD, WORTH_PROCESSES, decoded_chunks
from toolchain.data.photos import Photo, Photos
from toolchain.data.pool import pool_from_dataset
from toolchain.errors import DataError

CORES = len(os.sched_getaffinity(0))
MANY = WORTH_PROCESSES + 10
needs_cores = pytest.mark.skipif(CORES < 2, reason="one core decodes by itself")


def index_of(sample) -> int:
    return int(sample.image[0, 0, 0]) * 256 + int(sample.image[0, 0, 1])


def test_few_images_are_decoded_here():
    chunks = list(decoded_chunks(Counted(7), size=3))
    assert [[index_of(sample) for sample in chunk] for chunk in chunks] == [[0, 1, 2], [3, 4, 5], [6]]
    assert {sample.name for sample in chain(*chunks)} == {str(os.getpid())}


@needs_cores
def test_many_images_are_decoded_elsewhere_and_stay_in_order():
    chunks = list(decoded_chunks(Counted(MANY), size=50))
    samples = [*chain(*chunks)]
    assert [len(chunk) for chunk in chunks] == [50] * (MANY // 50) + [MANY % 50]
    assert [index_of(sample) for sample in samples] == [*range(MANY)]
    assert [sample.label for sample in samples[:4]] == [0, 1, 0, 1]
    assert [len(sample.boxes) for sample in samples[:4]] == [0, 1, 2, 0]
    assert str(os.getpid()) not in {sample.name for sample in samples}
    assert multiprocessing.active_children() == []


@needs_cores
def test_no_more_than_a_few_chunks_exist_at_once(tmp_path: Path):
    chunks = decoded_chunks(Counted(MANY, log=tmp_path), size=4)
    next(chunks)
    allowed = min(4 * (1 + AHEAD * CORES), MANY)
    deadline = time.monotonic() + 60
    while (decoded := len(list(tmp_path.iterdir()))) < allowed and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # for what should not come
    assert decoded == len(list(tmp_path.iterdir())) == allowed
    chunks.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("size", [20, MANY])
def test_an_error_arrives_as_it_was(size):
    chunks = decoded_chunks(Counted(size, broken=15), size=10)
    assert [index_of(sample) for sample in next(chunks)] == [*range(10)]
    with pytest.raises(DataError, match=r"^image 15 is broken: mend it\.\n  it has no pixels\.$") as caught:
        next(chunks)
    assert caught.value.problems == ("it has no pixels.",)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("size", [2, MANY])
def test_a_photo_cut_short_is_named(tmp_path: Path, size: int):
    paint(tmp_path / "whole.png", 1)
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:1000])
    photos = [*[Photo("whole.png", 0)] * (size - 1), Photo("cut.jpg", 0)]
    with pytest.raises(DataError, match=r"cut\.jpg is no readable image"):
        pool_from_dataset(Photos(tmp_path, ["only"], photos, PREPROCESSING))


@needs_cores
def test_an_interrupt_ends_the_processes():
    chunks = decoded_chunks(Counted(MANY), size=10)
    next(chunks)
    assert multiprocessing.active_children()
    with pytest.raises(KeyboardInterrupt):
        chunks.throw(KeyboardInterrupt())
    assert multiprocessing.active_children() == []


@needs_cores
def test_a_process_that_dies_is_an_error_and_no_hang():
    with pytest.raises(DataError, match="a process that decodes images died"):
        list(decoded_chunks(Counted(MANY, deadly=300)))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("size", [5, MANY])
def test_a_pool_holds_all_images_and_tells_its_rate(size):
    told = []
    pool = pool_from_dataset(Counted(size), lambda done, total, note="": told.append((done, total, note)))
    assert pool.images.shape == (size, 1, 1, 3)
    assert (pool.images[:, 0, 0, :2] @ [256, 1]).tolist() == [*range(size)]
    assert pool.labels.tolist() == [index % 2 for index in range(size)]
    assert told[-1][:2] == (size, size)
    assert all(re.fullmatch(r"\d+ images/s", note) for _, _, note in told)
