"""Where the cluster's key comes from, and what is said when it cannot be had."""
from __future__ import annotations

import hashlib
import os
import socket
import stat
import subprocess
import sys
import traceback
import unittest
from unittest import mock

import dispycos_lite
import dispycosnode_lite
import pycoslite
from pycoslite import SecretError, secret_key
from tests.support import ROOT, TestCase, free_port, running, skip_unless_root

HEX = "00112233445566778899aabbccddeeff" * 2


class SecretsCase(TestCase):
    """A home and an environment of the test's own."""

    def setUp(self):
        self.home = self.temp_dir()
        for name, value in (("HOME", str(self.home)), ("PYCOSLITE_SECRET", None), ("PYCOSLITE_SECRET_FILE", None)):
            self.environment(name, value)

    def environment(self, name, value):
        """Set a variable, or remove it, for the test."""
        before = os.environ.get(name)
        self.addCleanup(lambda: os.environ.pop(name, None) if before is None else os.environ.update({name: before}))
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

    def file(self, text, mode=0o600):
        """A secret file with that content."""
        path = self.home / "chosen"
        path.write_text(text)
        path.chmod(mode)
        return str(path)


class SecretsTest(SecretsCase):
    def test_made_once_for_the_user_alone(self):
        key = secret_key()
        path = self.home / ".pycoslite" / "secret"
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(path.parent.stat().st_mode), 0o700)
        self.assertEqual(bytes.fromhex(path.read_text().strip()), key)
        self.assertEqual(secret_key(), key)
        self.assertEqual(sorted(os.listdir(path.parent)), ["secret"])

    def test_several_processes_that_make_it_at_once_agree(self):
        code = "import pycoslite, sys; sys.stdin.read(1); print(pycoslite.secret_key().hex())"
        processes = [subprocess.Popen([sys.executable, "-c", code], cwd=str(ROOT), stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True) for _ in range(6)]
        for process in processes:
            process.stdin.write("x")
            process.stdin.flush()
        keys = {process.communicate()[0] for process in processes}
        self.assertEqual(len(keys), 1, keys)
        self.assertEqual(os.listdir(self.home / ".pycoslite"), ["secret"])

    def test_order_of_the_places(self):
        found = [secret_key()]
        os.environ["PYCOSLITE_SECRET"] = "from the environment"
        found.append(secret_key())
        os.environ["PYCOSLITE_SECRET_FILE"] = self.file(HEX)
        found.append(secret_key())
        found.append(secret_key("argument"))
        self.assertEqual(len(set(found)), 4)
        self.assertEqual(found[2], bytes.fromhex(HEX))
        self.assertEqual(secret_key(secret_file=self.file("typed by a person")), secret_key("typed by a person"))
        with self.expect_log("running without authentication"):
            self.assertIsNone(secret_key(False))

    def test_typed_text_is_stretched_and_hexadecimal_digits_are_not(self):
        self.assertEqual(secret_key(secret_file=self.file(HEX + "\n")), bytes.fromhex(HEX))
        self.assertEqual(secret_key(HEX), bytes.fromhex(HEX))
        self.assertEqual(len(secret_key("x")), 32)
        short = HEX[:62]
        self.assertEqual(secret_key(secret_file=self.file(short)), secret_key(short))

    def test_a_file_that_others_can_read_is_a_warning(self):
        with self.expect_log("can be read by other users.*chmod 600"):
            secret_key(secret_file=self.file(HEX, 0o644))

    @skip_unless_root
    def test_a_file_of_another_user_is_a_warning(self):
        path = self.file(HEX)
        os.chown(path, 12345, 12345)
        with self.expect_log("secret file .* belongs to another user .*number 12345.*use a file of your own"):
            secret_key(secret_file=path)

    def test_sentences_for_what_goes_wrong(self):
        with self.assertRaisesRegex(SecretError, "chosen is empty: remove it"):
            secret_key(secret_file=self.file(" \n"))
        with self.assertRaisesRegex(SecretError, "cannot read the secret file .*nowhere"):
            secret_key(secret_file=str(self.home / "nowhere"))

    def test_only_a_text_is_a_secret(self):
        """Of a number, `bytes` would make so many zeros, which many could guess."""
        for secret in 0, 87654, True, 1.5, ["a text"]:
            with self.subTest(type(secret)), self.assertRaisesRegex(SecretError, "must be a text") as refused:
                secret_key(secret)
            self.assertNotIn("87654", str(refused.exception))

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs a file that is always full")
    def test_a_full_disk_keeps_nothing_of_it(self):
        def opened(descriptor, *how, **options):
            os.close(descriptor)
            return open("/dev/full", *how, **options)
        with mock.patch.object(pycoslite, "open", opened, create=True):
            with self.assertRaisesRegex(SecretError, "cannot make the secret file .*No space left"):
                secret_key()
        self.assertEqual(os.listdir(self.home / ".pycoslite"), [])

    def test_an_empty_text_is_none_at_all(self):
        self.assertEqual(secret_key(""), secret_key())

    def test_no_home_that_can_be_written(self):
        (self.home / "file").write_text("")
        os.environ["HOME"] = str(self.home / "file")        # below a file nothing can be made, not even by root
        with self.assertRaisesRegex(SecretError, "cannot make the secret file .*set HOME to a folder"):
            secret_key()

    @unittest.skipUnless(os.name == "posix", "file modes")
    def test_a_secret_never_shows_in_a_repr(self):
        network_key = secret_key("do not tell")
        result = pycoslite.HandshakeResult(bytes(16), {}, network_key, network_key, 1)
        self.assertNotIn(repr(network_key), repr(result))

    def test_a_guess_costs_64_mib_of_scrypt(self):
        """Which takes more than 0.1 s of the processors that there are; more memory than a cheap chip has for a try."""
        used = {}

        def scrypt(text, **options):
            used.update(options)
            return bytes(options["dklen"])
        with mock.patch.object(hashlib, "scrypt", scrypt, create=True):
            secret_key("not stretched before")
        self.assertGreaterEqual(128 * used["n"] * used["r"] * used["p"], 64 << 20)
        self.assertEqual(used["dklen"], 32)


