"""Pycos itself: one object, its options, its end, what it tells of tasks; constants and names of all generations."""
from __future__ import annotations

import concurrent.futures
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import unittest
from typing import Any
from unittest import mock

import pycoslite
from pycoslite import MisuseError, MonitorStatus, Pycos, SysTask, Task
from tests.support import ROOT, TestCase, free_port, running

COME_S = 60                             # everything that is waited for comes within this, or the test fails
LOCAL = dict(host="127.0.0.1", tcp_port=0, discover_peers=False, secret="tests")


class FacadeTestCase(TestCase):
    """A test that leaves no kernel behind."""

    def setUp(self):
        self.addCleanup(lambda: Pycos().terminate())

    def do(self, function: Any, *args: Any) -> Any:
        """Result of a task."""
        task = Task(function, *args)
        result = task.value(COME_S)
        self.assertFalse(task.is_alive())
        self.assertNotIsInstance(result, MonitorStatus)
        return result


class SingletonTest(FacadeTestCase):
    def test_one_object_whatever_it_is_called(self):
        self.assertIs(Pycos(), Pycos.instance())
        self.assertIs(Pycos(), pycoslite.AsynCoro())

    def test_options_start_the_network_also_later(self):
        first = Pycos()
        self.assertIsNone(first.location)
        self.assertIs(Pycos(name="late", **LOCAL), first)
        self.assertEqual(first.name, "late")

    def test_options_after_the_network_are_refused_aloud(self):
        Pycos(name="first", **LOCAL)
        with self.expect_log("name=.* is ignored"):
            Pycos(name="second")
        self.assertEqual(Pycos(**LOCAL).name, "first")

    def test_a_new_one_after_the_end(self):
        first = Pycos()
        self.assertTrue(first.is_alive())
        first.terminate()
        self.assertFalse(first.is_alive())
        first.terminate()
        first.finish()
        self.assertIsNot(Pycos(), first)
        self.assertTrue(Pycos().is_alive())


class OptionsTest(FacadeTestCase):
    def test_names_of_all_generations(self):
        for old in ("node", "ip_addr"):
            with self.subTest(old):
                node = Pycos(**{old: ["127.0.0.1"]}, udp_port=free_port(), tcp_port=0, ext_ip_addr="192.0.2.1",
                             discover_peers=False, peers=[], secret="tests", name="n", certfile=None, keyfile=None,
                             notifier=None, dest_path_prefix=None, max_file_size=0, ipv4_udp_multicast=False,
                             socket_family=socket.AF_INET)
                self.assertEqual([location.addr for location in node.locations], ["192.0.2.1"])
                node.terminate()

    def test_what_cannot_be_had_is_refused(self):
        for name, value in (("notifier", 1),):
            with self.subTest(name), self.assertRaisesRegex(MisuseError, r"%s=.* cannot be had yet: \w+" % name):
                Pycos(**{name: value})
        with self.assertRaisesRegex(MisuseError, "AF_INET6"):
            Pycos(socket_family=socket.AF_UNIX)
        with self.assertRaisesRegex(TypeError, "no option colour; it has: .*tcp_port"):
            Pycos(colour="red")
        self.assertIsNone(pycoslite.running_network())

    def test_values_that_an_option_cannot_have(self):
        wrong = {"host": (5, b"127.0.0.1", [None], {}), "ext_host": (5, [None]), "name": (5, b"n", "x" * 513),
                 "tcp_port": (-1, 65536, "9705", 1.5, True, [0, "x"]), "udp_port": (-1, 65536, "9705", [1], True),
                 "cluster": (5, "\N{SNOWMAN}" * 100), "max_file_size": (-1, "5", 1.5), "max_total_size": (-1, "10M")}
        for name, values in wrong.items():
            for value in values:
                with self.subTest(name, value=value), self.assertRaisesRegex(
                        MisuseError, r"Pycos\(%s=.*\): it must be an? " % name):
                    Pycos(**dict(LOCAL, **{name: value}))
        for peers in (None,), (("127.0.0.1", 9705),), (5,):
            with self.subTest(peers), self.assertRaisesRegex(ValueError, "is no address: it must be a Location"):
                Pycos(**dict(LOCAL, peers=peers))
        self.assertIsNone(pycoslite.running_network())

    def test_values_that_ask_for_nothing(self):
        node = Pycos(**dict(LOCAL, ext_host="", cluster=None, name=None, role=None, max_file_size=None, udp_port=None))
        self.assertEqual((node.location.addr, node.network.cluster), ("127.0.0.1", "pycoslite"))

    def test_a_directory_in_the_home_and_one_in_bytes(self):
        home = self.temp_dir()
        before = os.environ["HOME"]
        self.addCleanup(os.environ.__setitem__, "HOME", before)
        os.environ["HOME"] = str(home)
        for path in "~/received", os.fsencode(str(home / "received")):
            node = Pycos(**dict(LOCAL, dest_path=path))
            self.assertEqual(node.dest_path, str(home / "received"))
            node.terminate()

    def test_a_mistake_starts_nothing_and_the_next_call_may_do_better(self):
        occupied = self.temp_dir() / "file"
        occupied.touch()
        wrong = ((dict(dest_path=str(occupied / "d")), OSError, "received files, dest_path='.*/d', cannot be made: Not a"),
                 (dict(peers=["[::1"]), ValueError, ""),
                 (dict(host="192.0.2.77"), OSError, "no such address"))
        for made_before in False, True:
            for options, error, sentence in wrong:
                with self.subTest(options, made_before=made_before):
                    before = Pycos() if made_before else None
                    with self.assertRaisesRegex(error, sentence):
                        Pycos(**dict(LOCAL, **options))
                    self.assertIsNone(pycoslite.running_network())
                    node = Pycos(name="better", **{name: value for name, value in LOCAL.items() if name != "host"})
                    self.assertIs(before or node, node)
                    self.assertEqual(node.name, "better")
                    node.terminate()


