"""The node's command line and environment."""
from __future__ import annotations

import contextlib
import io
import os
import re
import time
import unittest
from typing import Any, Dict, List

import dispycosnode_lite as node
import pycoslite
from tests import support

FOUR = (4, "4 CPUs in this machine")


def parse(*argv: str, **environ: str) -> node.NodeOptions:
    return node.parse_options(argv, environ, FOUR)


class RefusedCase(support.TestCase):
    """Helpers for what must not be accepted."""

    def refused(self, *argv: str, available: Any = FOUR, **environ: str) -> List[str]:
        """The lines that are printed; the exit status must be 2."""
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed), self.assertRaises(SystemExit) as caught:
            node.parse_options(argv, environ, available)
        self.assertEqual(caught.exception.code, 2)
        lines = printed.getvalue().splitlines()
        self.assertEqual(len(lines), 2, lines)
        self.assertRegex(lines[0], r"^dispycosnode_lite: \S")
        self.assertRegex(lines[1], r"^  hint: \S")
        return lines

    def assert_refused(self, cases: List[Any]) -> None:
        """Each case: the words of the command line, a part of the first line, a part of the hint."""
        for argv, problem, hint in cases:
            with self.subTest(argv=argv):
                lines = self.refused(*argv.split())
                self.assertIn(problem, lines[0])
                self.assertIn(hint, lines[1])


