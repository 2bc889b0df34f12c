"""TLS between peers: what both ends agree on, which certificates do, what the secret encrypts, and who is noticed."""
from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import dispycos_lite
import pycoslite
from pycoslite import (CAN_ENCRYPT, DEMANDS_ENCRYPTION, HAS_CERTIFICATE, WANTS_ENCRYPTION, AuthenticationError,
                       Handshake, Location, Pycos, PycosError, Refusal, SecretError, Task)
from tests import reliability
from tests.figures import SOAK
from tests.support import ROOT, TestCase, free_port, interpreters, running, two_hosts
from tests.test_pycoslite_network import AGENT, COME_S, HOST, SECRET, NetworkTestCase
from tests.test_pycoslite_security import SecurityTestCase

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
BOTH = CAN_ENCRYPT | WANTS_ENCRYPTION
FLAGS_AT = {b"P": 6, b"S": 1, b"A": 2}      # first byte of HELLO, START and AUTH -> where their flags are
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")      # is made faster than one of RSA
needs_openssl = unittest.skipUnless(shutil.which("openssl"),
                                    "makes its certificates with the openssl program, which is not here")


def python(lowest: Tuple[int, int], below: Tuple[int, int] = (4, 0)) -> str:
    """An interpreter of this machine from version `lowest` on and `below` another; the test is skipped without one."""
    candidates = [(sys.version_info[:2], sys.executable)] + list(interpreters())
    for version, path in candidates:
        if lowest <= version < below:
            return path
    raise unittest.SkipTest("there is no Python from %d.%d on and below %d.%d here" % (lowest + below))


# ======================================================================================================================
# What both ends agree on: no TLS, no network
# ======================================================================================================================


def end(role: str, flags: int, key: Optional[bytes] = KEY) -> Handshake:
    """One end that offers `flags`."""
    nonce, process_id = (b"1" * 32, b"a" * 16) if role == "dial" else (b"2" * 32, b"b" * 16)
    handshake = Handshake(role, key, process_id, {"name": role}, nonce, "c")
    handshake.offer(flags)
    return handshake


Mangle = Callable[[bytes], bytes]           # message -> what arrives in its place


def talk(a: Handshake, b: Handshake, mangle: Mangle = bytes, channels: Tuple[bytes, bytes] = (b"tls", b"tls")) -> list:
    """Let the ends talk until both are silent, with a TLS that needs no bytes; the errors of a and b. What is below TLS
    nobody can mangle."""
    ends, errors, silent = (a, b), [None, None], 0
    bound = [False, False]
    for turn in itertools.count(1):
        sender, receiver = turn % 2, 1 - turn % 2
        data = ends[sender].data_to_send()
        silent = 0 if data else silent + 1
        if data and not bound[sender]:
            data = mangle(data)
        if data and errors[receiver] is None and ends[receiver].result is None:
            try:
                ends[receiver].receive(data)
            except PycosError as error:
                errors[receiver] = error
        both = [handshake.channel != "" and error is None for handshake, error in zip(ends, errors)]
        if both == [True, True] and bound == [False, False] and not ends[0]._outbox:
            bound = [True, True]
            ends[0].bind(channels[0])
            ends[1].bind(channels[1])
        if silent > 2:
            return errors


class TermsTest(TestCase):
    """The channel follows from what both say, and is the same at both ends."""

    def agreed(self, one: int, other: int) -> str:
        a, b = end("dial", one), end("accept", other)
        self.assertEqual(talk(a, b), [None, None])
        self.assertEqual(a.result.channel, b.result.channel)
        self.assertEqual((a.result.flags & ~1, b.result.flags & ~1), (other, one))
        keys = {a.result.send_key, a.result.receive_key, b.result.send_key, b.result.receive_key}
        self.assertEqual(None in keys, a.result.channel != "")      # below TLS records have no MAC of their own
        return a.result.channel

    def test_every_combination(self):
        table = [
            (0, 0, ""), (CAN_ENCRYPT, CAN_ENCRYPT, ""), (BOTH, 0, ""), (BOTH, WANTS_ENCRYPTION, ""),
            (WANTS_ENCRYPTION, WANTS_ENCRYPTION, ""), (BOTH, CAN_ENCRYPT, "psk"), (BOTH, BOTH, "psk"),
            (HAS_CERTIFICATE, HAS_CERTIFICATE, "certificates"),
            (HAS_CERTIFICATE | BOTH, HAS_CERTIFICATE | BOTH, "certificates"),
            (BOTH | DEMANDS_ENCRYPTION, CAN_ENCRYPT, "psk"),
        ]
        for one, other, channel in table:
            with self.subTest(one=one, other=other):
                self.assertEqual((self.agreed(one, other), self.agreed(other, one)), (channel, channel))

    def assert_refused(self, one: int, other: int, refusal: int, sentence: str) -> None:
        for flags in ((one, other), (other, one)):
            a, b = end("dial", flags[0]), end("accept", flags[1])
            errors = talk(a, b)
            self.assertEqual((a.refusal, b.refusal, a.result, b.result), (refusal, refusal, None, None))
            for error in errors:
                self.assertIsInstance(error, AuthenticationError)
                self.assertRegex(str(error), sentence)

    def test_one_certificate_is_refused(self):
        for other in (0, BOTH):
            self.assert_refused(HAS_CERTIFICATE, other, Refusal.ONE_CERTIFICATE,
                                r"\(this one has (one|none)\): start both with certfile and keyfile, or both without")

    def test_whoever_demands_encryption_has_it_or_refuses(self):
        for other in (0, WANTS_ENCRYPTION):
            self.assert_refused(BOTH | DEMANDS_ENCRYPTION, other, Refusal.UNENCRYPTED,
                                "demands encryption .*Python 3.13 or newer at both ends, or start both with certfile")

    def test_an_end_that_says_nothing_of_tls_talks_to_one_that_could(self):
        """As releases did that knew nothing of it."""
        a, b = end("dial", 0), end("accept", CAN_ENCRYPT)
        self.assertEqual(talk(a, b), [None, None])
        self.assertIsNotNone(a.result.send_key)

    def test_a_start_that_was_not_agreed_on_is_refused(self):
        b = end("accept", 0)
        with self.assertRaisesRegex(AuthenticationError, "something between them changes"):
            b.receive(b"S\1")
        self.assertEqual(b.data_to_send()[-2:], bytes((0x52, Refusal.DOWNGRADED)))
        b = end("accept", BOTH)
        b.receive(b"S\x0d")
        b.bind(b"tls")
        with self.assertRaisesRegex(pycoslite.ProtocolError, "not pycoslite"):      # only once
            b.receive(b"S\x0d")

    def test_a_refusal_in_place_of_tls_is_understood(self):
        a = end("dial", BOTH)
        a.receive(end("accept", BOTH).data_to_send())
        self.assertEqual(a.data_to_send()[:1], b"S")
        with self.assertRaises(pycoslite.PeerBusy):
            a.receive(b"R" + bytes((Refusal.BUSY,)))

    def test_what_tls_says_first_is_no_refusal_once_it_has_begun(self):
        a = end("dial", BOTH)
        a.receive(end("accept", BOTH).data_to_send())
        for data in (b"\x16\x03\x03", b"R\x05 within a record"):
            a.receive(data)
            self.assertEqual(a.ciphertext(), data)
        self.assertEqual(a.ciphertext(), b"")

    def test_start_and_what_follows_cut_anyhow(self):
        for cut in range(6):
            b = end("accept", BOTH)
            stream = b"S" + bytes((1 | BOTH,)) + b"\x16\x03\x01"
            b.receive(stream[:cut])
            early = b.ciphertext() if b.channel else b""
            b.receive(stream[cut:])
            self.assertEqual((b.channel, early + b.ciphertext()), ("psk", b"\x16\x03\x01"))