class PlaceTest(FacadeTestCase):
    def test_without_a_network(self):
        node = Pycos()

        def proc(task=None):
            yield
            return task.location
        self.assertEqual((node.location, node.locations, node.name), (None, [], ""))
        self.assertEqual(repr(node), "<Pycos without network>")
        self.assertIsNone(self.do(proc))

    def test_with_a_network(self):
        node = Pycos(name="here", **LOCAL)

        def proc(task=None):
            yield
            return task.location
        self.assertEqual(repr(node), '"here" @ 127.0.0.1:%d' % node.network.port)
        self.assertEqual(node.locations, [node.location])
        self.assertEqual(self.do(proc), node.location)
        node.terminate()
        self.assertEqual((node.location, node.name), (None, ""))


class CurrentTest(FacadeTestCase):
    def test_scheduler_and_task_of_a_thread(self):
        def proc(task=None):
            yield
            return (Pycos.scheduler() is Pycos(), Pycos.cur_task() is task, Pycos.cur_task(Pycos()) is task,
                    pycoslite.AsynCoro.cur_coro() is task)
        self.assertEqual(self.do(proc), (True,) * 4)
        self.assertIsNone(Pycos.scheduler())
        self.assertIsNone(Pycos.cur_task())
        self.assertIs(Task.scheduler(), Pycos())

    def test_system_tasks(self):
        Pycos(**LOCAL)
        found = []
        ended = threading.Event()

        def system(number, task=None):
            found.append((number, Pycos.cur_task() is task, Pycos.scheduler() is Pycos()))
            ended.set()
            yield
        SysTask(target=system, args=(5,))
        self.assertTrue(ended.wait(COME_S))
        self.assertEqual(found, [(5, True, True)])
        self.assertIs(SysTask.scheduler(), Pycos())
        with self.assertRaisesRegex(TypeError, "the function is missing"):
            SysTask(args=(5,))
        self.assertTrue(all(task["system"] for task in Pycos.status()["tasks"]))