class ValuesTest(RefusedCase):
    """One option at a time."""

    def test_defaults_need_nothing(self) -> None:
        options = parse()
        self.assertEqual((options.cpus, options.cpus_note), FOUR)
        self.assertEqual((options.hosts, options.ext_hosts, options.tcp_ports, options.peers), ((), (), (), ()))
        self.assertEqual((options.udp_port, options.scheduler_port), (pycoslite.settings.net_port,) * 2)
        self.assertEqual((options.serve, options.max_file_size, options.dest_path), (-1, None, None))
        self.assertEqual((options.auth, options.daemon, options.debug), (True, False, False))
        self.assertTrue(options.name)
        self.assertEqual(options.warnings, ())

    def test_every_spelling_of_the_documents_is_taken(self) -> None:
        for flags, name, text, value in (
                ("-i --ip_addr --host", "hosts", "10.0.0.7", ("10.0.0.7",)),
                ("--ext_ip_addr --ext_host", "ext_hosts", "a.example", ("a.example",)),
                ("--tcp_ports --node_ports", "tcp_ports", "5000-5002", (5000, 5001, 5002)),
                ("-u --udp_port", "udp_port", "51350", 51350),
                ("--scheduler_port", "scheduler_port", "51350", 51350),
                ("-c --cpus", "cpus", "2", 2),
                ("-n --name", "name", "node7", "node7"),
                ("--dest_path", "dest_path", "d", "d"),
                ("--max_file_size", "max_file_size", "10", 10),
                ("--serve", "serve", "3", 3),
                ("--zombie_period", "zombie_period", "1000", 1000),
                ("--msg_timeout", "msg_timeout", "20", 20.0),
                ("--min_pulse_interval", "pulses", "5", (5.0, 100.0)),
                ("--max_pulse_interval", "pulses", "50.5", (10.0, 50.5)),
                ("--secret-file --secret_file", "secret_file", "f", "f"),
                ("--start_method", "start_method", "spawn", "spawn")):
            for flag in flags.split():
                with self.subTest(flag=flag):
                    self.assertEqual(getattr(parse(flag, text), name), value)
        options = parse("--daemon", "-d", "--discover_peers")
        self.assertEqual((options.daemon, options.debug, options.discover_peers), (True, True, True))
        for flag in ("--clean", "--phoenix"):
            self.assertTrue(parse(flag).clean)

    def test_repeatable_options_keep_their_order(self) -> None:
        options = parse("-i", "b", "--host", "a", "--peer", "h:1", "--peer", "[::1]:2", "--peer", "g",
                        "--scheduler_port", "7")
        self.assertEqual(options.hosts, ("b", "a"))
        self.assertEqual(options.peers, (
            pycoslite.Location("h", 1), pycoslite.Location("::1", 2), pycoslite.Location("g", 7)))

    def test_max_file_size_units(self) -> None:
        for text, value in (("0", 0), ("512", 512), ("1k", 1024), ("1K", 1024), ("10M", 10 << 20), ("2g", 2 << 30),
                            ("1T", 1 << 40)):
            self.assertEqual(parse("--max_file_size", text).max_file_size, value, text)

    def test_wrong_values_are_one_line_and_a_hint(self) -> None:
        self.assert_refused([
            ("--cpus two", "--cpus: 'two' is not a whole number", "--cpus 2"),
            ("--tcp_ports 0", "--tcp_ports: 0 is too small, the least is 1", "51347-51355"),
            ("--tcp_ports 70000", "--tcp_ports: 70000 is too large, the most is 65535", "51347"),
            ("--tcp_ports 5-", "'' is not a whole number", "51347"),
            ("--tcp_ports 9-5", "the range 9-5 ends before it begins", "51347"),
            ("--tcp_ports a-b", "'a' is not a whole number", "51347"),
            ("--peer head:port", "--peer: 'head:port' is not an address", "--peer head.example.org:9705"),
            ("--max_file_size 10X", "--max_file_size: '10X' is not a size", "10M"),
            ("--max_file_size M", "'M' is not a size", "10M"),
            ("--max_file_size -5", "'-5' is not a size", "10M"),
            ("--serve -2", "--serve: -2 is too small", "--serve 1"),
            ("--zombie_period -1", "--zombie_period: -1 is too small", "1000"),
            ("--min_pulse_interval x", "'x' is not a number of seconds", "--min_pulse_interval 5"),
            ("--msg_timeout 0", "0 is no time to wait", "--msg_timeout 20"),
            ("--msg_timeout nan", "nan is no time to wait", "--msg_timeout 20"),
            ("--min_pulse_interval 200", "200 is longer than --max_pulse_interval 100", "--max_pulse_interval"),
            ("--service_start 25:00", "'25:00' is not a time of day", "17:00"),
            ("--service_start 17", "'17' is not a time of day", "17:00"),
            ("--service_start 17:00", "--service_start alone says nothing", "--service_stop or --service_end"),
            ("--service_start 17:00 --service_stop 08:00 --service_end 07:00",
             "--service_start 17:00, --service_stop 08:00 and --service_end 07:00 do not follow each other", "for e"),
            ("--service_start 17:00 --service_end 17:00",
             "--service_start 17:00, --service_stop is not given and --service_end 17:00 do not", "for example"),
            ("--start_method thread", "'thread' is not one of fork, spawn", "fork or spawn"),
            ("--cpus", "expected one argument", "--cpus 2"),
            ("--cpu 3", "unrecognized arguments: --cpu 3", "did you mean --cpus?"),
            ("--deamon", "unrecognized arguments: --deamon", "did you mean --daemon?"),
            ("hello", "unrecognized arguments: hello", "--help"),
        ])
        self.assertIn("is empty or not printable", self.refused("--name", "a\nb")[0])

    def test_help_names_default_and_variable_of_each_option(self) -> None:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), self.assertRaises(SystemExit) as caught:
            parse("--help")
        self.assertEqual(caught.exception.code, 0)
        text = " ".join(printed.getvalue().split())
        for option in node.OPTIONS:
            self.assertIn("[%s]" % option.variable, text)
            self.assertIn("(default: ", option.text, option.name)
        self.assertEqual(text.count("python3 dispycosnode_lite.py"), 3)

    def test_examples_in_help_are_good(self) -> None:
        commands = [re.split(r"\s{3,}", line.strip())[0].split() for line in node.EXAMPLES.splitlines()]
        commands = [words[2:] for words in commands if words[:1] == ["python3"]]
        self.assertEqual(len(commands), 3)
        for words in commands:
            node.parse_options(words, {}, (8, "8 CPUs"))