class DowngradeTest(TestCase):
    """Somebody in between who changes what the ends say of TLS gets no session, whatever he changes it to."""

    OFFERS = [(HAS_CERTIFICATE, HAS_CERTIFICATE), (BOTH, BOTH), (BOTH, CAN_ENCRYPT), (CAN_ENCRYPT, BOTH),
              (BOTH | DEMANDS_ENCRYPTION, BOTH), (BOTH, 0), (0, BOTH), (CAN_ENCRYPT, CAN_ENCRYPT), (0, 0)]

    @staticmethod
    def setting(changes: Dict[bytes, int]) -> Mangle:
        """A man in the middle who gives these messages other flags."""
        def mangle(message: bytes) -> bytes:
            letter = message[:1]
            if letter not in changes or letter == b"P" and message[:4] != b"PYCL":
                return message
            at = FLAGS_AT[letter]
            return message[:at] + bytes((changes[letter],)) + message[at + 1:]
        return mangle

    def test_every_change_of_every_statement(self):
        tried = 0
        for one, other in self.OFFERS:
            for hello, answer in itertools.product(range(32), repeat=2):
                if (hello, answer) == (1 | other, 1 | one):
                    continue
                a, b = end("dial", one), end("accept", other)
                talk(a, b, self.setting({b"P": hello, b"S": answer, b"A": answer}))
                tried += 1
                self.assertEqual((a.result, b.result), (None, None), (one, other, hello, answer))
        self.assertGreater(tried, 8000)

    def test_a_changed_start_is_noticed_when_the_mac_comes(self):
        for changed in range(32):
            if changed == 1 | BOTH:
                continue
            a, b = end("dial", BOTH), end("accept", BOTH)
            talk(a, b, self.setting({b"S": changed}))
            self.assertEqual((a.result, b.result), (None, None), changed)

    def test_taking_the_bits_of_one_statement_is_called_by_its_name(self):
        for one, other in ((BOTH, BOTH), (BOTH, CAN_ENCRYPT), (CAN_ENCRYPT, BOTH)):
            a, b = end("dial", one), end("accept", other)
            errors = talk(a, b, self.setting({b"P": 1}))
            self.assertEqual((a.refusal, b.refusal), (Refusal.DOWNGRADED, Refusal.DOWNGRADED))
            for error in errors:
                self.assertRegex(str(error), "not encrypted although both ends can .* what the connection passes")

    def test_a_channel_that_is_not_the_same_is_no_channel(self):
        for flags in (HAS_CERTIFICATE, BOTH):
            a, b = end("dial", flags), end("accept", flags)
            errors = talk(a, b, channels=(b"mine", b"his"))
            self.assertEqual((a.result, b.result), (None, None))
            self.assertEqual((a.refusal, b.refusal), (Refusal.SECRET, Refusal.SECRET))
            self.assertNotIn(None, errors)

    def test_an_open_cluster_with_certificates_cannot_be_talked_out_of_them(self):
        """There is no MAC, but an end with a certificate never speaks without."""
        for hello, answer in itertools.product(range(0, 32, 2), repeat=2):
            if hello & HAS_CERTIFICATE and answer & HAS_CERTIFICATE:
                continue
            a, b = end("dial", HAS_CERTIFICATE, None), end("accept", HAS_CERTIFICATE, None)
            talk(a, b, self.setting({b"P": hello, b"S": answer, b"A": answer}))
            self.assertFalse(a.result and b.result)


# ======================================================================================================================
# Certificates
# ======================================================================================================================