class EndTest(FacadeTestCase):
    def test_join(self):
        def proc(task=None):
            yield task.receive()

        def daemon(task=None):
            task.set_daemon()
            yield task.receive()
        waiting = Task(daemon)
        task = Task(proc)
        self.wait_until(lambda: waiting.daemon)
        with self.expect_log(r"waiting for proc/\d+$"):
            self.assertFalse(Pycos().join(show_running=True, timeout=0.01))
        task.send(None)
        self.assertTrue(Pycos().join(timeout=COME_S))

    def test_not_in_a_task(self):
        def proc():
            yield
            for call in (Pycos().join, Pycos().finish, Pycos().terminate):
                try:
                    call()
                except MisuseError as error:
                    self.assertIn("inside a task", str(error))
                else:
                    return call
        self.assertIsNone(self.do(proc))

    def test_calls_at_the_end_in_order(self):
        for end in (Pycos.finish, Pycos.terminate):
            with self.subTest(end.__name__):
                done = []

                def proc(task=None):
                    task.set_daemon()
                    try:
                        yield task.receive()
                    finally:
                        done.append("task")
                task = Task(proc)
                node = Pycos()
                for priority, text in ((1, "a"), (5, "b"), (1, "c"), (3, "dropped"), (-1, "last")):
                    node.atexit(priority, done.append, text)
                node.atexit(3, self.fail, msg="dropped as well")
                node.drop_atexit(3, done.append)
                node.drop_atexit(3, self.fail)
                node.drop_atexit(9, done.append)
                self.wait_until(lambda: task.daemon)
                end(node)
                self.assertEqual(done, ["task", "b", "c", "a", "last"])
                node.terminate()
                self.assertEqual(len(done), 5)

    def test_one_that_fails_does_not_stop_the_others(self):
        done = []
        Pycos().atexit(1, done.append, "done")
        Pycos().atexit(2, int, "x")
        with self.expect_log("registered with Pycos.*failed"):
            Pycos().terminate()
        self.assertEqual(done, ["done"])

    def test_at_the_end_of_the_program(self):
        code = ("import pycoslite\ndef proc(task=None):\n    yield task.sleep(0.01)\n    print('task')\n"
                "pycoslite.Task(proc)\npycoslite.Pycos().atexit(1, print, 'call', sep='')\n"
                "pycoslite.Pycos().atexit(2, print, 'first')\nprint('main')\n")
        with running([sys.executable, "-W", "error", "-X", "dev", "-c", code]) as process:
            self.assertEqual(process.wait(), 0)
            self.assertEqual(process.output.split(), ["main", "task", "first", "call"])


class MonitorOfAnotherProcess:
    """Stands for a monitor in another process: what it is sent must be fit for that."""

    remote = True

    def __init__(self) -> None:
        self.got: list = []

    def send(self, message: Any) -> int:
        try:
            pycoslite.serialize(message.value)
        except TypeError:
            return -1
        self.got.append(message)
        return 0


class NoticeTest(FacadeTestCase):
    def test_a_value_that_cannot_be_sent_is_replaced_by_that_news(self):
        monitor = MonitorOfAnotherProcess()

        def proc(task=None):
            yield task.receive()
            return threading.Lock()
        task = Task(proc)
        self.assertEqual(task.notify(monitor), 0)
        task.send(None)
        self.assertIsNotNone(task.value(COME_S))
        (notice,) = monitor.got
        self.assertEqual((notice.info, notice.type), (task, TypeError))
        self.assertIn("is a lock, which cannot be sent", notice.value)


class NamesTest(FacadeTestCase):
    def test_register_and_unregister(self):
        def named(task=None):
            yield task.receive()

        def main():
            task, other = Task(named), Task(named)
            statuses = [task.register(), task.register("second"), other.register(), other.register("second"),
                        task.register(5), task.register("^x"), task.unregister("third"), other.unregister("second")]
            found = [(yield Task.locate("named")) is task, (yield Task.locate("second")) is task]
            statuses += [task.unregister(), other.register()]
            task.send(None)
            other.send(None)
            yield task.finish()
            yield other.finish()
            return statuses, found, [task.register(), other.unregister()], [name for name in pycoslite.NAMES]
        self.assertEqual(self.do(main), ([0, 0, -1, -1, -1, -1, -1, -1, 0, 0], [True, True], [-1, -1], []))


