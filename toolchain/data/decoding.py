"""A data set decoded in order, by all cores and in bounded memory."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from toolchain.data.dataset import DataSet, Sample
from toolchain.errors import DataError

CHUNK = 32
"""Samples that travel between processes at once: enough to make a message cheap, few enough to hold many."""
WORTH_PROCESSES = 512
"""The fewest images that are worth processes: one takes about a second to start, an image milliseconds to decode."""
AHEAD = 2
"""Chunks per process that are decoded or wait to be, so that none is ever idle."""


def decoded_chunks(data: DataSet, size: int = CHUNK) -> Iterator[list[Sample]]:
    """All samples of a data set, in order, `size` at a time; the last chunk may be smaller.

    From `WORTH_PROCESSES` images on, one process per available core decodes; fewer images, or all of them where there
    is a single core, are decoded in the process that asks. At most `AHEAD` chunks per process exist at any moment
    besides the one handed out, however slowly they are taken. When the iterator is closed, runs out or fails, its
    processes end.

    Args:
        data: can be pickled: each process gets a copy once.
        size: samples per chunk.

    Raises:
        DataError: as `data` raises it, whichever process decodes; or a process died.
    """
    chunks = [range(start, min(start + size, len(data))) for start in range(0, len(data), size)]
    processes = min(_processes_for(len(data)), len(chunks))
    if processes > 1:
        yield from _decoded_elsewhere(data, chunks, processes)
    else:
        for chunk in chunks:
            yield [data[index] for index in chunk]


def _processes_for(images: int) -> int:
    return len(os.sched_getaffinity(0)) if images >= WORTH_PROCESSES else 1


def _decoded_elsewhere(data: DataSet, chunks: Sequence[range], processes: int) -> Iterator[list[Sample]]:
    # Spawned, not forked: the parent may hold torch's threads.
    spawning = multiprocessing.get_context("spawn")
    workers = ProcessPoolExecutor(processes, spawning, initializer=_receive, initargs=(data,))
    waiting: deque[Future[list[Sample]]] = deque()
    to_do = iter(chunks)
    try:
        waiting.extend(workers.submit(_decode, chunk) for chunk in islice(to_do, AHEAD * processes))
        while waiting:
            samples = waiting.popleft().result()
            waiting.extend(workers.submit(_decode, chunk) for chunk in islice(to_do, 1))
            yield samples
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images died, probably for want of memory: free some and run the command again."
        ) from error
    finally:
        workers.shutdown(cancel_futures=True)


_received: DataSet
"""In a worker: the data set that it decodes."""


def _receive(data: DataSet) -> None:
    """In a worker: keep the data set for all chunks to come, and leave Ctrl-C to the parent, which ends the workers."""
    global _received
    _received = data
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _decode(indices: range) -> list[Sample]:
    return [_received[index] for index in indices]