class ExposureTest(SecretsCase):
    """A process that others can reach demands the secret, or was told not to; and nobody can read the secret off it."""

    NODE = [sys.executable, "dispycosnode_lite.py", "--daemon", "--cpus", "1"]

    def no_home(self):
        """Make it impossible to make a secret."""
        (self.home / "file").write_text("")
        os.environ["HOME"] = str(self.home / "file")

    def test_without_a_secret_nothing_listens(self):
        self.no_home()
        self.addCleanup(pycoslite.stop_default)
        for host in (None, "127.0.0.1"):
            with self.assertRaisesRegex(SecretError, "cannot make the secret file"):
                pycoslite.Pycos(host=host, tcp_port=0, discover_peers=False)
            self.assertIsNone(pycoslite.running_network())

    def test_a_node_without_a_secret_does_not_start(self):
        self.no_home()
        port = free_port()
        done = subprocess.run(self.NODE + ["--tcp_ports", str(port), "--udp_port", str(free_port())], cwd=str(ROOT),
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stdout, "dispycosnode_lite: cannot make the secret file .*: set HOME to a folder")
        with self.assertRaises(ConnectionError):
            socket.create_connection(("127.0.0.1", port))

    def test_open_only_if_that_is_said(self):
        self.no_home()
        with self.expect_log("running without authentication: whoever reaches this process can run code in it"):
            pycoslite.Pycos(tcp_port=0, secret=False, discover_peers=False).terminate()
        command = self.NODE + ["--no-auth", "--tcp_ports", free_port(), "--udp_port", free_port()]
        with running(command, ready="listening at") as node:
            self.assertIn("authentication is switched off (--no-auth): whoever reaches this node", node.output)

    @unittest.skipUnless(os.path.isdir("/proc/self"), "reads the command lines of all processes from /proc")
    def test_no_command_line_has_it(self):
        def told_in_a_command_line(text):
            import os                   # this runs in a server
            found = []
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open("/proc/%s/cmdline" % pid, "rb") as file:
                        found += [pid] if text in file.read().decode("latin-1") else []
                except OSError:         # it has just ended
                    continue
            return found
        secret = os.urandom(32).hex()
        name = "secrets-%d" % os.getpid()
        with self.expect_log("using 1 cores of this machine"):
            cluster = dispycos_lite.Cluster(cpus=1, cluster=name, secret_file=self.file(secret))
        with cluster:
            self.assertEqual(cluster.submit(told_in_a_command_line, secret).result(60), [])
            sleeper = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)", secret]
            with running(sleeper, ready="up") as process:                       # the probe finds what there is
                self.assertEqual(cluster.submit(told_in_a_command_line, secret).result(60), [str(process.pid)])

    def test_no_log_has_it(self):
        text = "correct horse battery staple"
        path, port = self.file(text), free_port()
        command = self.NODE + ["--debug", "--secret-file", path, "--tcp_ports", port, "--udp_port", free_port()]
        with running(command, ready="listening at") as node:
            with dispycos_lite.Cluster(nodes=["127.0.0.1:%d" % port], secret_file=path) as cluster:
                self.assertEqual(cluster.submit(abs, -1).result(60), 1)
            self.assertIn("is online", node.output)
            self.assert_hidden(text, node.output)

    def assert_hidden(self, text, shown):
        """Neither the text nor the key that is made of it is in `shown`, in whatever form."""
        key = secret_key(text)
        derived = pycoslite.keyed_digest(key, b"pycoslite tls-psk")
        for form in [text] + [spell for made in (key, derived) for spell in (made.hex(), repr(made)[2:-1])]:
            self.assertNotIn(form, shown)

    def test_no_repr_and_no_traceback_has_it(self):
        text = "correct horse battery staple"
        key = secret_key(text)
        options = dispycosnode_lite.parse_options(["--secret", text], {}, (4, "the test"))
        handshake = pycoslite.Handshake("dial", key, bytes(16), {}, bytes(32), "c")
        for thing in (options, handshake, pycoslite.Secrecy(key, None), pycoslite.RecordSealer(key)):
            self.assert_hidden(text, repr(thing))
        refused = [lambda: handshake.receive(b"PYCL" + bytes(35)),
                   lambda: pycoslite.Handshake("x", key, b"", {}, b"", "c"),
                   lambda: pycoslite.RecordOpener(key).feed(bytes(4 + 16))]
        for refuse in refused:
            try:
                refuse()
            except pycoslite.PycosError:
                self.assert_hidden(text, traceback.format_exc())
            else:
                self.fail("it was not refused")
        with mock.patch.object(hashlib, "scrypt", create=True):
            del hashlib.scrypt
            with self.assertRaisesRegex(SecretError, "cannot stretch a typed secret") as caught:
                secret_key(text + "!")
        self.assert_hidden(text, str(caught.exception))