def openssl(folder: Path, *words: str) -> None:
    """Run openssl there; its output is shown when it fails."""
    done = subprocess.run(["openssl", *words], cwd=str(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)
    if done.returncode:
        raise OSError("openssl %s: %s" % (" ".join(words), done.stdout))


def make_pair(folder: Path, name: str) -> Tuple[str, str]:
    """Paths of a self-signed certificate and its key, made as the README says."""
    openssl(folder, "req", "-x509", *NEW_KEY, "-nodes", "-days", "7", "-subj", "/CN=" + name,
            "-keyout", name + ".key", "-out", name + ".crt")
    (folder / (name + ".key")).chmod(0o600)
    return str(folder / (name + ".crt")), str(folder / (name + ".key"))


class Authority:
    """A CA whose certificates are files of a temporary directory; `path` is its own."""

    CONFIG = ("[ca]\ndefault_ca=d\n[d]\ndatabase=db\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
              "unique_subject=no\n[p]\ncommonName=supplied\n")

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        (self.folder / "db").touch()
        (self.folder / "serial").write_text("01\n")
        (self.folder / "config").write_text(self.CONFIG)
        make_pair(self.folder, "ca")
        self.path = str(self.folder / "ca.crt")

    def issue(self, name: str, begin: str = "20200101000000Z", until: str = "20991231000000Z",
              extension: str = "subjectAltName=DNS:cluster") -> str:
        """Path of a certificate with its key."""
        (self.folder / "extension").write_text(extension + "\n")
        openssl(self.folder, "req", *NEW_KEY, "-nodes", "-subj", "/CN=node", "-keyout", name + ".key",
                "-out", name + ".csr")
        openssl(self.folder, "ca", "-batch", "-notext", "-config", "config", "-cert", "ca.crt", "-keyfile", "ca.key",
                "-in", name + ".csr", "-out", name + ".crt", "-startdate", begin, "-enddate", until,
                "-extfile", "extension")
        whole = self.folder / (name + ".pem")
        whole.write_text((self.folder / (name + ".crt")).read_text() + (self.folder / (name + ".key")).read_text())
        whole.chmod(0o600)
        return str(whole)


@needs_openssl
class CertificateCase(NetworkTestCase):
    """Certificates of 8 kinds, see `KINDS`; made once for all classes."""

    # kind -> what a good end says of it, what the end that shows it hears; '' where it does
    KINDS = {
        "good": ("", ""),
        "wrong name": ("a certificate was shown that does not belong to the cluster: .* with certname a certificate of "
                       "that name", "a certificate was shown that does not belong to the cluster"),
        "no name": ("a certificate was shown that does not belong", "a certificate was shown that does not belong"),
        "wrong ca": (r"certificate of the other end is not trusted \(.*\): start both ends with copies of the same",
                     "the other end does not trust the certificate of this end: start both"),
        "self-signed": (r"certificate of the other end is not trusted \(self.signed certificate\): start both ends",
                        "the other end does not trust the certificate of this end: start both"),
        "expired": ("the certificate of the other end has expired: renew it there",
                    "the certificate of this end has expired: renew it"),
        "not yet valid": ("certificate of the other end is not valid yet: compare the clocks",
                          r"does not accept the certificate of this end \(it may not be valid yet\)"),
        "wrong usage": ("is not made for both ends of a connection: leave extendedKeyUsage out",
                        "does not accept the certificate of this end: look at the log there"),
    }

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if "cert" not in vars(CertificateCase):
            CertificateCase.make_certificates()

    @staticmethod
    def make_certificates() -> None:
        cls, folder = CertificateCase, tempfile.mkdtemp()
        unittest.addModuleCleanup(shutil.rmtree, folder)
        cls.folder = Path(folder)
        ca, stranger = Authority(cls.folder, "ca"), Authority(cls.folder, "stranger")
        cls.ca, cls.cert = ca.path, {
            "good": ca.issue("good"), "wrong name": ca.issue("other", extension="subjectAltName=DNS:elsewhere"),
            "no name": ca.issue("unnamed", extension="subjectAltName=IP:127.0.0.1"), "wrong ca": stranger.issue("good"),
            "expired": ca.issue("expired", "20200101000000Z", "20210101000000Z"),
            "not yet valid": ca.issue("future", "20900101000000Z"),
            "wrong usage": ca.issue("neither", extension="extendedKeyUsage=emailProtection"),
        }
        pair, other = make_pair(cls.folder, "pair"), make_pair(cls.folder, "other")
        cls.pair, cls.other = (cls.joined(*files) for files in (pair, other))
        cls.pair_files, cls.cert["self-signed"] = pair, cls.other

    @staticmethod
    def joined(certificate: str, key: str) -> str:
        path = Path(certificate).with_suffix(".pem")
        path.write_text(Path(certificate).read_text() + Path(key).read_text())
        path.chmod(0o600)
        return str(path)

    def contact(self, at: Location) -> int:
        def calling():
            return (yield Pycos().peer(at))
        return self.do(calling)

    def check_refused(self, here: str, there: str, *options: str) -> None:
        """An agent that dials this process is refused, and so is this process when it dials it; both say why."""
        with self.expect_log("refused a connection from 127.0.0.1: .*" + here, timeout_s=COME_S), \
                self.agent(*options) as process:
            process.wait_for("WARNING no peer: .*" + there)
            with self.expect_log("no peer: .*" + here):
                self.assertEqual(self.contact(process.at), -1)
            process.wait_for("WARNING refused a connection from 127.0.0.1: .*" + there)
        self.assertEqual(Pycos().network.peers, {})

    def setenv(self, **values: str) -> None:
        """Set variables for the test."""
        for name, value in values.items():
            os.environ[name] = value
            self.addCleanup(os.environ.pop, name, None)

    def security(self) -> List[str]:
        """How the connections of this process are protected."""
        return sorted(peer["security"] for peer in Pycos.status()["peers"])


class TableTest(CertificateCase):
    """Every kind of certificate, shown by the end that dials and by the one that accepts."""

    def check(self, kind: str, certname: Optional[str] = None) -> None:
        here, there = self.KINDS[kind]
        options = ["cafile=%s" % self.ca, "certfile=%s" % self.cert[kind], "peers=['%s']" % Pycos().location]
        if certname:
            options.append("certname=" + certname)
        if here:
            self.check_refused(here, there, *options)
            return
        with self.agent(*options) as process:
            self.assertEqual(self.contact(process.at), 0)
            self.assertEqual(self.security(), ["tls 1.3, certificates"])
            process.wait_for("INFO .*: tls 1.3, certificates")

    def test_signed_by_the_ca(self):
        self.node(certfile=self.cert["good"], cafile=self.ca)
        self.check("good")

    def test_any_name_does_when_none_is_asked_for(self):
        self.node(certfile=self.cert["good"], cafile=self.ca)
        with self.agent("certfile=" + self.cert["wrong name"], "cafile=" + self.ca) as process:
            self.assertEqual(self.contact(process.at), 0)

    def test_the_name_that_is_asked_for(self):
        self.node(certfile=self.cert["good"], cafile=self.ca, certname="Cluster")
        self.check("good", "cluster")
        self.check("wrong name")

    def test_a_certificate_without_a_name(self):
        self.node(certfile=self.cert["good"], cafile=self.ca, certname="Cluster")
        self.check("no name")

    def test_certificates_that_do_not_do(self):
        self.node(certfile=self.cert["good"], cafile=self.ca)
        for kind in ("wrong ca", "self-signed", "expired", "not yet valid", "wrong usage"):
            with self.subTest(kind):
                self.check(kind)

    def test_a_long_certificate(self):
        """It comes in many pieces, and what is not read of it must not hide the refusal."""
        names = "subjectAltName=" + ",".join("DNS:a-rather-long-name-%d.example.org" % n for n in range(200))
        ca, stranger = Authority(self.temp_dir(), "ca"), Authority(self.temp_dir(), "stranger")
        node = self.node(certfile=ca.issue("node"), cafile=ca.path)
        with self.agent("certfile=" + ca.issue("long", extension=names), "cafile=" + ca.path) as process:
            self.assertEqual(self.ask(self.find(process), "echo", 1), 1)
        self.wait_until(lambda: not node.network.peers)
        self.setting(handshake_bytes=600)                   # is read at a time
        self.check_refused(*self.KINDS["wrong ca"], "certfile=" + stranger.issue("long", extension=names),
                           "cafile=" + ca.path, "peers=['%s']" % Pycos().location)

    def test_the_common_name_counts_where_there_is_no_other(self):
        certificate = {"subject": ((("commonName", "Node"),), (("organizationName", "x"),))}
        self.assertEqual(pycoslite._names(certificate), ["node"])
        certificate["subjectAltName"] = (("DNS", "A"), ("IP Address", "10.0.0.1"), ("DNS", "b"))
        self.assertEqual(pycoslite._names(certificate), ["a", "b"])


class PairTest(CertificateCase):
    """One self-signed pair at all peers, as the documents describe."""

    def test_messages_through_tls_in_one_file_and_in_two(self):
        self.node(certfile=self.pair_files[0], keyfile=self.pair_files[1])
        with self.agent("certfile=" + self.pair) as process:
            agent = self.find(process)
            for value in (None, "text", b"x" * 100_000, list(range(1000)), bytes(5_000_000)):
                self.assertEqual(self.ask(agent, "echo", value), value)
            self.assertEqual(self.security(), ["tls 1.3, certificates"])
            link, = Pycos().network.links
            self.assertTrue(link.encrypted)
            self.assertEqual((link.sealer._mac, link.opener._mac), (None, None))

    def test_order_survives_a_broken_connection(self):
        self.node(certfile=self.pair)
        with self.agent("certfile=" + self.pair) as process:
            agent = self.find(process)
            for number in range(3000):
                agent.send(("number", number, bytes(500)))
                if not number % 1000:
                    Pycos().network.post(self.cut)
            self.assertEqual(self.ask(agent, "report"), (3000, True))

    @staticmethod
    def cut() -> None:
        """Break all connections, in the engine."""
        for link in list(Pycos().network.links):
            with contextlib.suppress(OSError):          # one that is being dialled
                link.sock.shutdown(socket.SHUT_RDWR)

    def test_lanes(self):
        exchange_in_lanes(self, sys.executable, "tls 1.[23], certificates", "certfile=" + self.pair)

    def test_another_pair_is_refused(self):
        self.node(certfile=self.pair)
        with self.agent("certfile=" + self.other) as process:
            with self.expect_log(r"no peer: .*not trusted \(self.signed certificate\): start both ends with copies"):
                self.assertEqual(self.contact(process.at), -1)
            process.wait_for("WARNING refused .*does not trust the certificate of this end")

    def test_a_certificate_that_the_pair_has_signed_is_not_the_pair(self):
        """What openssl makes is a CA, too: who has the key could sign others."""
        stranger = self.folder / "signed"
        if not stranger.exists():
            stranger.mkdir()
            openssl(stranger, "req", *NEW_KEY, "-nodes", "-subj", "/CN=s", "-keyout", "s.key", "-out", "s.csr")
            openssl(stranger, "x509", "-req", "-in", "s.csr", "-CA", self.pair_files[0], "-CAkey", self.pair_files[1],
                    "-CAcreateserial", "-days", "7", "-out", "s.crt")
        signed = self.joined(str(stranger / "s.crt"), str(stranger / "s.key"))
        self.node(certfile=self.pair)
        with self.agent("certfile=" + signed, "cafile=" + self.pair_files[0]) as process:
            with self.expect_log("no peer: .*does not belong to the cluster: without cafile both ends need copies"):
                self.assertEqual(self.contact(process.at), -1)
            process.wait_for("WARNING refused .*does not belong to the cluster")

    def test_one_end_without_a_certificate(self):
        self.node()
        sentence = r"one end has a certificate and the other none \(this one has %s\): start both with certfile and key"
        self.check_refused(sentence % "none", sentence % "one", "certfile=" + self.pair,
                           "peers=['%s']" % Pycos().location)

    def test_another_secret_is_refused_inside_tls(self):
        self.node(certfile=self.pair)
        with self.agent("certfile=" + self.pair, "secret=another") as process:
            with self.expect_log("no peer: .*the other end has another secret"):
                self.assertEqual(self.contact(process.at), -1)
            process.wait_for("WARNING refused .*the other end has another secret")

    def test_an_open_cluster_with_certificates(self):
        with self.expect_log("running without authentication"):
            self.node(secret=False, certfile=self.pair)
        with self.agent("secret=False", "certfile=" + self.pair) as process:
            self.assertEqual(self.ask(self.find(process), "echo", 1), 1)
            self.assertEqual(self.security(), ["tls 1.3, certificates"])

    def test_other_pythons(self):
        self.node(certfile=self.pair)
        others = interpreters()
        if not others:
            self.skipTest("there is no other Python here")
        for interpreter in {others[0], others[-1]}:
            with self.subTest(interpreter.version), running(
                    [interpreter.path, AGENT, "certfile=" + self.pair], ready=r"READY (\S+)") as process:
                process.at = Location.parse(process.match.group(1))
                self.assertEqual(self.ask(self.find(process), "echo", [1, b"2"]), [1, b"2"])
                self.assertEqual(self.security(), ["tls 1.3, certificates"])
                process.signal(15)
                self.wait_until(lambda: not Pycos().network.peers)

    def test_named_in_the_environment(self):
        self.setenv(PYCOSLITE_CERTFILE=self.pair_files[0], PYCOSLITE_KEYFILE=self.pair_files[1])
        self.node()
        with self.agent() as process:
            self.assertEqual(self.contact(process.at), 0)
            self.assertEqual(self.security(), ["tls 1.3, certificates"])


class FilesTest(CertificateCase):
    """What is wrong with the files is said at the start, and nothing is started."""

    def setUp(self):
        self.addCleanup(pycoslite.stop_default)

    def assert_refused(self, sentence: str, **files: Any) -> None:
        with self.assertRaisesRegex(SecretError, sentence):
            Pycos(host=HOST, tcp_port=0, secret="tests", discover_peers=False, **files)
        self.assertIsNone(pycoslite.running_network())

    def test_sentences(self):
        certificate, key = self.pair_files
        empty = self.temp_dir() / "empty"
        empty.touch()
        empty.chmod(0o600)
        for sentence, files in (
                ("cannot read the certfile /nowhere/c.pem .No such file or directory.: name the right file",
                 {"certfile": "/nowhere/c.pem"}),
                ("cannot read the keyfile .*No such file", {"certfile": certificate, "keyfile": "/nowhere/k.pem"}),
                ("cannot read the cafile .*No such file", {"certfile": self.pair, "cafile": "/nowhere/ca.pem"}),
                ("the key in .*other.key does not belong to the certificate in .*pair.crt: name two files",
                 {"certfile": certificate, "keyfile": key.replace("pair", "other")}),
                ("keyfile without certfile: name the certificate that is to be shown", {"keyfile": key}),
                ("cannot be used for TLS .*a certificate and its key are wanted, in PEM", {"certfile": str(empty)}),
                ("the cafile .*empty holds no certificate in PEM form", {"certfile": self.pair, "cafile": str(empty)})):
            with self.subTest(sentence):
                self.assert_refused(sentence, **files)

    def test_a_certificate_without_its_key(self):
        certificate = self.temp_dir() / "c.pem"
        shutil.copy(self.pair_files[0], str(certificate))
        certificate.chmod(0o600)
        self.assert_refused("cannot be used for TLS .*a certificate and its key are wanted", certfile=str(certificate))

    def test_a_key_with_a_password_asks_nobody(self):
        locked = self.temp_dir() / "locked.key"
        openssl(self.folder, "pkey", "-in", self.pair_files[1], "-aes256", "-passout", "pass:x", "-out", str(locked))
        locked.chmod(0o600)
        self.assert_refused("the key in .*locked.key is protected by a password, .*openssl pkey -in",
                            certfile=self.pair_files[0], keyfile=str(locked))

    @unittest.skipUnless(os.name == "posix", "file modes")
    def test_a_key_that_others_can_read_is_a_warning(self):
        open_to_all = self.temp_dir() / "pair.pem"
        shutil.copy(self.pair, str(open_to_all))
        open_to_all.chmod(0o644)
        with self.expect_log("the certfile .*pair.pem can be read by other users .* chmod 600"):
            pycoslite.certificates(str(open_to_all))
        pycoslite.certificates(*self.pair_files)            # a certificate alone may be read

    def test_an_unknown_word_for_what_is_encrypted(self):
        self.setting(encrypt="yes")
        with self.assertRaisesRegex(pycoslite.MisuseError, "PYCOSLITE_ENCRYPT. is 'yes': it must be 'hosts', 'always'"):
            Pycos(host=HOST, tcp_port=0, secret="tests", discover_peers=False)

    def test_tls_is_1_2_at_least_and_verifies_both_ends(self):
        found = pycoslite.certificates(self.pair)
        for server_side in (False, True):
            context = found.context(server_side)
            self.assertGreaterEqual(context.minimum_version, ssl.TLSVersion.TLSv1_2)
            self.assertEqual(context.verify_mode, ssl.CERT_REQUIRED)
        self.assertEqual(pycoslite.certificates(**found.files).files, found.files)


# ======================================================================================================================
# Who sits in between, and strangers
# ======================================================================================================================


class Relay:
    """Passes on one connection after the other to `target`, and keeps what went through as `seen`."""

    def __init__(self, target: Location) -> None:
        self.listener = socket.create_server((HOST, 0))
        self.at = Location(*self.listener.getsockname())
        self.target, self.seen = target, bytearray()
        self.damage: Optional[Tuple[bool, int, int]] = None     # towards the target?, which byte, which bit; once
        self._socks: list = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near = self.listener.accept()[0]
            except OSError:                     # closed
                return
            far = socket.create_connection((self.target.addr, self.target.port))
            self._socks += [near, far]
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._copy, args=(source, sink, source is near))
                thread.start()
                self._threads.append(thread)

    def _copy(self, source: socket.socket, sink: socket.socket, there: bool) -> None:
        count = 0
        try:
            while True:
                data = source.recv(65536)
                if not data:
                    break
                self.seen += data
                sink.sendall(self._damaged(data, count) if self.damage and self.damage[0] is there else data)
                count += len(data)
        except OSError:
            pass
        for sock in (source, sink):
            self._cut(sock)

    def _damaged(self, data: bytes, position: int) -> bytes:
        """`data`, which begins at that position of the stream, with one bit the other way round if it is there."""
        _, byte, bit = self.damage
        if not position <= byte < position + len(data):
            return data
        self.damage = None
        changed = bytearray(data)
        changed[byte - position] ^= 1 << bit
        return bytes(changed)

    @staticmethod
    def _cut(sock: socket.socket) -> None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:                         # it is cut already
            pass

    def close(self) -> None:
        """End it."""
        self._cut(self.listener)                # wakes the thread up, which closing alone does not
        for sock in self._socks:
            self._cut(sock)
        for thread in self._threads:
            thread.join()
        for sock in [self.listener] + self._socks:
            sock.close()


