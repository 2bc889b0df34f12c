"""Who has the node and which processes there should be: no process, no clock, all invariants checked at each step."""
from __future__ import annotations

import random
import unittest
from typing import Any, List

import dispycosnode_lite as node
from dispycosnode_lite import (
    ForkGeneration, Grant, KillGeneration, KillServer, Refuse, ServerFacts, StartServer, Stop, TellServer, Wait)
from tests import support


def check(state: node.NodeState) -> None:
    """Raise AssertionError when `state` contradicts itself."""
    phases = [g.phase for g in state.generations.values()]
    assert set(phases) <= {"spare", "serving", "ending"}, phases
    assert phases.count("serving") == (state.holder is not None), (phases, state.holder)
    assert phases.count("spare") + phases.count("serving") == (not state.stopping), phases
    assert not state.queue or state.holder, "clients wait for a node that is free"
    clients = [c.client for c in state.queue] + ([state.holder.client] if state.holder else [])
    assert len(set(clients)) == len(clients), clients
    for (number, n), _ in state._due.items():
        generation = state.generations[number]
        assert generation.phase != "ending"
        assert all(s.state == "down" for s in generation.servers.values() if n in (None, s.n))
    for generation in state.generations.values():
        for server in generation.servers.values():
            check_server(state, generation, server)


def check_server(state: node.NodeState, generation: node.Generation, server: node.Server) -> None:
    if server.state == "up":
        assert server.port and server.process and server.up_since is not None, server
    else:
        assert server.port is None and server.process is None and server.up_since is None, server
    if server.state == "down" and generation.phase != "ending":
        keys = {(generation.number, server.n), (generation.number, None)}
        assert keys & set(state._due), "%r is down and nothing will start it" % server


class StateCase(support.TestCase):
    """A node of two cpus whose instructions are carried out by the test."""

    cpus = 2

    def setUp(self) -> None:
        self.clock = support.FakeClock()
        self.state = node.NodeState(self.cpus)
        self.generation = 1
        self.assertEqual(self.state.fork_spare(), [ForkGeneration(1)] + self.starts(1))

    def starts(self, generation: int) -> List[Any]:
        return [StartServer(generation, n) for n in range(1, self.cpus + 1)]

    def do(self, event: str, *arguments: Any, now: bool = False) -> List[Any]:
        """Send an event and check the state it leads to."""
        out = getattr(self.state, event)(*((self.clock(),) if now or event == "reserve" else ()), *arguments)
        check(self.state)
        return out

    def up(self, generation: int, n: int) -> List[Any]:
        self.do("server_started", generation, n, 100 + n)
        return self.do("server_ready", generation, n, 9706 + n, "%032x" % n, now=True)

    def facts(self, n: int) -> ServerFacts:
        return ServerFacts(n, "up", 100 + n, 9706 + n, "%032x" % n)

    def died(self, generation: int, n: int, reason: str = "exit status 1") -> List[Any]:
        return self.do("server_died", generation, n, reason, now=True)

    def release(self, client: str) -> List[Any]:
        return self.do("release", client, now=True)

    def gone(self, generation: int) -> List[Any]:
        return self.do("generation_died", generation, "killed by signal 9 (SIGKILL)", now=True)