class HoursTest(RefusedCase):
    """The service window."""

    def test_phases(self) -> None:
        """Times are as in the documents' main example, and with each part left out; minutes of the day -> phase."""
        for argv, phases in (
                ("--service_start 17:00 --service_stop 07:00 --service_end 08:00",
                 {"16:59": "closed", "17:00": "open", "23:59": "open", "00:00": "open", "06:59": "open",
                  "07:00": "stopping", "07:59": "stopping", "08:00": "closed", "12:00": "closed"}),
                ("--service_start 9:00 --service_end 17:30",
                 {"08:59": "closed", "09:00": "open", "17:29": "open", "17:30": "closed", "00:00": "closed"}),
                ("--service_start 9:00 --service_stop 17:30",
                 {"08:59": "stopping", "09:00": "open", "17:29": "open", "17:30": "stopping", "00:00": "stopping"}),
                ("--service_start 9:00 --service_stop 17:00 --service_end 17:00",
                 {"09:00": "open", "17:00": "closed"})):
            hours = parse(*argv.split()).hours
            for text, phase in phases.items():
                with self.subTest(argv, text=text):
                    self.assertEqual(hours.phase(node._time_of_day(text)), phase)

    def test_start_is_now_unless_it_is_given(self) -> None:
        values = {"service_start": None, "service_stop": 60, "service_end": None}
        hours = node._service_hours(values, lambda: time.struct_time((2026, 1, 1, 23, 45, 0, 0, 0, 0)))
        self.assertEqual((hours.start, hours.phase(0), hours.phase(60)), (23 * 60 + 45, "open", "stopping"))
        self.assertEqual(values, {})
        self.assertIsNone(parse().hours)

    def test_sentence(self) -> None:
        self.assertEqual(node.Hours(17 * 60, 7 * 60, 8 * 60).sentence(),
                         "this node serves from 17:00 to 07:00; what runs then may go on until 08:00")
        self.assertEqual(node.Hours(17 * 60, None, 8 * 60).sentence(), "this node serves from 17:00 to 08:00")


class ConfigTest(RefusedCase):
    """--save_config and --config."""

    def save(self, *argv: str) -> str:
        """Path of the file that these options were saved to."""
        path = str(self.temp_dir() / "node.ini")
        with self.assertRaises(SystemExit) as caught:
            parse(*argv, "--save_config", path)
        self.assertEqual(caught.exception.code, 0)
        return path

    def test_what_is_saved_comes_back(self) -> None:
        argv = ("-c", "3", "--tcp_ports", "51347-51355", "--tcp_ports", "7000", "--max_file_size", "10M", "--daemon",
                "--service_start", "17:00", "--service_end", "08:00", "--peer", "head:9705", "--serve", "2",
                "--dest_path", "/var/100%/{x}", "--secret-file", "s")
        saved = parse("--config", self.save(*argv))
        self.assertEqual(saved, parse(*argv))

    def test_the_file_is_text_with_all_options(self) -> None:
        path = self.save("--max_file_size", "10M", "--host", "10.0.0.7", "--name", "n")
        with open(path) as file:
            text = file.read()
        self.assertTrue(text.startswith("[DEFAULT]\n"), text)
        self.assertIn("max_file_size = 10M\n", text)
        self.assertIn("\nserve = \n", text)
        for name in ("hosts", "name", "secret", "config", "save_config"):
            self.assertNotIn("\n%s =" % name, text)
        self.assertEqual(os.stat(path).st_mode & 0o077, 0)

    def test_the_secret_is_not_saved_and_that_is_said(self) -> None:
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            path = self.save("-s", "hunter2")
        self.assertIn("the secret is not saved", printed.getvalue())
        with open(path) as file:
            self.assertNotIn("hunter2", file.read())

    def test_command_line_wins_then_the_environment(self) -> None:
        path = self.save("-c", "3", "--serve", "5", "--ping_interval", "7", "--peer", "a:1")
        options = parse("--config", path, "-c", "2", "--peer", "b:2", PYCOSLITE_NODE_SERVE="6")
        self.assertEqual((options.cpus, options.serve, options.ping_interval), (2, 6, 7))
        self.assertEqual(options.peers, (pycoslite.Location("b", 2),))
        self.assertEqual(parse(PYCOSLITE_NODE_CONFIG=path).serve, 5)

    def test_wrong_files_are_named(self) -> None:
        folder = self.temp_dir()
        for text, problem in (("cpus = 2\n", "is no configuration"), ("[other]\ncpus = 2\n", "has a section [other]"),
                              ("[DEFAULT]\ncpu = 2\n", "there is no option cpu"),
                              ("[DEFAULT]\nsecret = x\n", "there is no option secret"),
                              ("[DEFAULT]\ncpus = __import__('os')\n", "is not a whole number"),
                              ("[DEFAULT]\nmax_file_size = 10X\n", "max_file_size in %s: '10X' is not a size"),
                              (None, "cannot be read: No such file")):
            path = folder / "wrong.ini"
            if text is None:
                path = folder / "none.ini"
            else:
                path.write_text(text)
            with self.subTest(text):
                self.assertIn(problem % path if "%s" in problem else problem, self.refused("--config", str(path))[0])
        self.assertIn("cannot be written", self.refused("--save_config", str(folder / "no" / "file"))[0])