MARKER = b"nobody else is to read this"


class WireTest(CertificateCase):
    def through_a_relay(self, *options: str, **own: Any) -> bytes:
        """What goes over the wire when the marker is sent to an agent and comes back."""
        self.node(**own)
        with self.agent(*options) as process:
            relay = Relay(process.at)
            try:
                def main(task=None):
                    yield Pycos().peer(relay.at)
                    agent = yield Task.locate("agent", timeout=COME_S)
                    agent.send(("echo", task, MARKER))
                    return (yield task.receive(COME_S))
                self.assertEqual(self.do(main), MARKER)
                Pycos().terminate()
            finally:
                relay.close()
        return bytes(relay.seen)

    def test_nothing_can_be_read_below_certificates(self):
        seen = self.through_a_relay("certfile=" + self.pair, certfile=self.pair)
        self.assertNotIn(MARKER, seen)
        self.assertNotIn(b"python", seen)           # of what both say of themselves

    def test_a_file_goes_through_tls_too(self):
        folder = self.temp_dir()
        (folder / "file").write_bytes(MARKER * 200_000)
        self.node(certfile=self.pair)
        with self.agent("certfile=" + self.pair, "dest_path=%s" % (folder / "there")) as process:
            relay = Relay(process.at)
            try:
                def main():
                    yield Pycos().peer(relay.at)
                    return (yield Pycos().send_file(process.at, str(folder / "file")))
                self.assertEqual(self.do(main), 0)
                Pycos().terminate()
            finally:
                relay.close()
        self.assertEqual((folder / "there" / "file").read_bytes(), MARKER * 200_000)
        self.assertGreater(len(relay.seen), len(MARKER) * 200_000)         # it went that way, and no other
        self.assertNotIn(MARKER, relay.seen)

    def test_the_same_probe_reads_what_is_not_encrypted(self):
        seen = self.through_a_relay()
        self.assertEqual(seen.count(MARKER), 2)
        self.assertIn(b"python", seen)
        key = pycoslite.secret_key(SECRET)
        for secret in (SECRET.encode(), key):     # which never travels, in whatever form
            self.assertNotIn(secret, seen)