class ClientsTest(StateCase):
    """reserve, release, the queue."""

    def test_first_client_gets_the_spare_with_the_servers_that_are_up(self) -> None:
        self.up(1, 2)
        self.assertEqual(self.do("reserve", "a", "Anna"), [Grant("a", 1, 2, (self.facts(2),))])
        self.assertEqual(self.up(1, 1), [TellServer("a", self.facts(1))])

    def test_others_wait_in_order_and_hear_who_has_it(self) -> None:
        self.do("reserve", "a", "Anna")
        self.assertEqual(self.do("reserve", "b", "Bert"), [Wait("b", 1, "Anna")])
        self.assertEqual(self.do("reserve", "c", "Cleo"), [Wait("c", 2, "Anna")])
        self.assertEqual(self.release("a"), [
            KillGeneration(1), ForkGeneration(2)] + self.starts(2) + [Grant("b", 2, 2, ()), Wait("c", 1, "Bert")])

    def test_asking_again_repeats_the_answer(self) -> None:
        self.do("reserve", "a", "Anna")
        self.do("reserve", "b", "Bert")
        self.up(1, 1)
        self.assertEqual(self.do("reserve", "a", "Anna"), [Grant("a", 1, 2, (self.facts(1),))])
        self.assertEqual(self.do("reserve", "b", "Bert"), [Wait("b", 1, "Anna")])

    def test_waiting_client_that_leaves_moves_those_behind_it(self) -> None:
        for client in "abcd":
            self.do("reserve", client, client.upper())
        self.assertEqual(self.release("b"), [Wait("c", 1, "A"), Wait("d", 2, "A")])
        self.assertEqual(self.release("d"), [])
        self.assertEqual(self.release("nobody"), [])

    def test_release_without_others_prepares_a_fresh_spare(self) -> None:
        self.do("reserve", "a", "Anna")
        self.assertEqual(self.release("a"), [KillGeneration(1), ForkGeneration(2)] + self.starts(2))
        self.assertEqual(self.gone(1), [])
        self.assertEqual(self.do("reserve", "a", "Anna"), [Grant("a", 2, 2, ())])

    def test_cpus_choose_the_first_servers_only(self) -> None:
        for n in (1, 2):
            self.up(1, n)
        self.assertEqual(self.do("reserve", "a", "Anna", 1), [Grant("a", 1, 1, (self.facts(1),))])
        self.assertEqual(self.died(1, 2), [StartServer(1, 2)], "the client heard of a server that is not its own")

    def test_cpus_table(self) -> None:
        for cpus, granted in ((0, 2), (1, 1), (2, 2), (-1, 1)):
            with self.subTest(cpus=cpus):
                state = node.NodeState(2)
                state.fork_spare()
                self.assertEqual(state.reserve(0.0, "a", "Anna", cpus)[0].cpus, granted)
        for cpus, words in ((3, "asked for were 3"), (-2, "asked for were all but 2")):
            refused, = self.do("reserve", "b", "Bert", cpus)
            self.assertIsInstance(refused, Refuse)
            self.assertIn(words, refused.reason)

    def test_refusal_keeps_new_clients_out_and_leaves_the_others(self) -> None:
        self.do("reserve", "a", "Anna")
        self.do("reserve", "b", "Bert")
        self.state.refusal = "closed until 17:00"
        self.assertEqual(self.do("reserve", "c", "Cleo"), [Refuse("c", "closed until 17:00")])
        self.assertEqual(self.do("reserve", "b", "Bert"), [Wait("b", 1, "Anna")])
        self.assertIn(Grant("b", 2, 2, ()), self.release("a"))

    def test_serve_none(self) -> None:
        self.state.serve = 0
        self.assertIn("--serve 0", self.do("reserve", "a", "Anna")[0].reason)

    def test_status_names_holder_and_waiting(self) -> None:
        self.do("reserve", "a", "Anna")
        self.do("reserve", "b", "Bert")
        self.up(1, 1)
        status = self.state.status()
        self.assertEqual((status["holder"], status["waiting"], status["served"]), ("Anna", ["Bert"], 0))
        self.assertEqual([server["state"] for server in status["servers"]], ["up", "starting"])