class EnvironmentTest(RefusedCase):
    """Variables stand behind the command line and before the defaults."""

    def test_each_variable_is_read(self) -> None:
        options = parse(PYCOSLITE_NODE_CPUS="2", PYCOSLITE_NODE_HOSTS="a, b", PYCOSLITE_NODE_TCP_PORTS="7,9-10",
                        PYCOSLITE_NODE_DAEMON="yes", PYCOSLITE_NODE_DEBUG="0", PYCOSLITE_NODE_MAX_FILE_SIZE="1k",
                        PYCOSLITE_NODE_PEERS="h:1")
        self.assertEqual((options.cpus, options.hosts, options.tcp_ports), (2, ("a", "b"), (7, 9, 10)))
        self.assertEqual((options.daemon, options.debug, options.max_file_size), (True, False, 1024))
        self.assertEqual(options.peers, (pycoslite.Location("h", 1),))

    def test_command_line_wins(self) -> None:
        self.assertEqual(parse("-c", "3", PYCOSLITE_NODE_CPUS="2").cpus, 3)
        self.assertEqual(parse("--host", "c", PYCOSLITE_NODE_HOSTS="a,b").hosts, ("c",))

    def test_empty_variable_is_as_good_as_none(self) -> None:
        self.assertEqual(parse(PYCOSLITE_NODE_CPUS="").cpus, 4)

    def test_wrong_variable_is_named(self) -> None:
        for name, text in (("PYCOSLITE_NODE_CPUS", "many"), ("PYCOSLITE_NODE_DAEMON", "maybe")):
            self.assertIn(name, self.refused(**{name: text})[0])

    def test_secret_of_the_environment_is_left_to_pycoslite(self) -> None:
        options = parse("--secret-file", "f", PYCOSLITE_SECRET="x")
        self.assertEqual((options.secret, options.secret_file, options.warnings), (None, "f", ()))


class SecurityTest(RefusedCase):
    """Secrets and their absence."""

    def test_secret_on_the_command_line_warns_and_is_in_no_repr(self) -> None:
        options = parse("-s", "hunter2")
        self.assertEqual(options.secret, "hunter2")
        self.assertNotIn("hunter2", repr(options))
        self.assertEqual(len(options.warnings), 1)
        self.assertIn("--secret-file", options.warnings[0])
        self.assertNotIn("hunter2", options.warnings[0])

    def test_no_auth_warns(self) -> None:
        for flag in ("--no-auth", "--no_auth"):
            options = parse(flag)
            self.assertFalse(options.auth)
            self.assertIn("authentication is switched off", options.warnings[0])

    def test_contradictions_are_refused(self) -> None:
        self.assert_refused([
            ("-s a --secret-file b", "are both given", "--secret-file"),
            ("--no-auth -s a", "--no-auth contradicts", "leave one"),
            ("--no-auth --secret-file a", "--no-auth contradicts", "leave one"),
        ])