@needs_openssl
class InsiderTest(CertificateCase):
    """Who has the certificate and its key, and not the secret, ends TLS in between and passes on what is inside."""

    def shake(self, one: Any, other: Any) -> None:
        """Let two `_Cipher`s shake hands."""
        for _ in range(4):
            other.receive(one.seal([b""]) if one.established else self.begin(one))
            one.receive(other.seal([b""]))
        self.assertTrue(one.established and other.established)

    @staticmethod
    def begin(cipher: Any) -> bytes:
        cipher.receive(b"")
        return cipher.seal([b""])

    def test_he_is_noticed(self):
        found = pycoslite.certificates(self.pair)
        ciphers = [pycoslite._Cipher(found.context(server_side), server_side)
                   for server_side in (False, True, False, True)]
        client, his_server, his_client, server = ciphers
        for one, other in ((client, his_server), (his_client, server)):
            self.shake(one, other)
            self.assertEqual(one.binding(), other.binding())
        self.assertNotEqual(client.binding(), server.binding())
        a, b = end("dial", HAS_CERTIFICATE), end("accept", HAS_CERTIFICATE)
        talk(a, b, channels=(client.binding(), server.binding()))
        self.assertEqual((a.result, b.result, a.refusal, b.refusal), (None, None, Refusal.SECRET, Refusal.SECRET))
        a, b = end("dial", HAS_CERTIFICATE), end("accept", HAS_CERTIFICATE)
        talk(a, b, channels=(client.binding(), his_server.binding()))           # without him all is well
        self.assertIsNotNone(a.result and b.result)

    def test_every_cut_and_what_follows(self):
        """A byte at a time; the first records of the session come with the last of the handshake."""
        found = pycoslite.certificates(self.pair)
        one, other = (pycoslite._Cipher(found.context(server_side), server_side) for server_side in (False, True))
        self.shake(one, other)
        data = one.seal([b"x" * 40_000, b"y"])
        got = b"".join(other.receive(data[at:at + 1]) for at in range(len(data)))
        self.assertEqual(got, b"x" * 40_000 + b"y")
        space, got = memoryview(bytearray(1000)), b""       # less than a record of TLS
        other.feed(one.seal([b"z" * 40_000]))
        while True:
            size = other.open(space)
            if not size:
                break
            got += space[:size]
        self.assertEqual(got, b"z" * 40_000)
        for bit in (0, 5 * 8, 100):
            damaged = bytearray(one.seal([b"once"]))
            damaged[len(damaged) - 1 - bit // 8] ^= 1
        other.feed(bytes(damaged))
        with self.assertRaises(ssl.SSLError):
            other.open(space)


class DamageTest(CertificateCase):
    """Somebody in between changes a bit."""

    def test_whatever_is_changed_on_the_way(self):
        """What OpenSSL does not mind (the old version number of a record) may pass; all else is refused, and nothing is
        harmed."""
        choose, refused, flips = random.Random(1), 0, 300 if SOAK else 15
        self.setting(handshake_s=1.0)
        node = self.node(certfile=self.pair)
        with self.agent("certfile=" + self.pair, env={"PYCOSLITE_HANDSHAKE_S": "0.5"}) as process:
            for _ in range(flips):
                relay = Relay(process.at)
                relay.damage = choose.random() < 0.5, choose.randrange(900), choose.randrange(8)
                try:
                    if self.contact_quietly(relay.at):
                        refused += 1
                    else:
                        Pycos().network.post(PairTest.cut)
                        self.wait_until(lambda: not node.network.links or node.network.peers)
                finally:
                    relay.close()
                self.wait_until(lambda: not relay.damage)
            self.assertEqual(self.contact(process.at), 0)
            self.assertNotIn("Traceback", process.output)
        self.assertGreaterEqual(refused, 0.8 * flips)

    def contact_quietly(self, at: Location) -> int:
        """`contact`, and no matter what is logged of its failure."""
        result = self.contact(at)
        with self.log.changed:
            self.log.expected += [r for r in self.log.records if r.getMessage().startswith("no peer: ")]
        return result


class StrangersTest(CertificateCase, SecurityTestCase):
    START = b"S" + bytes((1 | HAS_CERTIFICATE,))

    def test_who_shows_no_certificate_is_refused(self):
        node = self.node(certfile=self.pair)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self.pair_files[0])
        sock = self.connect(node)
        sock.sendall(self.START)
        with self.expect_log("refused a connection from 127.0.0.1: the other end shows no certificate: start it with"):
            with self.assertRaises(ssl.SSLError):
                with context.wrap_socket(sock) as tls:      # TLS 1.3 tells a client only when it reads
                    tls.recv(1)

    def test_old_tls_is_refused(self):
        node = self.node(certfile=self.pair)
        sock = self.connect(node)
        # a ClientHello of TLS 1.1 with one cipher suite, as this Python's OpenSSL may not make one any more
        body = b"\x03\x02" + bytes(32) + b"\0" + struct.pack(">H", 2) + b"\xc0\x14" + b"\1\0"
        hello = b"\x01" + struct.pack(">I", len(body))[1:] + body
        with self.expect_log("refused a connection from 127.0.0.1: the ends have no version of TLS in common"):
            sock.sendall(self.START + b"\x16\x03\x01" + struct.pack(">H", len(hello)) + hello)
            self.assert_closed(sock)

    def test_who_says_too_much_is_cut(self):
        node = self.node(certfile=self.pair)
        sock = self.connect(node)
        sock.sendall(self.START + b"\x16\x03\x01\x40\x00\x01\x01\xff\xff" + bytes(1000))
        self.wait_until(lambda: [link for link in node.network.links if link.heard > 1000])
        link, = node.network.links
        try:
            sock.sendall(bytes(200_000))
        except ConnectionError:                             # cut before all was said
            pass
        self.assert_closed(sock)
        self.assertLessEqual(link.heard, pycoslite.settings.tls_handshake_bytes + pycoslite.settings.handshake_bytes)

    def test_a_stalled_handshake_holds_up_nobody_and_is_cut(self):
        self.setting(handshake_s=COME_S)
        node = self.node(certfile=self.pair)
        stalled = [self.connect(node) for _ in range(20)]
        for sock in stalled:
            sock.sendall(self.START + b"\x16\x03\x01")
        self.wait_until(lambda: sum(link.encrypted for link in node.network.links) == 20)
        with self.agent("certfile=" + self.pair) as process:
            self.assertEqual(self.ask(self.find(process), "echo", 1), 1)
        self.assertEqual(sum(link.peer is None for link in node.network.links), 20)
        pycoslite.settings.handshake_s = 0.1
        last = self.connect(node)
        last.sendall(self.START + b"\x16")
        self.assert_closed(last)

    def test_garbage_below_tls_is_neither_unpickled_nor_kept(self):
        node = self.node(certfile=self.pair)
        with self.pickle_forbidden() as used:
            for stream in (b"\xff" * 3000, b"\x16\x03\x01" + b"\xff" * 3000, b"\x17\x03\x03\0\x10" + bytes(16)):
                sock = self.connect(node)
                with self.expect_log("refused a connection from .*(TLS cannot begin|no version of TLS)") as lines:
                    sock.sendall(self.START + stream)
                    self.assert_closed(sock)
                self.assertEqual(len(lines), 1)
        self.assertEqual(used, [])
        self.wait_until(lambda: not node.network.links)