class ServersTest(StateCase):
    """Deaths and restarts."""

    def setUp(self) -> None:
        super().setUp()
        self.do("reserve", "a", "Anna")
        for n in (1, 2):
            self.up(1, n)

    def test_death_is_told_with_its_reason_and_the_server_replaced_at_once(self) -> None:
        self.clock.advance(60)
        self.assertEqual(self.died(1, 2, "killed by signal 9 (SIGKILL)"), [
            TellServer("a", ServerFacts(2, "down", 102, reason="killed by signal 9 (SIGKILL)")), StartServer(1, 2)])
        self.assertEqual(self.up(1, 2), [TellServer("a", self.facts(2))])

    def test_crash_loop_backs_off_up_to_the_last_delay(self) -> None:
        delays = []
        for _ in range(9):
            out = self.died(1, 1)
            self.assertIsInstance(out[0], TellServer)
            if StartServer(1, 1) in out:
                delays.append(0.0)
                continue
            delays.append(self.state.next_deadline() - self.clock())
            self.assertEqual(self.do("tick", now=True), [])
            self.clock.advance(delays[-1])
            self.assertEqual(self.do("tick", now=True), [StartServer(1, 1)])
        self.assertEqual(delays, [0.0, 0.0, 0.25, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0])

    def test_steady_life_ends_the_back_off(self) -> None:
        for _ in range(4):
            self.died(1, 1)
            self.do("tick", now=True)
            self.clock.advance(node.RESTART_DELAYS_S[-1])
            self.do("tick", now=True)
        self.up(1, 1)
        self.clock.advance(node.STEADY_S)
        self.assertIn(StartServer(1, 1), self.died(1, 1))

    def test_restart_kills_and_says_so(self) -> None:
        self.assertEqual(self.do("restart", "a", 2, "job 7 took too long"), [KillServer(1, 2)])
        self.assertEqual(self.died(1, 2, "killed by signal 9 (SIGKILL)"), [
            TellServer("a", ServerFacts(2, "down", 102, reason="restarted: job 7 took too long")), StartServer(1, 2)])
        self.up(1, 2)
        self.assertIn("exit status 1", str(self.died(1, 2)))

    def test_restart_of_a_server_in_back_off_starts_it_now(self) -> None:
        for _ in range(3):
            self.died(1, 1)
        self.assertIsNotNone(self.state.next_deadline())
        self.assertEqual(self.do("restart", "a", 1, "try again"), [StartServer(1, 1)])
        self.assertIsNone(self.state.next_deadline())

    def test_restart_is_for_the_holder_and_for_servers_there_are(self) -> None:
        for arguments, words in ((("b", 1, ""), "only by the client"), (("a", 3, ""), "no server 3"),
                                 (("a", 0, ""), "no server 0")):
            refused, = self.do("restart", *arguments)
            self.assertIn(words, refused.reason)

    def test_events_of_an_ended_generation_are_ignored(self) -> None:
        self.release("a")
        self.assertEqual(self.died(1, 1), [])
        self.assertEqual(self.up(1, 2), [])
        self.gone(1)
        self.assertEqual(self.died(1, 2), [])
        self.assertEqual(self.up(1, 2), [])

    def test_reports_that_come_twice_or_after_the_death_change_nothing(self) -> None:
        self.assertEqual(self.do("server_ready", 1, 1, 9999, "ff", now=True), [])
        self.assertEqual(self.state.generations[1].servers[1].port, 9707)
        for _ in range(3):
            self.died(1, 1)
        deadline = self.state.next_deadline()
        self.assertIsNotNone(deadline)
        self.assertEqual(self.died(1, 1), [])
        self.assertEqual(self.up(1, 1), [])
        self.assertEqual(self.state.next_deadline(), deadline)

    def test_template_that_dies_takes_its_servers_down_and_all_come_back(self) -> None:
        out = self.do("generation_died", 1, "exit status 1", now=True)
        down = [TellServer("a", ServerFacts(n, "down", 100 + n, reason="its template process: exit status 1"))
                for n in (1, 2)]
        self.assertEqual(out, down + [ForkGeneration(1)] + self.starts(1))
        self.assertEqual(self.up(1, 1), [TellServer("a", self.facts(1))])

    def test_template_that_keeps_dying_backs_off(self) -> None:
        for _ in range(3):
            self.gone(1)
        self.assertEqual(self.do("tick", now=True), [])
        self.assertEqual(self.do("restart", "a", 1, "no use"), [])
        self.clock.advance(0.25)
        self.assertEqual(self.do("tick", now=True), [ForkGeneration(1)] + self.starts(1))


    def test_what_a_dead_server_had_begun_is_told(self) -> None:
        self.assertEqual(self.do("server_died", 1, 2, "exit status 1", 77, now=True)[0],
                         TellServer("a", ServerFacts(2, "down", 102, reason="exit status 1", begun=77)))
        out = self.do("generation_died", 1, "exit status 1", {1: 5}, now=True)
        self.assertEqual(out[0].server.begun, 5)


class IdleTest(StateCase):
    """A node that takes itself back from clients that run nothing for 60 s."""

    def setUp(self) -> None:
        super().setUp()
        self.state.zombie_s = 60.0
        self.looks = 0

    def pass_time(self, seconds: float, busy: bool = False, done: Any = 0) -> List[Any]:
        """Advance the clock; looks find what is given."""
        until, out = self.clock() + seconds, []
        while self.state.next_deadline() is not None and self.state.next_deadline() <= until:
            self.clock.advance(self.state.next_deadline() - self.clock())
            for instruction in self.do("tick", now=True):
                if isinstance(instruction, node.Look):
                    self.looks += 1
                    out += self.do("activity", instruction.generation, busy, done, now=True)
        self.clock.advance(until - self.clock())
        return out

    def test_a_client_that_runs_nothing_loses_the_node(self) -> None:
        self.do("reserve", "a", "Anna")
        self.do("reserve", "b", "Bert")
        self.assertEqual(self.pass_time(71, done=5), [], "the first look found something new")
        refused, kill, *rest = self.pass_time(2, done=5)
        self.assertEqual((refused.client, refused.idle, kill), ("a", True, KillGeneration(1)))
        self.assertIn("its client was idle for 60 s, --zombie_period 60 of the node", refused.reason)
        self.assertIn(Grant("b", 2, 2, ()), rest)
        self.assertEqual(self.looks, 6)

    def test_what_runs_or_has_run_is_no_idleness(self) -> None:
        self.do("reserve", "a", "Anna")
        self.assertEqual(self.pass_time(500, busy=True), [])
        for done in range(10):
            self.assertEqual(self.pass_time(59, done=done + 1), [])
        self.assertEqual(len([each for each in self.pass_time(80, done=10) if isinstance(each, Refuse)]), 1)

    def test_nobody_looks_at_a_node_without_a_client(self) -> None:
        self.assertEqual(self.pass_time(1000), [])
        self.assertEqual(self.looks, 0)
        self.do("reserve", "a", "Anna")
        self.release("a")
        self.assertIsNone(self.state.next_deadline())
        self.assertEqual(self.do("activity", 1, False, 0, now=True), [], "late news")

    def test_without_a_limit_nobody_looks(self) -> None:
        self.state.zombie_s = 0
        self.do("reserve", "a", "Anna")
        self.assertIsNone(self.state.next_deadline())