class SettingsTest(TestCase):
    """What the environment may say."""

    def setting(self, name, text):
        """Value of that setting."""
        with mock.patch.dict(os.environ, {"PYCOSLITE_" + name.upper(): text}):
            return getattr(pycoslite.Settings(), name)

    def test_values(self):
        for name, text, wanted in (("heartbeat_s", "1", 1.0), ("give_up_s", "0", 0.0), ("lanes", "0", 0),
                                   ("net_port", "65535", 65535), ("sync_files", "1", 1), ("encrypt", "never", "never"),
                                   ("ipv6_group", "ff02::1", "ff02::1"), ("ipv4_group", "239.1.2.3", "239.1.2.3")):
            self.assertEqual(self.setting(name, text), wanted)

    def test_values_that_make_no_sense(self):
        for name, text, sentence in (
                ("heartbeat_s", "soon", "'soon' is not a float .its default is 5.0"),
                ("sync_files", "yes", "not a int"),
                ("heartbeat_s", "0", "must be 0.001 or more"), ("heartbeat_s", "nan", "must be 0.001 or more"),
                ("give_up_s", "inf", "4000000.0 at most"), ("give_up_s", "-1", "must be 0 or more"),
                ("record_bytes", "2000000", "1024 or more, 1048576 at most"), ("frame_bytes", "0", "65536 or more"),
                ("missed_heartbeats", "0", "1 or more"), ("net_port", "70000", "65535 at most"),
                ("lanes_loss", "5", "1 at most"), ("ipv4_group", "10.0.0.1", "is not a group address"),
                ("ipv6_group", "everybody", "is not a group address")):
            with self.subTest(name, text=text), self.assertRaisesRegex(
                    ValueError, "PYCOSLITE_%s=.*%s" % (name.upper(), sentence)):
                self.setting(name, text)


class ConstantsTest(FacadeTestCase):
    def setUp(self):
        super().setUp()
        for name in ("MsgTimeout", "NetPort", "PickleProtocolVersion"):
            self.addCleanup(setattr, pycoslite, name, getattr(pycoslite, name))

    def test_values(self):
        self.assertEqual((pycoslite.MsgTimeout, pycoslite.NetPort), (10, pycoslite.settings.net_port))
        self.assertEqual(pycoslite.Settings.net_port, 9705)         # the tests have another one
        self.assertEqual(pycoslite.MaxConnectionErrors, 10)
        self.assertEqual(pycoslite.IPV4_MULTICAST_GROUP, "239.255.97.5")
        self.assertEqual(pycoslite.IPV6_MULTICAST_GROUP, "ff05::674f:48ba:b409:3171:9705")
        self.assertEqual((pycoslite.DispycosSchedulerPort, pycoslite.DispycosNodePort),
                         (pycoslite.NetPort, pycoslite.NetPort + 1))

    def test_assigning_sets_what_is_used(self):
        pycoslite.MsgTimeout = 3
        pycoslite.NetPort = 51350
        self.assertEqual((pycoslite.settings.message_timeout_s, pycoslite.settings.net_port), (3, 51350))

    def test_pickle_protocol(self):
        for version, used in ((2, 2), (0, 4), (None, 5), (4, 4)):
            with self.subTest(version):
                pycoslite.PickleProtocolVersion = version
                self.assertEqual(pycoslite.serialize([1])[:2], bytes([0x80, used]))
        for wrong in (6, -1, "2"):
            with self.assertRaisesRegex(ValueError, "None, or a number"):
                pycoslite.PickleProtocolVersion = wrong

    def test_what_has_no_effect_says_so(self):
        with self.expect_log("no effect"):
            pycoslite.MaxConnectionErrors = 3

    def test_names_of_all_generations(self):
        self.assertIs(pycoslite.Coro, Task)
        self.assertIs(pycoslite.Coroutine, Task)
        self.assertIs(pycoslite.SysCoro, SysTask)
        self.assertIs(pycoslite.AsynCoroSocket, pycoslite.AsyncSocket)
        self.assertIs(pycoslite.MonitorException, MonitorStatus)
        self.assertIs(pycoslite.Condition.notifyAll, pycoslite.Condition.notify_all)
        self.assertIs(pycoslite.Event.isSet, pycoslite.Event.is_set)
        self.assertIs(pycoslite.MetaSingleton, pycoslite.Singleton)
        self.assertIs(pycoslite.unserialize, pycoslite.deserialize)


