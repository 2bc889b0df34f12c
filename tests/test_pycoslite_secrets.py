"""Where the cluster's key comes from, and what is said when it cannot be had."""
from __future__ import annotations

import os
import stat
import subprocess
import sys
import unittest

import pycoslite
from pycoslite import SecretError, secret_key
from tests.support import ROOT, TestCase

HEX = "00112233445566778899aabbccddeeff" * 2


class SecretsTest(TestCase):
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

    def test_sentences_for_what_goes_wrong(self):
        with self.assertRaisesRegex(SecretError, "chosen is empty: remove it"):
            secret_key(secret_file=self.file(" \n"))
        with self.assertRaisesRegex(SecretError, "cannot read the secret file .*nowhere"):
            secret_key(secret_file=str(self.home / "nowhere"))

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