class PauseTest(StateCase):
    """Out of service for a while."""

    def test_pause_lets_what_runs_run_on_and_sends_the_others_away(self) -> None:
        self.do("reserve", "a", "Anna")
        self.do("reserve", "b", "Bert")
        self.assertEqual(self.do("pause", "closed until 17:00"), [Refuse("b", "closed until 17:00"),
                                                                  node.Pause("a", "closed until 17:00")])
        self.assertEqual(self.do("reserve", "c", "Cleo"), [Refuse("c", "closed until 17:00")])
        self.assertEqual(self.release("a")[0], KillGeneration(1))
        self.do("resume")
        self.assertEqual(self.do("reserve", "c", "Cleo"), [Grant("c", 2, 2, ())])

    def test_vacate_ends_what_runs(self) -> None:
        self.assertEqual(self.do("vacate", "it is 8:00", now=True), [])
        self.do("resume")
        self.do("reserve", "a", "Anna")
        self.do("reserve", "b", "Bert")
        self.assertEqual(self.do("vacate", "it is 8:00", now=True), [
            Refuse("b", "it is 8:00"), Refuse("a", "it is 8:00"), KillGeneration(1), ForkGeneration(2),
            *self.starts(2)])


class StopTest(StateCase):
    """The end of the node."""

    def test_stop_refuses_who_waits_and_ends_when_all_is_dead(self) -> None:
        self.do("reserve", "a", "Anna")
        self.do("reserve", "b", "Bert")
        self.assertEqual(self.do("stop", "shutting down"), [Refuse("b", "shutting down"), KillGeneration(1)])
        self.assertEqual(self.do("stop", "again"), [])
        self.assertEqual(self.do("reserve", "c", "Cleo"), [Refuse("c", "again")])
        self.assertEqual(self.gone(1), [Stop()])

    def test_serve_limit_stops_after_the_last_client(self) -> None:
        self.state.serve = 2
        self.do("reserve", "a", "Anna")
        self.do("reserve", "b", "Bert")
        self.do("reserve", "c", "Cleo")
        self.assertIn(Grant("b", 2, 2, ()), self.release("a"))
        self.gone(1)
        refused, kill = sorted(self.release("b"), key=lambda i: type(i).__name__, reverse=True)
        self.assertEqual((refused.client, kill), ("c", KillGeneration(2)))
        self.assertIn("served the 2 clients", refused.reason)
        self.assertEqual(self.gone(2), [Stop()])

    def test_stop_while_nothing_runs(self) -> None:
        state = node.NodeState(1)
        self.assertEqual(state.stop("early"), [Stop()])


class RandomEventsTest(support.TestCase):
    """Any order of events keeps the invariants, and whoever waits is served in the end."""

    def test_random_histories(self) -> None:
        for seed in range(150):
            with self.subTest(seed=seed):
                World(random.Random(seed)).run(300)


