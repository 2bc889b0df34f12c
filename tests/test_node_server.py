"""The server process: order of jobs, what they share, and that nobody takes a busy one for dead."""
from __future__ import annotations

import os
import signal
import sys
import threading
import unittest
from typing import Any

import dispycosnode_lite as node
import pycoslite
from tests import cluster_jobs as jobs
from tests import support
from tests.test_dispycos_cluster import CLUSTER, WAIT_S, ClusterCase


def start(number: int) -> int:
    """A job whose later ones see what it left."""
    STATE.append(number)
    return len(STATE)


STATE: list = []


class JobServerTest(ClusterCase):
    """One server, one client."""

    def test_cpu_jobs_run_one_after_the_other_in_order(self) -> None:
        with self.cluster(1) as cluster:
            futures = [cluster.submit(start, n) for n in range(200)]
            self.assertEqual([f.result(WAIT_S) for f in futures], list(range(1, 201)))
        self.assertEqual(STATE, [])

    def test_each_client_has_globals_of_its_own(self) -> None:
        for _ in range(2):
            with self.cluster(1) as cluster:
                self.assertEqual(cluster.submit(start, 1).result(WAIT_S), 1)

    def test_signals_and_main_thread_belong_to_jobs(self) -> None:
        def in_main_thread() -> bool:
            signal.signal(signal.SIGUSR1, lambda number, frame: None)
            return threading.current_thread() is threading.main_thread()
        with self.cluster(1) as cluster:
            self.assertTrue(cluster.submit(in_main_thread).result(WAIT_S))

    def test_jobs_see_an_empty_input_and_their_own_directory(self) -> None:
        def look() -> Any:
            return sys.stdin.read(), os.listdir(), os.path.basename(os.getcwd()), __name__
        with self.cluster(1) as cluster:
            self.assertEqual(cluster.submit(look).result(WAIT_S)[:3], ("", [], node.SERVER_DIRECTORY % 1))

    def test_large_results_wait_for_a_slow_client(self) -> None:
        """A server does not pile up what its client has not taken."""
        with self.cluster(1) as cluster:
            results = cluster.map(jobs.large, [8 << 20] * 24)
            self.assertEqual([len(result) for result in results], [8 << 20] * 24)

    def test_too_large_is_refused_by_name(self) -> None:
        program = """
import sys
sys.path.insert(0, %r)
import dispycos_lite
from tests import cluster_jobs as jobs
with dispycos_lite.Cluster(cpus=1, cluster=%r) as cluster:
    try:
        cluster.submit(len, b"x" * 2000000)
    except dispycos_lite.CannotShip as error:
        print("refused here:", error)
    print("refused there:", cluster.submit(jobs.large, 2000000).exception(60))
    print(cluster.submit(jobs.double, 4).result(60))
""" % (str(support.ROOT), CLUSTER)
        with support.running([sys.executable, "-c", program], env={"PYCOSLITE_FRAME_BYTES": "1000000"}) as process:
            self.assertEqual(process.wait(WAIT_S), 0)
        self.assertRegex(process.output, r"refused here: the arguments are 2\d+ bytes long")
        self.assertRegex(process.output, r"refused there: the result is 2\d+ bytes long")
        self.assertIn("\n8\n", process.output)


class BusyTest(ClusterCase):
    """Jobs that compute without a pause."""

    def test_nobody_is_declared_dead_while_all_servers_compute(self) -> None:
        support.need_cpus(2)
        program = """
import sys
sys.path.insert(0, %r)
import dispycos_lite
from tests import cluster_jobs as jobs
with dispycos_lite.Cluster(cpus=2, cluster=%r) as cluster:
    computing = [cluster.submit(jobs.compute, 2.0) for _ in range(2)]
    waiting = [cluster.submit(jobs.double, n) for n in range(100)]
    print([f.result(60) for f in computing], sum(f.result(60) for f in waiting))
""" % (str(support.ROOT), CLUSTER)
        with support.running([sys.executable, "-c", program], env={"PYCOSLITE_HEARTBEAT_S": "0.1"}) as process:
            self.assertEqual(process.wait(WAIT_S), 0)
        self.assertIn("[2.0, 2.0] 9900\n", process.output)
        self.assertEqual(process.output.count("\n"), 2, process.output)     # and no line about anything else


class RefusalTest(unittest.TestCase):
    """Who may talk to a server."""

    def test_second_client_is_refused(self) -> None:
        class Network:
            host = pycoslite.Kernel()

            def on_request(self, op: str, handler: Any) -> None:
                setattr(self, op.replace(".", "_"), handler)

            def on_frame(self, code: int, handler: Any) -> None:
                pass

        class Peer:
            accounted = False

        network: Any = Network()
        self.addCleanup(network.host.close)
        node.JobServer(network)
        first, second = Peer(), Peer()
        self.assertEqual(network.server_attach(first, {}, b""), {})
        self.assertEqual(network.server_attach(first, {}, b""), {})
        with self.assertRaisesRegex(pycoslite.PycosError, "another client"):
            network.server_attach(second, {}, b"")


if __name__ == "__main__":
    unittest.main()