class CpusTest(RefusedCase):
    """How many servers."""

    def test_count(self) -> None:
        for asked, cpus in (("0", 4), ("1", 1), ("4", 4), ("-1", 3), ("-3", 1)):
            self.assertEqual(parse("--cpus", asked).cpus, cpus, asked)
        self.assertEqual(parse("--cpus", "-1").cpus_note, "--cpus -1 of 4 CPUs in this machine")

    def test_too_many_or_none_left_is_refused(self) -> None:
        self.assert_refused([
            ("--cpus 5", "--cpus 5 is more than this node has: 4 CPUs in this machine", "--cpus 4 is the most"),
            ("--cpus -4", "--cpus -4 leaves none", "--cpus -3 leaves one"),
        ])

    def test_quota_files(self) -> None:
        v2, v1 = "0::/user/app\n", "5:memory:/x\n4:cpu,cpuacct:/docker/ab\n"
        for name, files, quota in (
                ("none", {"proc/self/cgroup": v2}, None),
                ("no proc", {}, None),
                ("v2", {"proc/self/cgroup": v2, "sys/fs/cgroup/user/app/cpu.max": "150000 100000\n"}, 1.5),
                ("v2 max", {"proc/self/cgroup": v2, "sys/fs/cgroup/user/app/cpu.max": "max 100000\n"}, None),
                ("v2 above", {"proc/self/cgroup": v2, "sys/fs/cgroup/user/app/cpu.max": "400000 100000\n",
                              "sys/fs/cgroup/user/cpu.max": "200000 100000\n"}, 2.0),
                ("v2 in a container", {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
                ("v1", {"proc/self/cgroup": v1, "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_quota_us": "300000\n",
                        "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_period_us": "100000\n"}, 3.0),
                ("v1, host's path", {"proc/self/cgroup": v1, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
                                     "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 2.0),
                ("v1 unlimited", {"proc/self/cgroup": v1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                                  "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
                ("garbage", {"proc/self/cgroup": "what\n" + v2, "sys/fs/cgroup/user/app/cpu.max": "\n"}, None)):
            with self.subTest(name):
                self.assertEqual(node.cgroup_quota(str(self.tree(files))), quota)

    def test_quota_rounds_up_and_is_named(self) -> None:
        root = self.tree({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000"})
        count, note = node.available_cpus(str(root))
        self.assertEqual(count, 1)
        if node.available_cpus()[0] > 1:
            self.assertEqual(note, "1 CPUs by the control group's quota of 0.1")

    def test_this_machine_has_some(self) -> None:
        count, note = node.available_cpus()
        self.assertGreaterEqual(count, 1)
        self.assertIn(str(count), note)

    def tree(self, files: Dict[str, str]) -> Any:
        root = self.temp_dir()
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root


class PortsTest(RefusedCase):
    """The node takes the lowest, its servers the following ones, then those after the highest."""

    def test_table(self) -> None:
        for listed, cpus, ports in (
                ("", 2, tuple(pycoslite.settings.net_port + number for number in (1, 2, 3))),
                ("51347", 8, tuple(range(51347, 51356))),
                ("2345-2347 3799", 8, (2345, 2346, 2347, 3799, 3800, 3801, 3802, 3803, 3804)),
                ("3799 2345-2347", 2, (2345, 2346, 2347)),
                ("5-7 6-8", 3, (5, 6, 7, 8)),
                ("100-200", 1, (100, 101))):
            with self.subTest(listed=listed, cpus=cpus):
                argv = [word for port in listed.split() for word in ("--tcp_ports", port)]
                self.assertEqual(node.parse_options(argv, {}, (cpus, "")).ports(), ports)

    def test_no_room_above_is_refused(self) -> None:
        lines = self.refused("--tcp_ports", "65533")
        self.assertIn("4 servers need ports up to 65537", lines[0])
        self.assertIn("list 5 ports below 65536", lines[1])
        self.assertEqual(parse("--tcp_ports", "65531").ports()[-1], 65535)


if __name__ == "__main__":
    unittest.main()