class World:
    """Carries instructions out as the real processes would: late, and with deaths in between."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.clock = rng, support.FakeClock()
        self.state = node.NodeState(rng.randint(1, 4), zombie_s=rng.choice((0.0, 0.0, 5.0)))
        self.templates: dict = {}           # generation -> {n: True when ready} of living processes
        self.up: dict = {}                  # client -> the servers it believes to be up
        self.granted: List[str] = []
        self.asked: List[str] = []
        self.killed: set = set()            # "died" is owed for these
        self.stopped = False
        self.carry_out(self.state.fork_spare())

    def carry_out(self, instructions: List[Any]) -> None:
        check(self.state)
        for instruction in instructions:
            getattr(self, "on_" + type(instruction).__name__)(instruction)

    def on_ForkGeneration(self, i: ForkGeneration) -> None:
        assert i.generation not in self.templates
        self.templates[i.generation] = {}

    def on_StartServer(self, i: StartServer) -> None:
        if i.generation in self.templates:              # else it has just died, and that is being reported
            assert i.n not in self.templates[i.generation], "started twice"
            self.templates[i.generation][i.n] = False

    def on_KillServer(self, i: KillServer) -> None:
        if self.templates.get(i.generation, {}).pop(i.n, None) is not None:
            self.carry_out(self.state.server_died(self.clock(), i.generation, i.n, "killed"))

    def on_KillGeneration(self, i: KillGeneration) -> None:
        self.killed.add(i.generation)

    def on_Grant(self, i: Grant) -> None:
        self.granted.append(i.client)
        self.up[i.client] = {server.n for server in i.servers}

    def on_TellServer(self, i: TellServer) -> None:
        assert i.client == self.granted[-1]
        (self.up[i.client].add if i.server.state == "up" else self.up[i.client].discard)(i.server.n)

    def on_Wait(self, i: Wait) -> None:
        assert i.position >= 1 and i.holder

    def on_Refuse(self, i: Refuse) -> None:
        pass

    def on_Pause(self, i: node.Pause) -> None:
        assert i.client == self.state.holder.client

    def on_Look(self, i: node.Look) -> None:
        busy, done = self.rng.random() < 0.3, self.rng.randint(0, 2)
        self.carry_out(self.state.activity(self.clock(), i.generation, busy, done))

    def on_Stop(self, i: Stop) -> None:
        self.stopped = True

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.clock.advance(self.rng.choice((0.0, 0.01, 0.3, 2.0)))
            self.rng.choice((self.client, self.client, self.ready, self.ready, self.die, self.template_dies,
                             self.ended, self.time_passes, self.hours))()
        self.state.resume()
        self.serve_everybody()
        self.carry_out(self.state.stop("the end"))
        self.ended()
        assert not self.templates
        assert self.stopped

    def client(self) -> None:
        client = self.rng.choice("abcde")
        if self.rng.random() < 0.6:
            self.carry_out(self.state.reserve(self.clock(), client, client.upper(), self.rng.choice((0, 1, 9, -1))))
        elif self.rng.random() < 0.8:
            self.carry_out(self.state.release(self.clock(), client))
        else:
            self.carry_out(self.state.restart(client, self.rng.randint(1, 3), "why not"))

    def hours(self) -> None:
        what = self.rng.randint(0, 5)
        if what == 0:
            self.carry_out(self.state.pause("it is late"))
        elif what == 1:
            self.carry_out(self.state.vacate(self.clock(), "it is too late"))
        else:
            self.state.resume()

    def ready(self) -> None:
        for generation, servers in list(self.templates.items()):
            for n in [n for n, up in servers.items() if not up]:
                servers[n] = True
                self.carry_out(self.state.server_ready(self.clock(), generation, n, 9706 + n, "ab"))

    def die(self) -> None:
        generation = self.rng.choice(list(self.templates) or [0])
        if self.templates.get(generation):
            n = self.rng.choice(list(self.templates[generation]))
            del self.templates[generation][n]
            self.carry_out(self.state.server_died(self.clock(), generation, n, "exit status 1"))

    def template_dies(self) -> None:
        if self.templates and self.rng.random() < 0.3:
            self.end(self.rng.choice(list(self.templates)))

    def ended(self) -> None:
        for number in list(self.killed):
            self.end(number)

    def end(self, number: int) -> None:
        self.templates.pop(number, None)
        self.killed.discard(number)
        self.carry_out(self.state.generation_died(self.clock(), number, "gone"))

    def time_passes(self) -> None:
        deadline = self.state.next_deadline()
        if deadline is not None:
            self.clock.advance(max(0.0, deadline - self.clock()))
            self.carry_out(self.state.tick(self.clock()))

    def serve_everybody(self) -> None:
        while self.state.holder:
            self.time_passes()
            self.ready()
            holder = self.state.holder
            if holder is None:                          # it was idle
                break
            if self.state.next_deadline() is None:
                assert self.up[holder.client] == set(range(1, holder.cpus + 1)), (self.up, holder)
            waiting = [known.client for known in self.state.queue]
            self.carry_out(self.state.release(self.clock(), holder.client))
            assert not waiting or self.granted[-1] == waiting[0]


if __name__ == "__main__":
    unittest.main()
