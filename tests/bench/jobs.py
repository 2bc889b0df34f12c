"""J1, J1b, J2: jobs for two worker processes on this machine."""
from __future__ import annotations

import pickle
import selectors
import socket
from itertools import islice
from typing import Any, Callable, Dict, List, Sequence

from .harness import HOST, Measured, WrongResult, child, clock, contestant, expect, latency_notes, ready
from .messages import LENGTH, PROTOCOL, Inbox, get, nodelay, put

WORKERS = 2
ROUNDS_OF_WORK = 600_000        # of `compute`: about 20 ms
WARM_UP = 20


def double(number: int) -> int:
    """The job that does nothing, and shows that it was this one."""
    return number * 2


def compute(rounds: int) -> int:
    """The job that keeps a core busy."""
    total = 0
    for i in range(rounds):
        total += i & 3
    return total


# ---- the three workloads, for anything that maps functions over arguments --------------------------------------------

def measure_many(n: int, map_jobs: Callable[[Callable, Sequence], List]) -> Measured:
    """J1: `map_jobs(function, arguments)` returns the results in order."""
    map_jobs(double, range(WORKERS * 2))
    start = clock()
    results = map_jobs(double, range(n))
    seconds = clock() - start
    expect(results, [2 * i for i in range(n)], "results")
    return Measured(n, seconds)


def measure_single(n: int, run_job: Callable[[Callable, Any], Any]) -> Measured:
    """J1b: `run_job(function, argument)` returns the result."""
    for i in range(WARM_UP):
        run_job(double, i)
    seconds = []
    for i in range(n):
        begin = clock()
        expect(run_job(double, i), 2 * i, "result")
        seconds.append(clock() - begin)
    return Measured(n, sum(seconds), latency_notes(seconds))


def measure_busy(n: int, map_jobs: Callable[[Callable, Sequence], List]) -> Measured:
    """J2: as J1 with jobs that compute."""
    map_jobs(compute, [1000] * WORKERS * 2)
    wanted = compute(ROUNDS_OF_WORK)
    start = clock()
    results = map_jobs(compute, [ROUNDS_OF_WORK] * n)
    seconds = clock() - start
    expect(results, [wanted] * n, "results")
    return Measured(n, seconds)


# ---- limit: pickled jobs over one socket per worker, with a window of credits ----------------------------------------

_FUNCTIONS = {"double": double, "compute": compute}
_WINDOWS = {"double": 256, "compute": 2}    # jobs at a worker: enough to be busy while results travel


def serve_jobs(port: str) -> None:
    """A worker: connect to the client, answer jobs until it goes."""
    sock = nodelay(socket.create_connection((HOST, int(port))))
    ready()
    inbox = Inbox(sock)
    while True:
        jobs = inbox.take()
        if jobs is None:
            return
        answers = []
        for number, name, argument in jobs:
            answer = pickle.dumps((number, _FUNCTIONS[name](argument)), PROTOCOL)
            answers += (LENGTH.pack(len(answer)), answer)
            if name == "compute":                       # a result that took long to make does not wait for others
                sock.sendall(b"".join(answers))
                answers.clear()
        sock.sendall(b"".join(answers))


class _Worker:
    """The client's end of a connection to one worker."""

    def __init__(self, listener: socket.socket) -> None:
        child(serve_jobs, listener.getsockname()[1])
        self.sock = nodelay(listener.accept()[0])
        self.inbox = Inbox(self.sock)
        self.in_flight = 0

    def feed(self, name: str, todo, most: int) -> None:
        """Send up to `most` of the jobs still to do."""
        batch = []
        for number, argument in islice(todo, most):
            job = pickle.dumps((number, name, argument), PROTOCOL)
            batch += (LENGTH.pack(len(job)), job)
        if batch:
            self.sock.sendall(b"".join(batch))
            self.in_flight += len(batch) // 2

    def collect(self, results: List) -> int:
        """Store the results that are there; how many."""
        answers = self.inbox.take()
        if answers is None:
            raise WrongResult("a worker ended")
        for number, value in answers:
            results[number] = value
        self.in_flight -= len(answers)
        return len(answers)