# ======================================================================================================================
# The secret itself
# ======================================================================================================================


def exchange_in_lanes(case: TestCase, path: str, security: str, *options: str, **variables: str) -> None:
    """Have two processes, whose link gets lanes though the line is good, exchange a lot; check that all of it arrives,
    in order, and that the link is protected as `security` says."""
    variables.update(lanes_loss="0", lanes_after_s="0")
    env = {"PYCOSLITE_" + name.upper(): value for name, value in variables.items()}
    with contextlib.ExitStack() as stack:
        here, there = (reliability.Agent(stack.enter_context(running([path, reliability.PEER, *options],
                                                                     ready=r"READY (\S+)", env=env))) for _ in "12")
        told = here.do("exchange", repr(there.at), 4000, 8000)
        case.assertEqual((told["here"], told["there"]), ([4000, True], [4000, True]))
        for end in (here, there):
            case.assertRegex(end.process.output, "INFO .*: %s\n" % security)
        said = here.process.output + there.process.output       # one end may never have had to wait for its socket
        case.assertRegex(said, r"INFO .*: its messages go over \d+ connections")


class SecretEncryptsTest(TestCase):
    """Processes of Pythons from 3.13 on."""

    def test_lanes(self):
        exchange_in_lanes(self, python((3, 13)), "tls-psk", encrypt="always")

    def agent(self, path: str, *options: str, **variables: str) -> Any:
        manager = running([path, AGENT, *options], ready=r"READY (\S+)",
                          env={"PYCOSLITE_" + name.upper(): value for name, value in variables.items()})
        process = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        process.at = Location.parse(process.match.group(1))
        return process

    def test_not_within_one_host(self):
        path = python((3, 13))
        one = self.agent(path)
        two = self.agent(path, "peers=['%s']" % one.at)
        for process in (one, two):
            process.wait_for(r"INFO .*: authenticated, not encrypted \(same host\)$")

    def test_within_one_host_if_either_end_says_so(self):
        path = python((3, 13))
        for here, there in (("always", "hosts"), ("hosts", "always")):
            one = self.agent(path, "name=secretname", encrypt=here)
            relay = Relay(one.at)
            try:
                two = self.agent(path, "peers=['%s']" % relay.at, encrypt=there)
                for process in (one, two):
                    process.wait_for("INFO .*: tls-psk$")
                    process.wait_for("INFO .* is online$")
            finally:
                relay.close()
            self.assertNotIn(b"secretname", relay.seen)
            self.assertIn(b"\x00\x33\x00\x24\x00\x1d\x00\x20", relay.seen)    # key_share of x25519: forward secrecy

    def test_switched_off(self):
        path = python((3, 13))
        one = self.agent(path, encrypt="never")
        two = self.agent(path, "peers=['%s']" % one.at, encrypt="always")
        one.wait_for(r"not encrypted \(switched off at this end\)$")
        two.wait_for(r"not encrypted \(switched off at the other end\)$")

    def test_another_secret(self):
        path = python((3, 13))
        one = self.agent(path, encrypt="always")
        two = self.agent(path, "peers=['%s']" % one.at, "secret=another")
        one.wait_for("WARNING refused a connection from 127.0.0.1: the other end has another secret")
        two.wait_for("WARNING no peer: .*the other end has another secret")

    def test_an_older_python(self):
        new, old = python((3, 13)), python((3, 8), (3, 13))
        one = self.agent(new, encrypt="always")
        two = self.agent(old, "peers=['%s']" % one.at)
        one.wait_for(r"not encrypted \(the other end runs Python 3\.\d+\)$")
        two.wait_for(r"not encrypted \(this end runs Python 3\.\d+\)$")

    def test_the_key_of_tls_is_not_the_key(self):
        code = ("import pycoslite, ssl; keys = []; key = b'k' * 32\n"
                "ssl.SSLContext.set_psk_client_callback = lambda self, callback: keys.append(callback(None)[1])\n"
                "pycoslite.Secrecy(key, None).context(pycoslite.BY_SECRET, False)\n"
                "import hmac; assert keys == [hmac.digest(key, b'pycoslite tls-psk', 'sha256')]; print('so it is')")
        done = subprocess.run([python((3, 13)), "-c", code], cwd=str(ROOT), stdout=subprocess.PIPE, text=True)
        self.assertEqual(done.stdout, "so it is\n")

    def test_what_openssl_says_becomes_a_sentence(self):
        for channel, reason, sentence in (
                ("psk", "BINDER_DOES_NOT_VERIFY", "another secret: copy"),
                ("psk", "SSLV3_ALERT_ILLEGAL_PARAMETER", "another secret: copy"),
                ("psk", "WRONG_VERSION_NUMBER", "TLS cannot begin: look at the log at the other end"),
                ("certificates", "TLSV13_ALERT_CERTIFICATE_REQUIRED", "does not accept the certificate of this end"),
                ("certificates", "TLSV1_ALERT_PROTOCOL_VERSION", "no version of TLS in common, which must be 1.2")):
            error = ssl.SSLError(1, reason)
            error.reason = reason
            self.assertRegex(pycoslite.tls_trouble(error, channel), sentence)

    def test_a_server_that_shows_a_certificate_is_not_taken_for_one_that_knows_the_secret(self):
        class Shown:
            session_reused = False

            @staticmethod
            def getpeercert(_binary: bool) -> bytes:
                return b"a certificate"
        self.assertFalse(pycoslite.Secrecy(KEY, None).accepts(pycoslite.BY_SECRET, Shown))