HANGING = """
import time, pycoslite
def inner(lock):
    yield lock.acquire()                        # line 4: waits for ever
def outer(lock):
    yield inner(lock)                           # line 6
def owner(lock, task=None):
    yield lock.acquire()
    yield task.receive()
async def deep(task):
    await task.sleep(1000)                      # line 11
async def awaits(task=None):
    await deep(task)                            # line 13
def busy():
    never = False                               # (the lines are counted)
    while not never:
        time.sleep(0.01)                        # line 17: never yields
def main(task=None):
    yield busy()                                # line 19
lock = pycoslite.Lock()
pycoslite.Task(owner, lock)
pycoslite.Task(outer, lock)
pycoslite.Task(awaits).send("a message that nobody receives")
while not pycoslite.Pycos.status()["tasks"][2]["mailbox"]:
    time.sleep(0.001)
pycoslite.Task(main)
while not any(place[1] == 17 for task in pycoslite.Pycos.status()["tasks"] for place in task["stack"]):
    time.sleep(0.001)
print("READY", flush=True)
"""


class StatusTest(FacadeTestCase):
    def test_what_tasks_do(self):
        def waits(task=None):
            yield task.receive(100)

        def sleeps(task=None):
            task.set_daemon()
            yield from task.suspend()

        def joins(other):
            yield other.finish()
        first = Task(waits)
        tasks = [first, Task(sleeps), Task(joins, first)]
        self.wait_until(lambda: all(task["state"] == "waiting" for task in Pycos.status()["tasks"]))
        tasks[1].send("kept")
        status = self.wait_until(lambda: [s for s in [Pycos().status()] if s["tasks"][1]["mailbox"]])[0]
        self.assertEqual(json.loads(json.dumps(status)), status)
        self.assertEqual((status["pid"], status["name"], status["peers"]), (os.getpid(), "", []))
        one, two, three = status["tasks"]
        self.assertEqual((one["name"], one["id"], one["waits_for"]), ("waits", first.id, "a message"))
        self.assertEqual((two["daemon"], two["waits_for"]), (True, "resume()"))
        for task in status["tasks"]:
            self.assertTrue(0 <= task["waited_s"] <= COME_S)
        self.assertEqual(three["waits_for"], "the end of %r" % first)
        line = sleeps.__code__.co_firstlineno + 2
        self.assertEqual(two["stack"], [[sleeps.__code__.co_filename, line, "sleeps"]])

    def test_every_wait_says_for_what(self):
        """One task for each kind of wait; {0} in a text is the task or thing that is waited for."""
        lock, condition, event = pycoslite.Lock(), pycoslite.Condition(), pycoslite.Event()
        semaphore, channel, pool = pycoslite.Semaphore(1), pycoslite.Channel("waits"), pycoslite.AsyncThreadPool(1)
        near, far = socket.socketpair()
        sock, child = pycoslite.AsyncSocket(near), pycoslite.Popen(["sleep", "60"])
        future, go = concurrent.futures.Future(), threading.Event()
        pipe = pycoslite.AsyncPipe(child)

        def owner(task=None):
            yield lock.acquire()
            yield semaphore.acquire()
            yield task.suspend()

        def notified():
            yield condition.acquire()
            yield condition.wait()
        owns = Task(owner)
        self.wait_until(lambda: lock.owner and not semaphore.value)
        waits = [
            (lambda task: task.receive(), "a message"), (lambda task: task.receive(99), "a message"),
            (lambda task: task.sleep(), r"resume\(\)"), (lambda task: task.sleep(99), r"resume\(\), or its time"),
            (lambda task: owns.finish(), "the end of %r" % owns),
            (lambda task: lock.acquire(), "a lock that %r holds" % owns),
            (lambda task: notified(), r"notify\(\) of a Condition, or its lock, among 1 tasks"),
            (lambda task: event.wait(), "an Event to be set"),
            (lambda task: semaphore.acquire(), "a Semaphore at 0, among 1 tasks"),
            (lambda task: channel.deliver(1, n=3), "a channel to have 3 subscribers"),
            (lambda task: pool.async_task(go.wait), r"wait\(\) in a thread of its pool"),
            (lambda task: sock.recv(10), r"<AsyncSocket %d> \(Recv\)" % near.fileno()),
            (lambda task: future, "<Future at .* state=pending>"),
            (lambda task: pipe.finish(), "the exit of process %d|.* s to pass" % child.pid),
        ]

        def waiting(wait, task=None):
            yield wait(task)
        tasks = [Task(waiting, wait) for wait, _ in waits]
        try:
            self.wait_until(lambda: all(task["state"] == "waiting" for task in Pycos.status()["tasks"]))
            told = {task["id"]: task for task in Pycos.status()["tasks"]}
            for task, (_, text) in zip(tasks, waits):
                with self.subTest(text):
                    self.assertRegex(told[task.id]["waits_for"], "^(%s)$" % text)
                    self.assertIsInstance(told[task.id]["waited_s"], float)
        finally:
            go.set()
            child.kill()
            Pycos().terminate()
            child.wait()
            pool.terminate()
            sock.close()
            far.close()

    def test_a_task_that_does_not_wait_any_more(self):
        """What it waited for before is not what it waits for now."""
        def proc(task=None):
            yield task.receive()
            while not done.is_set():
                yield
        done = threading.Event()
        self.addCleanup(done.set)
        Task(proc).send(None)
        self.wait_until(lambda: Pycos.status()["tasks"][0]["state"] != "waiting")
        for _ in range(100):
            self.assertIsNone(Pycos.status()["tasks"][0]["waits_for"])
        done.set()

    def test_dump_to_a_file(self):
        def proc(task=None):
            yield task.receive()  # here
        Task(proc)
        self.wait_until(lambda: Pycos.status()["tasks"][0]["state"] == "waiting")
        file = io.StringIO()
        pycoslite.dump(file)
        self.assertRegex(file.getvalue(), r"^1 tasks in process %d:\ntask proc/\d+ is waiting for a message, for [\d.]+"
                         r" s; messages in its mailbox: 0\n  File .*, in proc\n    yield task.receive\(\)  # here\n"
                         % os.getpid())
        self.assertIn("thread MainThread:", file.getvalue())

    @unittest.skipUnless(hasattr(signal, "SIGQUIT"), "there is no SIGQUIT here")
    def test_a_hanging_program_shows_where(self):
        path = self.temp_dir() / "hanging.py"
        path.write_text(HANGING)
        environment = {"PYTHONPATH": str(ROOT), "PYCOSLITE_DUMP_SIGNAL": "1"}
        with running([sys.executable, path], ready="READY", env=environment) as process:
            process.signal(signal.SIGQUIT)
            process.wait_for("thread MainThread:")
            text = process.output
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        for task, lines in (("outer", [6, 4]), ("awaits", [13, 11]), ("main", [19, 17])):
            part = re.search(r"^task %s/.*\n((?:  .*\n)*)" % task, text, re.MULTILINE)
            self.assertEqual([int(n) for n in re.findall(r"hanging.py\", line (\d+)", part.group(1))], lines, text)
        self.assertRegex(text, r"task outer/\d+ is waiting for a lock that owner/\d+ holds")
        self.assertRegex(text, r"task awaits/\d+ is waiting for resume\(\), or its time, for .* mailbox: 1")
        self.assertRegex(text, r"task main/\d+ is running;")
        self.assertIn("time.sleep(0.01)                        # line 17: never yields", text)

    @unittest.skipUnless(hasattr(signal, "SIGQUIT"), "there is no SIGQUIT here")
    def test_the_signal_is_asked_for(self):
        before = signal.getsignal(signal.SIGQUIT)
        self.addCleanup(signal.signal, signal.SIGQUIT, before)
        Pycos()
        self.assertEqual(signal.getsignal(signal.SIGQUIT), before)
        Pycos().enable_dump_signal()
        self.assertNotEqual(signal.getsignal(signal.SIGQUIT), before)

    def test_the_signal_in_another_thread(self):
        def proc():
            yield
            try:
                Pycos.enable_dump_signal()
            except MisuseError as error:
                return str(error)
        self.assertIn("main thread only", self.do(proc))


if __name__ == "__main__":
    unittest.main()