class _Crew:
    """Two workers and the loop that keeps them busy."""

    def __init__(self) -> None:
        with socket.create_server((HOST, 0)) as listener:
            self.workers = [_Worker(listener) for _ in range(WORKERS)]

    def map(self, function: Callable, arguments: Sequence) -> List:
        """Results in order."""
        name = function.__name__
        window = _WINDOWS[name]
        results: List[Any] = [None] * len(arguments)
        todo = iter(enumerate(arguments))
        left = len(arguments)
        with selectors.DefaultSelector() as selector:
            for worker in self.workers:
                selector.register(worker.sock, selectors.EVENT_READ, worker)
                worker.feed(name, todo, window)
            while left:
                for key, _ in selector.select():
                    worker = key.data
                    left -= worker.collect(results)
                    if worker.in_flight <= window // 2:
                        worker.feed(name, todo, window - worker.in_flight)
        return results

    def run(self, function: Callable, argument: Any) -> Any:
        """One result from the first worker."""
        sock = self.workers[0].sock
        put(sock, (0, function.__name__, argument))
        return get(sock)[1]


@contestant("J1", "limit")
def many_limit(n: int) -> Measured:
    """See `_Crew`."""
    return measure_many(n, _Crew().map)


@contestant("J1b", "limit")
def single_limit(n: int) -> Measured:
    """One blocking exchange."""
    return measure_single(n, _Crew().run)


@contestant("J2", "limit")
def busy_limit(n: int) -> Measured:
    """See `_Crew`."""
    return measure_busy(n, _Crew().map)


# ---- ours ------------------------------------------------------------------------------------------------------------

def _on_cluster(measure: Callable, n: int, single: bool) -> Measured:
    """Run one of the measures with a Cluster of our own on this machine."""
    import dispycos_lite
    with dispycos_lite.Cluster(cpus=WORKERS) as cluster:
        if single:
            return measure(n, lambda function, argument: cluster.submit(function, argument).result())
        return measure(n, lambda function, arguments: list(cluster.map(function, arguments)))


@contestant("J1", "ours")
def many_ours(n: int) -> Measured:
    """Cluster.map()."""
    return _on_cluster(measure_many, n, single=False)


@contestant("J1b", "ours")
def single_ours(n: int) -> Measured:
    """Cluster.submit().result()."""
    return _on_cluster(measure_single, n, single=True)


@contestant("J2", "ours")
def busy_ours(n: int) -> Measured:
    """Cluster.map()."""
    return _on_cluster(measure_busy, n, single=False)


# ---- the standard library's pools ------------------------------------------------------------------------------------

def _on_executor(measure: Callable, n: int, single: bool) -> Measured:
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(WORKERS) as pool:
        if single:
            return measure(n, lambda function, argument: pool.submit(function, argument).result())
        return measure(n, lambda function, arguments: list(pool.map(function, arguments)))


def _on_pool(measure: Callable, n: int, single: bool) -> Measured:
    """Jobs one by one (`chunksize=1`): a chunk would be one job of many calls."""
    import multiprocessing
    with multiprocessing.Pool(WORKERS) as pool:
        if single:
            return measure(n, lambda function, argument: pool.apply(function, (argument,)))
        return measure(n, lambda function, arguments: pool.map(function, arguments, chunksize=1))


def _register_pools() -> None:
    measures: Dict[str, tuple] = {"J1": (measure_many, False), "J1b": (measure_single, True),
                                  "J2": (measure_busy, False)}
    for workload, (measure, single) in measures.items():
        for name, run in (("ppe", _on_executor), ("mppool", _on_pool)):
            contestant(workload, name)(
                lambda n, run=run, measure=measure, single=single: run(measure, n, single))


_register_pools()