class TwoHostsTest(TestCase):
    """Processes of two hosts."""

    def setUp(self):
        self.hosts = self.enter(two_hosts())

    def enter(self, manager: Any) -> Any:
        """Enter a context manager until the end of the test."""
        value = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return value

    def pair(self, here: str, there: str, encrypt: str = "hosts") -> Tuple[Any, Any]:
        """An agent on each host, the second dials the first."""
        a, b = self.hosts
        one = self.enter(a.running([here, AGENT, "name=one", "host='%s'" % a.address], ready="READY",
                                   env={"PYCOSLITE_ENCRYPT": encrypt}))
        at = one.match.string.split()[-1]
        two = self.enter(b.running([there, AGENT, "name=two", "host='%s'" % b.address, "peers=['%s']" % at],
                                   ready="READY"))
        return one, two

    def test_the_secret_encrypts(self):
        path = python((3, 13))
        for process in self.pair(path, path):
            process.wait_for("INFO .*: tls-psk$")
            process.wait_for("INFO .* is online$")
            self.assertNotIn("WARNING", process.output)

    def test_a_mixed_cluster_says_so(self):
        new, old = python((3, 13)), python((3, 8), (3, 13))
        for here, there in ((new, old), (old, new)):
            for process in self.pair(here, there):
                process.wait_for(r"INFO .*: authenticated, not encrypted \((this|the other) end runs Python 3\.\d+\)$")
                process.wait_for("WARNING messages to .* are authenticated, not encrypted .*: run Python 3.13 or newer "
                                 "at both ends, or start both with certfile")
                process.wait_for("INFO .* is online$")

    def test_two_old_ends_are_no_reason_to_warn(self):
        old = python((3, 8), (3, 13))
        for process in self.pair(old, old):
            process.wait_for(r"INFO .*: authenticated, not encrypted \(this end runs Python 3\.\d+\)$")
            process.wait_for("INFO .* is online$")
            self.assertNotIn("WARNING", process.output)

    def test_encryption_can_be_demanded(self):
        new, old = python((3, 13)), python((3, 8), (3, 13))
        one, two = self.pair(new, old, "demand")
        one.wait_for("WARNING refused a connection from .*: one end demands encryption")
        two.wait_for("WARNING no peer: .*one end demands encryption .*run Python 3.13 or newer at both ends")
        for process in self.pair(new, new, "demand"):
            process.wait_for("INFO .*: tls-psk$")


