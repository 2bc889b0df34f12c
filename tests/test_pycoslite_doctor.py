"""The doctor: each thing that keeps two processes apart, done on purpose, is named by the step that sees it."""
from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import unittest
from pathlib import Path
from typing import Any, Iterator, Tuple

import pycoslite
from tests.support import ROOT, TestCase, free_port, interpreters, running, skip_unless_root, two_hosts

AGENT = Path(__file__).with_name("network_peer.py")
HOST = "127.0.0.1"
TALK = ("connection", "greeting", "version", "encryption", "secret", "cluster", "session")
AFTER = ("round trip", "clock")
STEP = {"step", "status", "seen", "advice", "details"}
ROW = {"name", "location", "role", "python", "release", "cluster", "round_trip_s", "clock_s", "problem"}
REPORT = {"pycoslite", "python", "host", "at", "target", "cluster", "status", "steps", "processes", "log"}
STATUS = {"ok": 0, "warning": 1, "failed": 2}
SOON_S, LATER_S = 0.6, 2.5      # so long is a search where nobody is to be found, and where somebody is
IMPATIENT = {"PYCOSLITE_CONNECT_S": "1", "PYCOSLITE_HANDSHAKE_S": "1"}      # where nothing is to come
ALONE = all(map(pycoslite.is_loopback, pycoslite.own_addresses(["0.0.0.0", "::"])))     # this machine has no network
SKEWED = """
import runpy, sys, time
real = time.time
time.time = lambda: real() + 95.0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NEWER = """
import runpy, sys
sys.path.insert(0, %r)
import pycoslite
pycoslite.Handshake.VERSIONS = (7, 9)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
""" % str(ROOT)
STRANGE = """
import runpy, sys
sys.path.insert(0, %r)
import pycoslite
usual = pycoslite.Handshake.__init__
pycoslite.Handshake.__init__ = lambda self, role, key, process_id, info, *more: usual(
    self, role, key, process_id, dict(info, python=5, role=None, release=["x"]), *more)
