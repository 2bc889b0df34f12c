"""What could not be confirmed is reported, message by message, to whoever asked; else one line of the log counts it."""
from __future__ import annotations

import pickle
import signal
import sys
import threading
import unittest
from typing import Any, List
from unittest import mock

import pycoslite
from pycoslite import Channel, MonitorStatus, Pycos, Session, Settings, Task, Undelivered, encode_frame
from tests.support import running
from tests.test_pycoslite_network import COME_S, QUICK
from tests.test_pycoslite_remote_channels import PEER, ServiceTestCase


class UndeliveredTest(ServiceTestCase):
    def reports(self) -> List[Undelivered]:
        """The list that all reports from now on are put into."""
        listener, got = self.collector()
        self.assertEqual(Pycos().undelivered(listener), 0)
        return got

    def kill(self, process: Any) -> None:
        """Kill it, and wait until that is known."""
        process.signal(signal.SIGKILL)
        self.wait_until(lambda: not Pycos().network.peers)

    def let_go(self, agent: Any) -> None:
        """Wait until all that is sent to it has left this process, and so may arrive."""
        peer, session = agent.peer, agent.peer.session
        self.wait_until(lambda: not (peer.outbox or session._frames or session._ready))

    def settled(self, process: Any) -> Any:
        """Its agent, once all that was sent to it so far is confirmed."""
        def settle():
            yield process.agent.deliver(("number", -1))
        self.do(settle)
        session = process.agent.peer.session
        Pycos().network.post(session.confirm)
        self.wait_until(lambda: not session.unconfirmed_frames)
        return process.agent

    def test_each_message_in_order_with_all_that_is_known_of_it(self):
        self.node()
        process, got = self.peer(), self.reports()
        agent = self.settled(process)
        self.stop(process)
        sent = [("number", 0), ("number", 1, bytes(200_000)), ("number", 2)]        # short ones, and one uncopied
        for message in sent:
            self.assertEqual(agent.send(message), 0)
        self.let_go(agent)
        self.kill(process)
        self.wait_until(lambda: len(got) == len(sent))
        self.assertEqual([report.message for report in got], sent)
        for report in got:
            self.assertEqual((report.recipient, report.channel, report.location), (agent, None, process.at))
            self.assertEqual(report.status, Undelivered.UNKNOWN)
            self.assertIn("its process has ended", report.reason)
        self.assertIn("unknown (its process has ended", repr(got[0]))

    def test_what_never_left_is_told_from_what_may_have_arrived(self):
        self.setting(heartbeat_s=0.2, give_up_s=1.0)
        self.node()
        process, got = self.peer(), self.reports()
        agent = self.settled(process)
        self.stop(process)
        agent.send("on its way")
        self.wait_until(lambda: not agent.peer.online)
        agent.send("queued")
        self.wait_until(lambda: len(got) == 2)
        self.assertEqual([(report.message, report.status) for report in got],
                         [("on its way", "unknown"), ("queued", "never sent")])
        process.signal(signal.SIGKILL)              # it would not hear another signal
        self.assertIn("not reached for 1 seconds", got[0].reason)

    def test_messages_of_channels_name_each_subscriber(self):
        self.node()
        process = self.peer()
        there, here = self.channel_of(process), Channel("here")
        heard = self.listen(process, here, 2)

        def chain():
            return (yield here.subscribe(there))
        self.assertEqual(self.do(chain), 0)
        self.settled(process)
        got = self.reports()
        self.stop(process)
        there.send("directly")
        for message in ("to all", bytes(100_000)):
            here.send(message)
        self.kill(process)
        self.wait_until(lambda: len(got) == 1 + 2 * 3)
        first, rest = got[0], got[1:]
        self.assertEqual((first.recipient, first.channel, first.message), (there, None, "directly"))
        self.assertEqual([report.channel for report in rest], ["here"] * 6)
        self.assertEqual([report.message for report in rest], ["to all"] * 3 + [bytes(100_000)] * 3)
        self.assertEqual(rest[2].recipient, there)
        self.assertEqual(len({report.recipient for report in rest}), 3)
        self.assertEqual(heard, [])

    def test_of_a_delivery_its_result_tells(self):
        self.node()
        process, got = self.peer(), self.reports()
        there, agent = self.channel_of(process), self.settled(process)
        self.stop(process)

        def deliver(to):
            return (yield to.deliver("lost"))
        waiting = [Task(deliver, to) for to in (agent, there)]
        self.wait_until(lambda: agent.peer.session.unconfirmed_frames >= 2)
        self.kill(process)
        self.assertEqual([task.value(COME_S) for task in waiting], [0, 0])
        self.assertEqual(got, [])

    def test_without_a_listener_the_log_counts_and_names(self):
        self.node()
        process = self.peer()
        self.assertEqual((Pycos().undelivered("no task"), Pycos().undelivered(None)), (-1, 0))
        agent = self.settled(process)
        self.stop(process)
        for number in range(5):
            agent.send(("number", number))
        self.let_go(agent)
        with self.expect_log(r"5 messages were not confirmed, 5 of them may have arrived: its process has ended .*"
                             r"; they were for task/%d@%s$" % (agent.id, process.at)):
            self.kill(process)

    def test_a_listener_that_has_ended_is_forgotten(self):
        self.node()
        process, agent = self.peer(), None

        def brief():
            yield
        task = Task(brief)
        task.value(COME_S)
        Pycos().undelivered(task)
        agent = self.settled(process)
        self.stop(process)
        agent.send("lost")
        with self.expect_log("1 messages were not confirmed"):
            self.kill(process)
        self.assertEqual(Pycos().network.undelivered, {})

    def test_listeners_that_have_ended_do_not_add_up(self):
        network = self.node().network

        def brief(task=None):
            self.assertEqual((Pycos().undelivered(task), Pycos().peer_status(task)), (0, 0))
            yield
        for _ in range(50):
            Task(brief).value(COME_S)
        self.assertLess(len(network.undelivered), 3)
        self.assertLess(len(network.roster.watchers), 3)

    def test_what_only_this_module_sends_is_nobodys_loss(self):
        """Requests and notices of its own, which a process that is killed had not confirmed."""
        self.node()
        process, got = self.peer(), self.reports()
        agent = self.settled(process)
        self.stop(process)
        agent.terminate()
        agent.peer.notify("task.unseek", {"id": 1})

        def search():
            return (yield Task.locate("nobody", process.at, 0.05))
        self.assertIsNone(self.do(search))
        Pycos().undelivered(None)
        self.kill(process)                          # an unexpected line of the log would fail the test
        self.assertEqual(got, [])

    def test_what_a_thread_sends_while_the_peer_is_given_up_is_reported_too(self):
        self.node()
        process, got = self.peer(), self.reports()
        agent = self.settled(process)
        lost, go_on = threading.Event(), threading.Event()

        def between() -> None:                      # the thread has seen that the peer lives
            lost.set()
            go_on.wait(COME_S)
        thread = threading.Thread(target=lambda: agent.send(_SlowToPickle(between)))
        thread.start()
        lost.wait(COME_S)
        with self.lost_messages():
            self.kill(process)
        go_on.set()
        thread.join()
        self.wait_until(lambda: got)
        self.assertEqual((got[0].message, got[0].status, len(got)), ("slow", "never sent", 1))

    def test_a_report_can_be_sent_on(self):
        self.node()
        process, other, got = self.peer(), self.peer("name=other"), self.reports()
        agent = self.settled(process)
        self.stop(process)
        agent.send({"what": "lost"})
        self.let_go(agent)
        process.signal(signal.SIGKILL)
        self.wait_until(lambda: got)
        back = self.ask(other.agent, "echo", got[0])
        self.assertEqual((back.recipient, back.message, back.status, back.reason, back.location),
                         (agent, {"what": "lost"}, "unknown", got[0].reason, process.at))

    def test_every_message_is_confirmed_or_reported(self):
        """10,000 messages to a process that is killed while they arrive: what it noted and what is reported is all."""
        self.node()
        process, got, count = self.peer(), self.reports(), 10_000
        agent = self.settled(process)

        def send():
            for number in range(count):
                agent.send(("number", number))
                if number == count // 2:
                    process.signal(signal.SIGKILL)
                if not number % 50:
                    yield
        self.do(send)
        self.wait_until(lambda: not Pycos().network.peers)
        self.wait_until(lambda: got and got[-1].message == ("number", count - 1))
        reported = [report.message[1] for report in got]
        self.assertEqual(reported, list(range(reported[0], count)))
        self.assertEqual(agent.peer.session.unconfirmed_frames, 0)


