"""Where the work is done: the processes of this machine, or a Ray cluster. Both run the same function."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

from mldm_plugin.errors import MldmError
from mldm_plugin.requirements import pip_install
from mldm_plugin.stopping import asks_to_stop

Job = TypeVar("Job")
Result = TypeVar("Result")
AHEAD = 2  # jobs a worker that are handed out before one comes back; chosen: nobody waits, and memory stays bounded

Engine = Callable[[Callable[[Job], Result], Iterable[Job], int], Iterator[Result]]


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Results in the order in which they are ready. With no workers, the work is done in this process.

    Raises:
        MldmError: a worker was killed, for want of memory as a rule.
    """
    if workers == 0:
        yield from map(work, jobs)
        return
    kinds = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
    threads = max(usable_cores() // workers, 1)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(threads,))
    try:
        waiting: set[Future[Result]] = set()
        for job in jobs:
            waiting.add(pool.submit(work, job))
            if len(waiting) >= AHEAD * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise MldmError(
            "a worker process was killed, perhaps because memory ran out: give the same command again, it goes on "
            "where it was; fewer --workers need less memory."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(threads: int) -> None:
    """A worker ends with its parent, however that ends; Ctrl-C and a closed terminal are the parent's alone to answer.

    Networks that are loaded later compute in `threads` threads, so that all workers together use each core once.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    for which in {signal.SIGINT, *asks_to_stop()} - {signal.SIGTERM}:
        signal.signal(which, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait_for([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def on_ray(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Results from the Ray cluster that RAY_ADDRESS names, else on one of `workers` CPUs that is started here.

    The folders have to be the same on all its machines, on a shared disk.

    Raises:
        MldmError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise MldmError(f"--engine ray needs Ray: {pip_install('ray')}") from error
    answers = signal.getsignal(signal.SIGTERM)  # Ray puts its own in the place
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {} if address else {"num_cpus": max(workers, 1), "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MldmError(f"the Ray cluster {address or 'of this machine'} cannot be used: {error}") from error
    try:
        yield from _rays_results(ray, work, jobs)
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, answers)


def _rays_results(ray: Any, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    remote = ray.remote(work)
    limit = AHEAD * max(int(ray.cluster_resources().get("CPU", 1)), 1)
    waiting: list[Any] = []
    for job in jobs:
        waiting.append(remote.remote(job))
        if len(waiting) >= limit:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
    while waiting:
        done, waiting = ray.wait(waiting)
        yield from ray.get(done)


ENGINES: dict[str, Engine] = {"processes": in_processes, "ray": on_ray}