pycoslite._Roster._on_time = staticmethod(lambda *_args: {"hour": 5})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
""" % str(ROOT)


class DoctorTestCase(TestCase):
    """Runs the doctor as a program, with a secret file and a discovery port that no other test has."""

    def setUp(self):
        self.port = free_port()
        self.secret = self.file("secret", "5" * 64)
        self.environment = {"PYCOSLITE_SECRET_FILE": str(self.secret), "PYCOSLITE_NET_PORT": str(self.port),
                            "PYCOSLITE_CONNECT_S": "20", "PYCOSLITE_HANDSHAKE_S": "20"}

    def file(self, name: str, text: str) -> Path:
        """A file of that text that only its owner can read."""
        path = self.temp_dir() / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def run_doctor(self, *words: Any, python: str = sys.executable, host: Any = None, before: Any = (),
                   wait_s: float = SOON_S, **env: str) -> subprocess.CompletedProcess:
        """A call of the command line, on another host if one is given; `before` are words of what starts it."""
        command = [*before, python, "-W", "error", "-X", "dev", "-m", "pycoslite", "doctor", "--wait", str(wait_s),
                   *map(str, words)]
        with subprocess.Popen(host.command(command) if host else command, cwd=str(ROOT), text=True,
                              env=dict(os.environ, **dict(self.environment, **env)), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                output, errors = process.communicate(timeout=100)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)         # -X dev: it shows what all threads are doing
                self.fail("the doctor has not ended within 100 s\n%s%s" % process.communicate())
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def report(self, *words: Any, **how: Any) -> dict:
        """What --json prints, once it was found to be whole; `steps` by name."""
        done = self.run_doctor("--json", *words, **how)
        self.assertEqual(done.stderr, "")
        report = json.loads(done.stdout)
        self.assertEqual(done.returncode, STATUS[report["status"]], done.stdout)
        self.assertEqual(set(report), REPORT)
        self.assertTrue(all(set(step) == STEP for step in report["steps"]), report["steps"])
        self.assertTrue(all(set(row) == ROW for row in report["processes"]), report["processes"])
        worst = {step["status"] for step in report["steps"]}
        self.assertEqual(report["status"], next(status for status in ("failed", "warning", "ok") if status in worst))
        for step in report["steps"]:
            self.assertEqual(bool(step["advice"]), step["status"] in ("warning", "failed")
                             or step["step"] == "firewall" and bool(step["advice"]), step)
        report["steps"] = {step["step"]: step for step in report["steps"]}
        return report if how.get("host") else self.as_if_connected(report)

    def as_if_connected(self, report: dict) -> dict:
        """The report, without the one warning that is right on a machine that has no network, where these tests run,
        too."""
        step = report["steps"].get("addresses")
        if ALONE and step and step["status"] != "skipped":
            self.assertEqual(step["status"], "warning")
            self.assertIn("no other machine can reach this one", step["seen"])
            step["status"] = "ok"
            found = {step["status"] for step in report["steps"].values()}
            report["status"] = next(status for status in ("failed", "warning", "ok") if status in found)
        return report

    def process(self, *options: str, program: str = "", python: str = sys.executable, **env: str) -> Any:
        """Context manager: a process of the cluster, found by searching."""
        start = ["-c", program, AGENT] if program else [AGENT]
        words = ["discover_peers=True", "secret=", "udp_port=%d" % self.port, *options]
        return running([python, *start, *words], ready=r"READY \S+:(\d+)$", env=dict(self.environment, **env))

    @contextlib.contextmanager
    def agent(self, *options: str, **how: str) -> Iterator[int]:
        """The TCP port of such a process."""
        with self.process(*options, **how) as process:
            yield int(process.match.group(1))

    def check_talk(self, report: dict, failed: str, seen: str, advice: str) -> None:
        """That stage of a conversation has failed, all before it went well, and none after it was tried."""
        step = report["steps"][failed]
        self.assertRegex(step["seen"], seen)
        self.assertRegex(step["advice"], advice)
        stages = TALK + AFTER
        statuses = [report["steps"][stage]["status"] for stage in stages]
        index = stages.index(failed)
        self.assertEqual(statuses, ["ok"] * index + ["failed"] + ["skipped"] * (len(stages) - index - 1))
        self.assertEqual(report["status"], "failed")


class HereTest(DoctorTestCase):
    """Without an address: this machine, and who answers."""

    def test_nobody_answers(self):
        report = self.report()
        self.assertEqual([(name, step["status"]) for name, step in report["steps"].items()],
                         [(name, "ok") for name in ("python", "secret", "encryption", "addresses", "TCP port",
                                                    "broadcast", "firewall")]
                         + [("processes", "warning"), ("clock", "ok")])
        self.assertEqual(report["steps"]["TCP port"]["details"], {"port": self.port, "free": True})
        self.assertIn(HOST, report["steps"]["broadcast"]["details"]["heard_from"])
        self.assertEqual(report["processes"], [])
        self.assertIn("run the doctor with its HOST:PORT", report["steps"]["processes"]["advice"])

    def test_who_answers(self):
        with self.agent("name=one", "host=None") as one, self.agent("name=two"), \
                self.agent("name=three", "cluster=another"):
            report = self.report(wait_s=LATER_S)
        rows = {row["name"]: row for row in report["processes"]}
        self.assertEqual(set(rows), {"one", "two"})
        self.assertEqual(rows["one"]["location"].rpartition(":")[2], str(one))
        self.assertEqual({(row["python"], row["release"], row["cluster"], row["role"], row["problem"])
                          for row in rows.values()},
                         {("%d.%d.%d" % sys.version_info[:3], pycoslite.__version__, "pycoslite", "peer", "")})
        self.assertTrue(all(0 < row["round_trip_s"] < 10 and abs(row["clock_s"]) < 10 for row in rows.values()))
        details = report["steps"]["processes"]["details"]
        self.assertEqual((details["answered"], details["other_clusters"], details["other_processes"]), (2, 1, 1))
        self.assertEqual(report["status"], "ok", report)

    def test_a_node_of_a_cluster(self):
        port = free_port()
        command = [sys.executable, "dispycosnode_lite.py", "--cpus", "1", "--name", "worker", "--tcp_ports", port,
                   "--udp_port", self.port, "--daemon", "--dest_path", self.temp_dir()]
        with running(command, ready="listening at", env=self.environment):
            row, = self.report(wait_s=LATER_S)["processes"]
            self.assertEqual((row["name"], row["role"], row["problem"]), ("worker", "node", ""))
            self.assertEqual(row["location"].rpartition(":")[2], str(port))

    def test_another_secret_is_seen(self):
        other = self.file("other", "6" * 64)
        with self.agent(PYCOSLITE_SECRET_FILE=str(other)):
            step = self.report(wait_s=LATER_S)["steps"]["processes"]
        self.assertEqual(step["status"], "warning")
        self.assertIn("another secret", step["seen"])
        self.assertIn("compare the fingerprints", step["advice"])
        self.assertTrue(step["details"]["other_secret"])

    @unittest.skipUnless(shutil.which("bash"), "needs a shell that limits descriptors")
    def test_too_few_files_may_be_open(self):
        """Whichever step is the first that cannot have one, the port is not to blame."""
        for most in range(8, 18, 2):
            with self.subTest(most):
                done = self.run_doctor("--json", before=["bash", "-c", "ulimit -n %d; exec \"$@\"" % most, "doctor"])
                failed = [step for step in json.loads(done.stdout)["steps"] if step["status"] == "failed"]
                for step in failed:
                    self.assertRegex(step["seen"], "Too many open files|no more sockets")
                    self.assertIn("ulimit -n", step["advice"])
                self.assertTrue(failed or most > 12)

    def test_the_usual_port_is_in_use(self):
        with self.agent("name=first", "tcp_port=%d" % self.port):
            report = self.report(wait_s=LATER_S)
            self.assertEqual([row["name"] for row in report["processes"]], ["first"])
            step = report["steps"]["TCP port"]
            self.assertEqual((step["status"], step["details"]["free"]), ("ok", False))
            self.assertIn('in use by "first"', step["seen"])
        with socket.create_server((HOST, self.port)):
            step = self.report(**IMPATIENT)["steps"]["TCP port"]
            self.assertEqual(step["status"], "warning")
            self.assertIn("something else", step["seen"])

    def test_the_discovery_port_is_not_shared(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("", self.port))
            steps = self.report()["steps"]
        self.assertEqual((steps["broadcast"]["status"], steps["processes"]["status"]), ("failed", "skipped"))
        self.assertIn("in use", steps["broadcast"]["seen"])

    def test_as_text(self):
        with self.agent("name=one"):
            done = self.run_doctor(wait_s=LATER_S)
        self.assertEqual((done.returncode, done.stderr), (int(ALONE), ""))
        lines = done.stdout.splitlines()
        self.assertLess(max(map(len, lines)), 100)
        self.assertRegex(done.stdout, r"(?ms)^ok      secret      in .*?\(mode 0600\),\s+fingerprint [0-9a-f]{4}$")
        self.assertRegex(done.stdout, r'(?m)^  one +127.0.0.1:\d+ +peer +3\.\d+\.\d+ +\S+ ms +pycoslite$')
        self.assertEqual(lines[-1], "WARNING: addresses" if ALONE else "Nothing is wrong.")

    def test_clock_of_another_machine(self):
        with self.agent("name=early", program=SKEWED):
            step = self.report(wait_s=LATER_S)["steps"]["clock"]
        self.assertEqual(step["status"], "warning")
        self.assertRegex(step["seen"], r'clock of "early" is 9[45]\.\d\d s ahead')
        self.assertAlmostEqual(step["details"]["clock_s"], 95, delta=5)


class SecretTest(DoctorTestCase):
    """What is said of the secret itself."""

    def step(self, *words: Any, **env: Any) -> dict:
        """The step, without waiting for a search: what is no address ends the rest at once."""
        return self.report("%s:port" % HOST, *words, **env)["steps"]["own secret"]

    def test_fingerprints_are_equal_exactly_when_the_keys_are(self):
        other = self.file("other", "6" * 64)
        one, same, another = self.step(), self.step("--secret-file", self.secret), self.step("--secret-file", other)
        self.assertEqual(one["details"]["fingerprint"], same["details"]["fingerprint"])
        self.assertNotEqual(one["details"]["fingerprint"], another["details"]["fingerprint"])
        self.assertEqual(another["details"]["path"], str(other))

    def test_fingerprint_tells_little(self):
        key = bytes(range(32))
        digits = pycoslite.secret_fingerprint(key)
        self.assertRegex(digits, "^[0-9a-f]{4}$")
        self.assertNotIn(digits, key.hex())
        self.assertNotIn(digits, hashlib.sha256(key).hexdigest()[:4])
        self.assertEqual(digits, pycoslite.secret_fingerprint(key))

    def test_a_file_that_others_can_read(self):
        self.secret.chmod(0o644)
        step = self.step()
        self.assertEqual((step["status"], step["details"]["mode"]), ("warning", 0o644))
        self.assertEqual(step["advice"], "run chmod 600 %s" % self.secret)

    def test_a_file_that_is_not_there(self):
        report = self.report("%s:port" % HOST, "--secret-file", self.temp_dir() / "nothing")
        self.assertEqual(report["steps"]["own secret"]["status"], "failed")
        self.assertIn("copy it from a machine of the cluster", report["steps"]["own secret"]["advice"])
        self.assertEqual(report["steps"]["addresses"]["status"], "skipped")

    def test_one_made_now_is_worth_a_word(self):
        home = str(self.temp_dir())
        first, second = (self.step(HOME=home, USERPROFILE=home, PYCOSLITE_SECRET_FILE="") for _ in range(2))
        self.assertEqual((first["status"], second["status"]), ("warning", "ok"))
        self.assertTrue(first["details"]["made_now"])
        self.assertIn("processes with different secrets never meet", first["advice"])
        self.assertEqual(first["details"]["fingerprint"], second["details"]["fingerprint"])

    def test_from_the_environment(self):
        step = self.step(PYCOSLITE_SECRET_FILE="", PYCOSLITE_SECRET="short")
        self.assertEqual((step["status"], step["details"]["path"]), ("warning", None))
        self.assertIn("it is short", step["seen"])
        step = self.step(PYCOSLITE_SECRET_FILE="", PYCOSLITE_SECRET="a long sentence that nobody guesses")
        self.assertEqual(step["status"], "ok")
        self.assertNotIn("sentence", json.dumps(step))

    def test_open(self):
        step = self.step("--no-auth")
        self.assertEqual(step["status"], "warning")
        self.assertIn("whoever reaches", step["seen"])


class ThereTest(DoctorTestCase):
    """With an address: the way there."""

    def test_good(self):
        with self.agent("name=one") as port:
            report = self.report("%s:%d" % (HOST, port))
        self.assertEqual({step["status"] for step in report["steps"].values()}, {"ok"}, report)
        self.assertIn('"one" is connected', report["steps"]["session"]["seen"])
        self.assertGreater(report["steps"]["round trip"]["details"]["round_trip_s"], 0)
        self.assertEqual(report["processes"][0]["name"], "one")
        self.assertEqual(report["target"], "%s:%d" % (HOST, port))

    def test_a_process_that_says_strange_things(self):
        with self.agent("name=one", program=STRANGE) as port:
            report = self.report("%s:%d" % (HOST, port))
        self.assertEqual(report["steps"]["session"]["status"], "ok")
        self.assertEqual(report["steps"]["round trip"]["status"], "warning")
        self.assertRegex(report["processes"][0]["problem"], '^"one" @ .*: it tells no time when it is asked')

    def test_a_host_alone_is_asked_for_its_ports(self):
        with self.agent("name=one") as port:
            report = self.report("localhost", wait_s=LATER_S)
        self.assertEqual(report["steps"]["discovery"]["details"]["tcp_ports"], [port])
        self.assertEqual(report["steps"]["connection"]["details"]["location"], "localhost:%d" % port)
        self.assertEqual(report["status"], "ok", report)

    @unittest.skipUnless(socket.has_ipv6 and pycoslite.source_address("::1"), "there is no IPv6 here")
    def test_ipv6(self):
        with self.agent("host=::1", "name=six") as port:
            report = self.report("[::1]:%d" % port)
            self.assertEqual(report["status"], "ok", report)
            self.assertEqual(report["steps"]["connection"]["details"]["location"], "[::1]:%d" % port)

    def test_from_other_pythons(self):
        with self.agent() as port:
            for other in interpreters()[:1] + interpreters()[-1:]:
                with self.subTest(other.version):
                    report = self.report("%s:%d" % (HOST, port), python=other.path)
                    self.assertEqual(report["status"], "ok", report)

    def test_nothing_listens(self):
        report = self.report("%s:%d" % (HOST, free_port()))
        self.check_talk(report, "connection", "refuses connections", "start the program there")
        self.assertEqual(report["steps"]["discovery"]["status"], "warning")
        self.assertIn("nobody answers", report["steps"]["discovery"]["seen"])

    def test_another_port_answers(self):
        with self.agent() as port:
            report = self.report("%s:%d" % (HOST, free_port()), wait_s=2 * LATER_S)
        self.check_talk(report, "connection", "refuses", "name the port")
        self.assertIn("is %d meant?" % port, report["steps"]["discovery"]["advice"])

    def test_name_that_nobody_has(self):
        report = self.report("no-such-host.invalid:9705")
        step = report["steps"]["name"]
        self.assertEqual(step["status"], "failed")
        self.assertIn("'no-such-host.invalid' cannot be resolved", step["seen"])
        self.assertIn("IP address", step["advice"])
        self.assertEqual(report["steps"]["session"]["details"], {"failed": "name"})

    def test_address_that_is_none(self):
        report = self.report("%s:port" % HOST)
        self.assertEqual(report["steps"]["name"]["status"], "failed")
        self.assertIn("must be a port number", report["steps"]["name"]["advice"])

    def test_silence_after_the_connection(self):
        with socket.create_server((HOST, 0)) as listener:
            report = self.report("%s:%d" % listener.getsockname(), **IMPATIENT)
        self.check_talk(report, "greeting", "says nothing", "which program has that port")

    def test_a_program_that_is_stopped(self):
        with self.process() as process:
            process.signal(signal.SIGSTOP)
            try:
                report = self.report("%s:%s" % (HOST, process.match.group(1)), **IMPATIENT)
            finally:
                process.signal(signal.SIGCONT)
        self.check_talk(report, "greeting", "says nothing", "is stopped or hangs")

    def test_web_server(self):
        with serving(http.server.BaseHTTPRequestHandler) as port:
            report = self.report("%s:%d" % (HOST, port), **IMPATIENT)
        self.check_talk(report, "greeting", "says nothing for 1 s, where pycoslite would speak first",
                        "another service")

    def test_server_that_speaks_first(self):
        with serving(Greets) as port:
            report = self.report("%s:%d" % (HOST, port))
        self.check_talk(report, "greeting", "not pycoslite: it began with b'220 mail", "which program has that port")

    def test_another_version(self):
        with self.agent(program=NEWER) as port:
            report = self.report("%s:%d" % (HOST, port))
        self.check_talk(report, "version", "speaks versions 7 to 9 of the protocol, this one 1 to 1",
                        "install the same release")

    def test_another_secret(self):
        other = self.file("other", "6" * 64)
        with self.agent(PYCOSLITE_SECRET_FILE=str(other)) as port:
            report = self.report("%s:%d" % (HOST, port))
        print_ = report["steps"]["own secret"]["details"]["fingerprint"]
        self.check_talk(report, "secret", "another secret than this end .whose fingerprint is %s" % print_,
                        "run the doctor there: .*copy %s from one machine" % self.secret)

    def test_one_without_a_secret(self):
        with self.agent() as port:
            report = self.report("--no-auth", "%s:%d" % (HOST, port))
        self.check_talk(report, "secret", "demands a secret and this end has none", "leave out --no-auth")
        with self.agent("secret=False") as port:
            report = self.report("%s:%d" % (HOST, port))
        self.check_talk(report, "secret", "runs without a secret", "start it without")

    def test_another_cluster(self):
        with self.agent("cluster=another") as port:
            report = self.report("%s:%d" % (HOST, port), wait_s=LATER_S)
            self.check_talk(report, "cluster", "belongs to another cluster than 'pycoslite'", "same cluster name")
            self.assertIn("another cluster name", report["steps"]["discovery"]["seen"])
            self.assertEqual(self.report("--cluster", "another", "%s:%d" % (HOST, port))["status"], "ok")

    def test_encryption(self):
        with self.agent() as port:
            step = self.report("%s:%d" % (HOST, port))["steps"]["encryption"]
            self.assertEqual((step["status"], step["seen"]), ("ok", "authenticated, not encrypted (same host)"))
            report = self.report("%s:%d" % (HOST, port), "--certfile", self.temp_dir() / "nothing.pem")
        self.assertEqual(report["steps"]["own TLS"]["status"], "failed")
        self.assertIn("nothing.pem", report["steps"]["own TLS"]["seen"])
        self.assertEqual(report["steps"]["session"]["details"], {"failed": "own TLS"})

    def test_one_that_demands_encryption(self):
        with self.agent(PYCOSLITE_ENCRYPT="always") as port:
            for other in interpreters()[:1] + interpreters()[-1:]:
                with self.subTest(other.version):
                    report = self.report("%s:%d" % (HOST, port), python=other.path, PYCOSLITE_ENCRYPT="always")
                    self.assertRegex(report["steps"]["encryption"]["seen"], "^authenticated, not encrypted|^tls-psk$")

    def test_another_secret_below_tls(self):
        newest = [other.path for other in interpreters() if other.version >= (3, 13)] + [sys.executable]
        other = self.file("other", "6" * 64)
        with self.agent(python=newest[0], PYCOSLITE_SECRET_FILE=str(other), PYCOSLITE_ENCRYPT="always") as port:
            report = self.report("%s:%d" % (HOST, port), python=newest[0], PYCOSLITE_ENCRYPT="always")
        self.check_talk(report, "secret", "another secret than this end", "run the doctor there")

    def test_one_certificate(self):
        key = pair(self.temp_dir())
        with self.agent() as port:
            report = self.report("%s:%d" % (HOST, port), "--certfile", key)
            self.check_talk(report, "encryption", "one end has a certificate and the other none", "both with certfile")
        with self.agent(PYCOSLITE_CERTFILE=str(key)) as port:
            report = self.report("%s:%d" % (HOST, port), "--certfile", key)
            self.assertEqual(report["status"], "ok", report)
            self.assertRegex(report["steps"]["encryption"]["seen"], "^tls 1.., certificates$")
            self.check_talk(self.report("%s:%d" % (HOST, port), "--certfile", pair(self.temp_dir())), "encryption",
                            "certificate", ".")

    def test_clock(self):
        with self.agent(program=SKEWED) as port:
            report = self.report("%s:%d" % (HOST, port))
        self.assertEqual((report["status"], report["steps"]["clock"]["status"]), ("warning", "warning"))
        self.assertIn("set both clocks", report["steps"]["clock"]["advice"])

    def test_as_text(self):
        done = self.run_doctor("%s:%d" % (HOST, free_port()))
        self.assertEqual((done.returncode, done.stderr), (2, ""))
        lines = done.stdout.splitlines()
        self.assertLess(max(map(len, lines)), 100)
        self.assertRegex(done.stdout, r"(?m)^FAILED  connection  127.0.0.1:\d+ refuses connections")
        self.assertEqual(lines[-3:-1], ["FAILED: connection", "WARNING: %sdiscovery" % ("addresses, " * ALONE)])
        self.assertTrue(lines[-1].startswith("not looked at: greeting, version, "))

    def test_interrupted(self):
        with socket.create_server((HOST, 0)) as listener:
            place = "%s:%d" % listener.getsockname()
            with running([sys.executable, "-m", "pycoslite", "doctor", "--wait", "0.2", place],
                         ready="^.*discovery", env=dict(self.environment, PYCOSLITE_HANDSHAKE_S="60")) as process:
                with listener.accept()[0]:          # it has connected, and would wait for a minute
                    process.signal(signal.SIGINT)
                    self.assertEqual(process.wait(), 130, process.output)
                self.assertNotIn("Traceback", process.output)

    def test_wrong_calls(self):
        done = self.run_doctor("--secret", "abc")
        self.assertEqual(done.returncode, 2)
        self.assertIn("usage:", done.stderr)


class Greets(socketserver.BaseRequestHandler):
    """Speaks first, as mail servers do."""

    def handle(self) -> None:
        self.request.sendall(b"220 mail.example.org ESMTP\r\n")
        self.request.recv(100)


@contextlib.contextmanager
def serving(handler: Any) -> Iterator[int]:
    """A server of another kind; its port."""
    with socketserver.ThreadingTCPServer((HOST, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def pair(folder: Path) -> Path:
    """A self-signed certificate with its key, in one file."""
    if not shutil.which("openssl"):
        raise unittest.SkipTest("there is no openssl here to make a certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
                    "-keyout", str(key), "-out", str(certificate)], check=True, stderr=subprocess.DEVNULL)
    both = folder / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    both.chmod(0o600)
    return both


@skip_unless_root
class TwoHostsTest(DoctorTestCase):
    """Two machines on a cable."""

    def setUp(self):
        super().setUp()
        manager = two_hosts()
        self.one, self.two = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)

    @contextlib.contextmanager
    def there(self) -> Iterator[Tuple[str, int]]:
        """A process on the other host; where it is."""
        words = [sys.executable, AGENT, "discover_peers=True", "secret=", "name=there", "host=None"]
        with self.two.running(words, ready=r"READY \S+:(\d+)", env=self.environment) as process:
            yield self.two.address, int(process.match.group(1))

    def test_good(self):
        with self.there() as place:
            report = self.report("%s:%d" % place, host=self.one, wait_s=LATER_S)
            self.assertEqual(report["status"], "ok", report)
            self.assertEqual(report["steps"]["route"]["details"]["source"], {self.two.address: self.one.address})
            self.assertEqual(report["processes"][0]["name"], "there")
            report = self.report(host=self.one, wait_s=LATER_S)
            self.assertEqual([row["name"] for row in report["processes"]], ["there"])
            self.assertEqual(set(report["steps"]["broadcast"]["details"]["heard_from"]), {HOST, self.one.address})

    def test_two_addresses_on_one_network(self):
        self.one.ip("address", "add", self.one.address.rpartition(".")[0] + ".78/24", "broadcast", "+",
                    "dev", self.one.interface)
        step = self.report(host=self.one)["steps"]["broadcast"]
        self.assertEqual((step["status"], step["details"]["not_heard_from"]), ("ok", []), step)

    def test_no_host_of_that_address(self):
        nobody = self.two.address.rpartition(".")[0] + ".77"
        report = self.report(nobody + ":9705", host=self.one)
        self.check_talk(report, "connection", "is unreachable", "see that the host is on")

    def test_packets_are_dropped(self):
        self.two.ip("route", "add", "blackhole", self.one.address + "/32")     # what it would answer goes nowhere
        with self.there() as place:
            report = self.report("%s:%d" % place, host=self.one, **IMPATIENT)
        self.check_talk(report, "connection", "does not answer: somebody drops the packets", "firewall")

    def test_no_route(self):
        step = self.report("198.51.100.7:9705", host=self.one)["steps"]["route"]
        self.assertEqual(step["status"], "failed")
        self.assertIn("no route to 198.51.100.7", step["seen"])

    def test_only_loopback(self):
        self.one.cable(False)
        step = self.report("%s:1" % HOST, host=self.one)["steps"]["addresses"]
        self.assertEqual(step["status"], "warning")
        self.assertIn("no other machine can reach this one", step["seen"])


class ReportTest(TestCase):
    """The parts that need no process."""

    def test_lines_are_short_whatever_is_said(self):
        report = dict(pycoslite="1", python="3", host="h", target=None, status="failed", log=["word"], processes=[
            dict(name="n" * 90, location="l" * 90, role="r" * 90, python="3", cluster="c" * 5, round_trip_s=None)],
            steps=[dict(step="s", status="failed", seen="word " * 80, advice="word " * 80, details={})])
        lines = list(pycoslite.step_lines(report["steps"][0])) + list(pycoslite.summary_lines(report))
        self.assertLess(max(map(len, lines)), 100)
        self.assertEqual(lines[-1], "FAILED: s")
        self.assertEqual("".join(lines).count("word"), 161)

    def test_each_step_needs_only_earlier_ones(self):
        for steps in pycoslite._HERE_STEPS, pycoslite._THERE_STEPS:
            known: set = set()
            for name, function, needs in steps:
                self.assertTrue(callable(function))
                self.assertLessEqual(set(needs), known, name)
                known.add(name)