class _SlowToPickle:
    """Becomes "slow"; calls a function while it is pickled."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> tuple:
        self.function()
        return str, ("slow",)


class BoundTest(ServiceTestCase):
    def test_a_queue_without_a_connection_is_shorter(self):
        limits = Settings(window_messages=100, queue_messages=10)
        session, frame = Session(1, limits), encode_frame(64, b"")
        for number in range(1, 20):
            self.assertEqual(session.push(frame, len(frame)), number < 10)
            self.assertFalse(session.flooded)
        session.push(frame, len(frame))
        self.assertTrue(session.flooded)
        session.connected()
        session.on_session(2, 0, 0)                 # 20 of 100: there is room
        self.assertEqual((session.below_window, session.flooded), (True, False))
        for number in range(21, 101):
            self.assertEqual(session.push(frame, len(frame)), number < 100)
        session.disconnected()
        self.assertEqual((session.below_window, session.flooded), (False, True))
        lost = session.lost(3)
        self.assertEqual((len(lost), session.below_window), (100, True))

    def test_a_session_without_a_reserve(self):
        session, frame = Session(1, Settings(window_messages=5, queue_messages=10)), encode_frame(64, b"")
        self.assertEqual([session.push(frame, len(frame)) for _ in range(5)], [True] * 4 + [False])

    def test_who_sends_on_without_a_step_waits_where_he_is(self):
        """A task that never yields, and a peer that takes nothing: the window is filled twice, and no more."""
        self.setting(window_messages=2000, queue_messages=2000, heartbeat_s=0.2, give_up_s=0.5)
        self.node()
        process, got = self.peer(), []
        most, agent = [0], process.agent
        self.stop(process)

        def send(task=None):
            accepted = 0
            for number in range(20_000):
                accepted += agent.send(("number", number)) == 0
                most[0] = max(most[0], agent.peer.session.unconfirmed_frames + len(agent.peer.outbox))
            return accepted
            yield
        listener, got = self.collector()
        Pycos().undelivered(listener)
        accepted = self.do(send)
        self.wait_until(lambda: len(got) >= accepted)
        self.assertLess(most[0], 2 * 2000 + 3000)
        self.assertEqual([report.message[1] for report in got if report.message[0] == "number"], list(range(accepted)))
        process.signal(signal.SIGKILL)              # it would not hear another signal

    def test_nothing_is_withheld_for_ever(self):
        a, b = Session(1), Session(2)
        for one, other in ((a, b), (b, a)):
            one.connected()
            one.on_session(other.local_sid, 0, 0)
        b.withhold(True)
        self.assertIsNone(b.note_received(5, 100, 0.0))
        b.confirm()
        self.assertIsNone(b.ack_deadline)
        b.withhold(False)
        self.assertEqual(b.ack_deadline, 0.0)


class RelayTest(ServiceTestCase):
    def test_holding_back_again_and_again_leaves_one_timer(self):
        network = self.node().network
        source, target = [pycoslite.Peer(network, bytes((n,)) * 16) for n in (1, 2)]
        timers, done = [], threading.Event()

        def often() -> None:
            target.session.below_window = False
            for _ in range(100):
                pycoslite._Passing.wait(source, target)
                timers.append(len(network.engine.timers))
                self.assertTrue(source.session._withheld)
                held, target.held = target.held, []
                for function in held:
                    function()
                self.assertFalse(source.session._withheld)
            source.state = "lost"
            pycoslite._Passing.wait(source, target)         # just now
            done.set()
        target.flush = mock.Mock()                  # it would be dialled
        source.flush = mock.Mock()
        before = len(network.engine.timers)
        network.post(often)
        self.assertTrue(done.wait(COME_S))
        self.assertLessEqual(max(timers), before + 1)
        self.assertEqual((network.passing, target.held), ({}, []))

    def test_who_was_not_waited_for_any_longer_does_not_end_another_wait(self):
        """A target that confirms nothing for a while is given up; when it has room after all, others may be waited for
        again."""
        network = self.node().network
        source, stuck, slow = [pycoslite.Peer(network, bytes((n,)) * 16) for n in (1, 2, 3)]
        done = threading.Event()

        def waits() -> None:
            stuck.session.below_window = slow.session.below_window = False
            pycoslite._Passing.wait(source, stuck)
            network.passing[source]._go_on(stuck)           # as its timer has it
            self.assertFalse(source.session._withheld)
            pycoslite._Passing.wait(source, slow)
            stuck.go_on()
            self.assertTrue(source.session._withheld)
            self.assertIn(source, network.passing)
            slow.go_on()
            self.assertFalse(source.session._withheld)
            self.assertEqual(network.passing, {})
            done.set()
        for peer in (source, stuck, slow):
            peer.flush = mock.Mock()                        # it would be dialled
        network.post(waits)
        self.assertTrue(done.wait(COME_S))

    def chain(self, window: int) -> tuple:
        """This process sends to a channel of `middle`, which passes on to one of `far`."""
        self.node()
        quick = dict(QUICK, PYCOSLITE_WINDOW_MESSAGES=str(window), PYCOSLITE_QUEUE_MESSAGES=str(window),
                     PYCOSLITE_HEARTBEAT_S="20", PYCOSLITE_ACK_MESSAGES="100")
        self.setting(window_messages=window, queue_messages=window)
        middle, far = self.peer_with(quick, "name=middle"), self.peer_with(quick, "name=far")
        there, beyond = self.channel_of(middle, "middle"), self.channel_of(far, "far")

        def subscribe():
            return (yield there.subscribe(beyond))
        self.assertEqual(self.do(subscribe), 0)
        return middle, far, there, beyond

    def peer_with(self, env: dict, *options: str) -> Any:
        """Like `peer`, with an environment."""
        process = self.enter(running([sys.executable, PEER, *options], ready=r"READY (\S+)", env=env))
        process.at = pycoslite.Location.parse(process.match.group(1))
        process.agent = self.find(process)
        return process

    def test_who_sends_through_a_channel_that_cannot_pass_on_is_held_back(self):
        middle, far, there, beyond = self.chain(1000)
        heard = self.listen(far, beyond)
        self.stop(far)
        sent = [0]

        def send():
            for number in range(10_000):
                there.send(number)
                sent[0] = number + 1
                yield
        task = Task(send)
        self.wait_until(lambda: there.peer.held)
        self.assertLess(sent[0], 4 * 1000 + 2000)           # both windows, and what the sockets and outboxes hold
        self.assertTrue(task.is_alive())
        far.signal(signal.SIGCONT)
        task.value(COME_S)
        self.wait_until(lambda: len(heard) == 10_000)
        self.assertEqual(heard, [("heard", number) for number in range(10_000)])
        self.assertIsNotNone(middle)


class StatusTest(ServiceTestCase):
    def test_a_status_of_ones_own_may_have_any_type(self):
        self.node()
        for kind in (7, "text", None, ValueError):
            back = pickle.loads(pickle.dumps(MonitorStatus("info", kind, "value")))
            self.assertEqual((back.info, back.type, back.value), ("info", kind, "value"))


if __name__ == "__main__":
    unittest.main()