class ProgramsTest(CertificateCase):
    """Clusters, and the example."""

    def node(self, *options: Any) -> Any:
        """A node program of its own cluster port; `place` is what clients name it by."""
        port = free_port()
        command = [sys.executable, "dispycosnode_lite.py", "--daemon", "--cpus", "1", "--host", HOST,
                   "--tcp_ports", port, "--udp_port", free_port(), *options]
        manager = running(command, ready="listening at", env={"PYCOSLITE_SECRET": SECRET})
        process = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        process.place = "%s:%d" % (HOST, port)
        return process

    def test_a_cluster(self):
        """A node and its servers have the certificate of its options, the client that of the environment."""
        node = self.node("--certfile", self.pair_files[0], "--keyfile", self.pair_files[1])
        self.setenv(PYCOSLITE_CERTFILE=self.pair)
        with dispycos_lite.Cluster(nodes=[node.place], secret=SECRET) as cluster:
            self.assertEqual(cluster.submit(pow, 2, 10).result(COME_S), 1024)
            self.assertEqual(self.security(), ["tls 1.3, certificates"] * 2)       # node and server

    def test_a_node_of_ones_own(self):
        """It gets the certificate along with the key, through a pipe."""
        pycos = super().node(certfile=self.pair)
        with self.expect_log("using 1 cores of this machine"):
            cluster = dispycos_lite.Cluster(cpus=1)
        with cluster:
            self.assertEqual(cluster.submit(pow, 2, 10).result(COME_S), 1024)
            self.assertEqual(self.security(), ["tls 1.3, certificates"] * 2)
        pycos.terminate()

    def test_a_client_without_the_certificate_is_told(self):
        node = self.node("--certfile", self.pair)
        with self.assertRaisesRegex(AuthenticationError, "no node can be used: .*one end has a certificate and the "
                                                         "other none .this one has none."):
            dispycos_lite.Cluster(nodes=[node.place], secret=SECRET)
        node.wait_for("refused a connection from 127.0.0.1: one end has a certificate")

    def test_programs_that_cannot_read_it_do_not_start(self):
        for program in ("dispycosnode_lite.py", "dispycos_lite.py"):
            done = subprocess.run([sys.executable, program, "--certfile", "/nowhere/cert.pem"], cwd=str(ROOT),
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=COME_S)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stdout, r"^dispycos\w*_lite: cannot read the certfile /nowhere/cert.pem")

    def test_the_scheduler_program_speaks_it(self):
        port = free_port()
        with running([sys.executable, "dispycos_lite.py", "--daemon", "--host", HOST, "--tcp_port", port, "--udp_port",
                      free_port(), "--certfile", self.pair_files[0], "--keyfile", self.pair_files[1]],
                     ready="listens at", env={"PYCOSLITE_SECRET": SECRET}):
            super().node(certfile=self.pair)
            self.assertEqual(self.contact(Location(HOST, port)), 0)
            self.assertEqual(self.security(), ["tls 1.3, certificates"])

    def test_example(self):
        command = [sys.executable, "-X", "dev", "-W", "error", "examples/tls_peers.py", "--host", HOST]
        for files, security in ((["--certfile", self.pair_files[0], "--keyfile", self.pair_files[1]],
                                 r"tls 1\.3, certificates"), ([], r"authenticated, not encrypted \(same host\)")):
            with running(command + files, ready=r"listening at (\S+)", env={"PYCOSLITE_SECRET": SECRET}) as server:
                with running(command + files + [server.match.group(1)], env={"PYCOSLITE_SECRET": SECRET}) as client:
                    self.assertEqual(client.wait(), 0)
                    self.assertRegex(client.output, "^heard: HELLO\nserver: %s\n$" % security)
                server.wait_for("^client: %s$" % security)
        done = subprocess.run(command + ["--certfile", "/nowhere"], cwd=str(ROOT), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=COME_S)
        self.assertRegex(done.stdout, "^cannot read the certfile /nowhere")
