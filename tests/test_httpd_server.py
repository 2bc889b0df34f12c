"""httpd_lite.py sections 6 to 10: what strangers, other sites and faulty clients can do to a monitor, by sockets."""
from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
import zipfile
from pathlib import Path
from typing import Any, List

import httpd_lite
import pycoslite
from dispycos_lite import DispycosStatus, Scheduler
from tests.httpd_support import HOSTILE, TOKEN, Feed, MonitorTestCase, Stream
from tests.support import MODULES, ROOT, running

READS = [path for (method, path), route in httpd_lite.ROUTES.items() if method == "GET"]
POSTS = [path for (method, path), route in httpd_lite.ROUTES.items() if method == "POST" and route.needs != "open"]
QUICK_S = 0.3                           # for limits that are waited for
CERTIFICATE = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
               "-subj", "/CN=monitor")


def request(line: str, *headers: str) -> bytes:
    """A good request as it goes over the wire, without a body."""
    return "".join(text + "\r\n" for text in (
        line + " HTTP/1.1", "Host: 127.0.0.1", "Authorization: Bearer " + TOKEN, *headers, "")).encode("latin-1")


class ServerTestCase(MonitorTestCase):
    """With limits that a test can wait for, and bytes as they are."""

    def limit(self, **values: Any) -> None:
        """Change settings for the test."""
        for name, value in values.items():
            self.addCleanup(setattr, httpd_lite.settings, name, getattr(httpd_lite.settings, name))
            setattr(httpd_lite.settings, name, value)

    def connect(self, monitor: Any) -> socket.socket:
        """A connection, closed with the test."""
        sock = socket.create_connection(("127.0.0.1", monitor.port), timeout=60)
        self.addCleanup(sock.close)
        return sock

    def raw(self, monitor: Any, data: bytes, end: bool = True) -> bytes:
        """All that comes back for these bytes, until the monitor closes the connection; `end`: nothing more comes."""
        with self.connect(monitor) as sock:
            with contextlib.suppress(OSError):          # it may be closed before everything is sent
                sock.sendall(data)
                if end:
                    sock.shutdown(socket.SHUT_WR)
            return self.rest(sock)

    def rest(self, sock: socket.socket) -> bytes:
        """What still comes."""
        found = b""
        with contextlib.suppress(ConnectionError):
            while True:
                part = sock.recv(65536)
                if not part:
                    break
                found += part
        return found

    def status(self, reply: bytes) -> int:
        """The status in a raw answer, which must be a good one; 0 for none."""
        if not reply:
            return 0
        head, _, body = reply.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", lines[0])
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        self.assertEqual(int(headers["content-length"]), len(body))
        self.assertIn("error", json.loads(body))
        return int(found.group(1))

    def alive(self, monitor: Any) -> None:
        """It answers as if nothing had happened."""
        self.assertEqual(self.ask(monitor, "/cluster_status").status, 200)


class CrossSiteTest(ServerTestCase):
    """Requests that pages of other sites, and names that are bent to this address, can make."""

    def every(self, monitor, status, **headers):
        cookie = self.signed_in(monitor)
        cookie.pop("X_Pycoslite_Token")
        for path in READS:
            with self.subTest(path):
                self.assertEqual(self.ask(monitor, path, token=None, **cookie, **headers).status, status)
        for path in POSTS:
            with self.subTest(path):
                self.assertEqual(self.ask(monitor, path, b"", token=None, **cookie, **headers).status, status)
        self.assertEqual(self.ask(monitor, "/api/sign_in", {"token": TOKEN}, token=None, **headers).status, 403)

    def test_other_hosts(self):
        self.every(self.monitor(), 403, Host="evil.example")

    def test_other_origins(self):
        self.every(self.monitor(), 403, Origin="http://evil.example")

    def test_other_sites(self):
        self.every(self.monitor(), 403, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")

    def test_other_ports_of_this_host(self):
        self.every(self.monitor(), 403, Sec_Fetch_Site="same-site", Origin="http://127.0.0.1:9")

    def test_form_of_another_page_has_no_header(self):
        """What a browser would send that knows nothing of Sec-Fetch-Site and hides the Origin."""
        monitor = self.monitor()
        cookie = {"Cookie": self.signed_in(monitor)["Cookie"]}
        for path in POSTS:
            with self.subTest(path):
                for wrong in ({}, {"X_Pycoslite_Token": "x"}, {"X_Pycoslite_Token": ""}):
                    self.assertEqual(self.ask(monitor, path, b"", token=None, **cookie, **wrong).status, 403)

    def test_no_answer_allows_another_origin(self):
        monitor = self.monitor()
        for path in ["/api/session", "/api/changes", "/metrics", "/", "/missing"]:
            names = {name for name in self.ask(monitor, path).headers if name.startswith("access-control")}
            self.assertEqual(names, set())
        for method in ("OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "get", "PROPFIND"):
            with self.subTest(method):
                self.assertEqual(self.ask(monitor, "/cluster_status", method=method).status, 405)

    def test_pages_may_be_opened_from_anywhere_and_embedded_nowhere(self):
        monitor = self.monitor(DocumentRoot=str(self.root()))
        self.assertEqual(self.ask(monitor, "/own.html", token=None, Sec_Fetch_Site="cross-site",
                                  Sec_Fetch_Mode="navigate").status, 200)
        self.assertEqual(self.ask(monitor, "/own.html", token=None, Sec_Fetch_Site="cross-site",
                                  Sec_Fetch_Mode="no-cors").status, 403)

    def root(self) -> Path:
        folder = self.temp_dir()
        (folder / "own.html").write_text("<p>own</p>")
        return folder


class SignInTest(ServerTestCase):
    """Tokens, cookies, headers."""

    def test_nothing_without_the_token(self):
        monitor = self.monitor()
        Feed(monitor.feed).up()
        for path in READS:
            with self.subTest(path):
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN},
                                {"Authorization": "Basic " + TOKEN}, {"Cookie": "pycoslite_%d=x" % monitor.port},
                                {"Cookie": "pycoslite_%d=%s.%s" % (monitor.port, "0" * 32, "0" * 64)}):
                    answer = self.ask(monitor, path, token=None, **headers)
                    self.assertEqual((answer.status, list(answer.json)), (401, ["error"]))
                self.assertEqual(self.ask(monitor, path + "?token=" + TOKEN, token=None).status, 401)
        for path in POSTS:
            with self.subTest(path):
                self.assertEqual(self.ask(monitor, path, b"", token=None).status, 401)

    def test_sign_in_and_out(self):
        monitor = self.monitor()
        self.assertEqual(self.ask(monitor, "/api/sign_in", {"token": "wrong"}, token=None).status, 403)
        self.assertEqual(self.ask(monitor, "/api/sign_in", b"", token=None).status, 403)
        answer = self.ask(monitor, "/api/sign_in", {"token": TOKEN}, token=None)
        self.assertRegex(answer.headers["set-cookie"],
                         r"^pycoslite_%d=\w{32}\.\w{64}; Path=/; HttpOnly; SameSite=Strict$" % monitor.port)
        headers = self.signed_in(monitor)
        self.assertEqual(self.ask(monitor, "/cluster_status", token=None, **headers).status, 200)
        self.assertEqual(self.ask(monitor, "/update", b"", token=None, **headers).status, 200)
        answer = self.ask(monitor, "/api/sign_out", b"", token=None, **headers)
        self.assertIn("Max-Age=0", answer.headers["set-cookie"])
        self.assertEqual(self.ask(monitor, "/cluster_status", token=None, **headers).status, 401)

    def test_cookie_is_good_as_long_as_the_token_is(self):
        monitor = self.monitor()
        headers = self.signed_in(monitor)
        monitor.shutdown(wait=False)
        again = self.monitor(port=monitor.port)
        self.assertEqual(self.ask(again, "/update", b"", token=None, **headers).status, 200)
        again.shutdown(wait=False)
        other = self.monitor(port=monitor.port, token="another-token-of-the-tests")
        self.assertEqual(self.ask(other, "/cluster_status", token=None, **headers).status, 401)

    def test_every_monitor_has_a_token_of_its_own(self):
        first, second = self.monitor(token=None), self.monitor(token=None)
        self.assertNotEqual(first.token, second.token)
        self.assertGreaterEqual(len(first.token), 43)           # 256 bits
        self.assertEqual(self.ask(second, "/cluster_status", token=first.token).status, 401)
        self.assertEqual(first.url, "http://127.0.0.1:%d/#token=%s" % (first.port, first.token))

    def test_token_is_in_no_answer(self):
        monitor = self.monitor()
        for path in READS[1:] + ["/", "/missing"]:
            if path != "/api/events":
                answer = self.ask(monitor, path)
                self.assertNotIn(TOKEN, answer.text + str(answer.headers))

    def test_session(self):
        monitor = self.monitor(poll_sec=3, show_task_args=False, read_only=True)
        found = self.ask(monitor, "/api/session").json
        self.assertEqual((found["poll_sec"], found["show_task_args"], found["read_only"], found["can_act"]),
                         (3, False, True, False))
        self.assertEqual(found["csrf"], "")             # a program needs none

    def test_for_looking_only(self):
        monitor = self.monitor(read_only=True)
        task = Feed(monitor.feed).up().start(1)
        headers = self.signed_in(monitor)
        for path in POSTS:
            expected = 200 if path in ("/api/sign_out", "/node_info", "/server_info") else 403
            with self.subTest(path):
                self.assertEqual(self.ask(monitor, path, {"task": repr(task)}).status, expected)
        self.assertEqual((task.terminated, self.ask(monitor, "/api/changes", **headers).status), (0, 200))


class SpellingTest(ServerTestCase):
    """Paths and requests that are not what they should be."""

    def test_paths_that_lead_nowhere(self):
        folder = self.temp_dir()
        (folder / "secret.txt").write_text("SECRET")
        root = folder / "root"
        (root / "sub").mkdir(parents=True)
        (root / "sub" / "page.html").write_text("page")
        os.symlink(str(folder / "secret.txt"), str(root / "link.txt"))
        os.symlink(str(folder), str(root / "folder"))
        with self.expect_log("link.txt of the DocumentRoot is not shown"):
            monitor = self.monitor(DocumentRoot=str(root))
        self.assertEqual(self.ask(monitor, "/sub/page.html", token=None).body, b"page")
        up = ["..", "%2e%2e", ".%2E", "%252e%252e", "..\\", "..%5c", "..%2f", "....", "..;", "%c0%ae%c0%ae", "..%00"]
        paths = ["/%s/secret.txt" % word for word in up] + ["/sub/%s/%s/secret.txt" % (word, word) for word in up]
        paths += ["/link.txt", "/folder/secret.txt", "//etc/passwd", "///etc/passwd", "/sub/page.html/",
                  "/sub/page.html%00", "/sub//page.html", "/./sub/page.html", "/SUB/page.html", "/C:/secret.txt",
                  str(folder / "secret.txt"),
                  "/static/cluster.html", "/httpd_lite.py", "/sub", "/sub/", "file:///etc/passwd", "/" + "a/" * 2000,
                  "http://127.0.0.1:%d/sub/page.html" % monitor.port, "*", "secret.txt", "/\xc3\xa9"]
        for path in paths:
            for method in ("GET", "POST"):
                with self.subTest(path=path[:60], method=method):
                    reply = self.raw(monitor, request("%s %s" % (method, path)))
                    self.assertIn(self.status(reply), (400, 404))
                    self.assertNotIn(b"SECRET", reply)
        self.alive(monitor)

    def test_malformed_requests(self):
        monitor = self.monitor()
        auth = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
        good, host = b"GET /cluster_status HTTP/1.1\r\n", b"Host: 127.0.0.1\r\n"
        post = b"POST /update HTTP/1.1\r\n" + host + auth
        for data, expected in (
                (b"", 0), (b"\r\n\r\n", 0), (b"\x16\x03\x01\x02\x00\x01\x00", 0), (b"\0" * 100, 0), (b"GET", 0),
                (b"GET\r\n\r\n", 400), (b"\xff\xfe\xfd /x HTTP/1.1\r\n\r\n", 405), (b"GET /\r\n\r\n", 505),
                (b"GET / HTTP/0.9\r\n\r\n", 505), (b"GET / HTTP/2.0\r\n\r\n", 505), (b"GET / HTTP/x\r\n\r\n", 400),
                (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505), (b"GET / HTTP/1.1 x\r\n\r\n", 400),
                (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414), (b"GET /" + b"a" * 70000, 414),
                (good + b"X: " + b"a" * 20000 + b"\r\n\r\n", 431), (good + b"X: a\r\n" * 5000, 431),
                (good + host + b"X: a\r\n" * 150 + b"\r\n", 431), (good + auth + b"\r\n", 403),
                (good + host + host + auth + b"\r\n", 400), (good + host + b" folded: x\r\n" + auth + b"\r\n", 403),
                (good + host + b"no colon\r\n" + auth + b"\r\n", 400), (good + host + b": x\r\n" + auth + b"\r\n", 400),
                (good + host + b"\0: x\r\n" + auth + b"Host : evil\r\n\r\n", 400),
                (good + host + auth + b"Content-Length: 3\r\n\r\nabc", 400),
                (post + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
                (post + b"Content-Length: x\r\n\r\n", 400), (post + b"Content-Length: -1\r\n\r\n", 400),
                (post + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
                (post + b"Content-Length: 70000\r\n\r\n" + b"a" * 70000, 413),
                (post + b"Content-Length: 10\r\n\r\nabc", 400),
                (post + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
                (post + b"Content-Type: application/json\r\nContent-Length: 3\r\n\r\n{{{", 400),
                (post + b"Content-Type: text/xml\r\nContent-Length: 3\r\n\r\n<a>", 415),
                (good.replace(b"status", b"status?a=%ff") + host + auth + b"\r\n", 400),
                (b"GET /%ff HTTP/1.1\r\n" + host + auth + b"\r\n", 400)):
            with self.subTest(data[:60]):
                self.assertEqual(self.status(self.raw(monitor, data)), expected)
        self.alive(monitor)

    def test_random_bytes(self):
        monitor = self.monitor()
        chance = random.Random(7)
        base = b"POST /update?x=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\nCookie: a=b\r\n\r\ntimeout=3"
        for _ in range(300):
            data = bytearray(base)
            for _ in range(chance.randrange(1, 8)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            reply = self.raw(monitor, bytes(data[:chance.randrange(len(data) + 1)]))
            self.assertNotIn(b" 500 ", reply[:20])
            self.assertNotIn(b" 200 ", reply[:20])
        self.alive(monitor)

    def test_every_cut(self):
        """A request that ends anywhere, or comes byte by byte."""
        monitor = self.monitor()
        whole = request("POST /node_info", "Content-Length: 6") + b"host=x"
        for end in range(len(whole)):
            self.assertNotIn(b" 200 ", self.raw(monitor, whole[:end])[:20])
        with self.connect(monitor) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in whole:
                sock.sendall(bytes([byte]))
            sock.shutdown(socket.SHUT_WR)
            self.assertIn(b" 200 OK", self.rest(sock)[:20])


class SlowTest(ServerTestCase):
    """Connections that take their time."""

    def test_silent_connections_keep_nobody_out_and_are_cut(self):
        self.limit(http_header_s=60)
        monitor = self.monitor()
        silent = [self.connect(monitor) for _ in range(httpd_lite.settings.http_connections + 40)]
        for _ in range(10):
            self.alive(monitor)                         # while all places are taken
        for sock in silent[:40]:
            self.assertEqual(self.rest(sock), b"")      # they had to give way: this waits until it is so
        metrics = self.ask(monitor, "/metrics").text
        self.assertLessEqual(int(re.search(r"monitor_connections (\d+)", metrics).group(1)),
                             httpd_lite.settings.http_connections)

    def test_one_that_speaks_up_as_another_takes_its_place(self):
        """Both are seen at once, which is arranged by keeping the listener from looking until both are there."""
        self.limit(http_connections=1)
        monitor = self.monitor()
        held, go_on, sample = threading.Event(), threading.Event(), monitor._site.look

        def hold():
            held.set()
            go_on.wait(60)
            sample()
        silent = [self.connect(monitor)]
        monitor._site.look = hold
        try:
            self.assertTrue(held.wait(60))
            silent[0].sendall(b"GET / HTTP/1.1\r\n")
            silent.append(self.connect(monitor))
        finally:
            monitor._site.look = sample
            go_on.set()
        self.assertEqual(self.rest(silent[0]), b"")
        self.alive(monitor)

    def test_time_for_a_header_is_limited(self):
        self.limit(http_header_s=QUICK_S)
        monitor = self.monitor()
        for start in (b"", b"G", b"GET / HTTP/1.1\r\nHost: 127", b"POST /api/sign_in HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                      b"Content-Length: 10\r\n\r\nab"):
            with self.subTest(start):
                sock = self.connect(monitor)
                sock.sendall(start)
                self.assertEqual(self.rest(sock), b"")

    def test_dribbling_does_not_help(self):
        self.limit(http_header_s=QUICK_S)
        monitor = self.monitor()
        sock = self.connect(monitor)
        with self.assertRaises(OSError):                # it is cut, whatever still comes
            for byte in b"GET / HTTP/1.1\r\nX: " + b"a" * 1000:
                sock.sendall(bytes([byte]))
                time.sleep(0.02)                        # the pace of the attack

    def test_idle_connection_is_kept_and_then_cut(self):
        monitor = self.monitor()
        connection = http.client.HTTPConnection("127.0.0.1", monitor.port, timeout=60)
        self.addCleanup(connection.close)
        for last in (False, False, True):
            if last:
                self.limit(http_idle_s=QUICK_S)         # who is slow in asking is not to be cut before
            connection.request("GET", "/cluster_status", headers={"Authorization": "Bearer " + TOKEN})
            answer = connection.getresponse()
            self.assertEqual((answer.read(), answer.status), (b"[]", 200))
            self.assertEqual(answer.headers["Connection"], "keep-alive")
        self.assertEqual(connection.sock.recv(1), b"")

    def test_several_requests_in_one_write(self):
        monitor = self.monitor()
        several = request("GET /cluster_status") * 3 + request("GET /cluster_status", "Connection: close")
        self.assertEqual(self.raw(monitor, several).count(b"\r\n\r\n[]"), 4)

    def test_body_that_is_asked_for(self):
        """Expect: 100-continue, which is answered when the header was let in."""
        monitor = self.monitor()
        sock = self.connect(monitor)
        sock.sendall(request("POST /node_info", "Expect: 100-continue", "Content-Length: 6", "Connection: close"))
        self.assertEqual(sock.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
        sock.sendall(b"host=x")
        self.assertIn(b" 200 OK", self.rest(sock)[:20])
        refused = request("POST /update", "Expect: 100-continue", "Content-Length: 6").replace(b"Bearer", b"Basic")
        self.assertEqual(self.status(self.raw(monitor, refused, end=False)), 401)

    def test_viewer_that_does_not_read_is_cut(self):
        self.limit(http_send_s=QUICK_S, text_chars=10**6, texts_chars=10**6)
        monitor = self.monitor()
        feed = Feed(monitor.feed).up()
        for number in range(30):
            feed.start(number, 1, "x" * 500_000)
        sock = self.connect(monitor)
        sock.sendall(request("GET /server_info?location=10.0.0.1:9707"))
        self.assertTrue(sock.recv(1))
        self.wait_until(lambda: "monitor_connections 1\n" in self.ask(monitor, "/metrics").text)    # only this one

    def test_streams_are_limited_and_others_poll(self):
        self.limit(http_streams=3, http_alive_s=0.1)     # it is by writing that it sees who has gone
        monitor = self.monitor()
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                self.assertEqual(stack.enter_context(Stream(monitor)).read()[0], "full")
            answer = self.ask(monitor, "/api/events")
            self.assertEqual((answer.status, list(answer.json)), (503, ["error"]))
            self.assertEqual(self.ask(monitor, "/api/changes").status, 200)

        def free():
            with Stream(monitor) as stream:
                return stream.answer.status == 200
        self.wait_until(free)

    def test_who_comes_when_all_are_at_work_is_refused(self):
        """A viewer's stream is not cut for it."""
        self.limit(http_connections=1)
        monitor = self.monitor()
        with Stream(monitor, "?interval=0.2") as stream:
            stream.read()
            self.assertEqual(self.raw(monitor, request("GET /cluster_status"), end=False), b"")
            Feed(monitor.feed).up()
            self.assertEqual(stream.read()[0], "change")

    def test_many_at_once(self):
        monitor = self.monitor()
        Feed(monitor.feed).up()
        wrong: List[Any] = []

        def ask():
            for _ in range(20):
                try:
                    answer = self.ask(monitor, "/cluster_status")
                    wrong.extend([answer] if answer.status != 200 else [])
                except OSError as error:
                    wrong.append(error)
        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])


class AnswerTest(ServerTestCase):
    """What every answer has, and what pages get."""

    def test_headers_of_every_answer(self):
        monitor = self.monitor(DocumentRoot=str(self.folder({"own.html": "own"})))
        for path, token in [(path, TOKEN) for path in READS if path != "/api/events"] + [
                ("/own.html", None), ("/missing", TOKEN), ("/cluster_status", None), ("/cluster_status", "wrong")]:
            with self.subTest(path):
                answer = self.ask(monitor, path, token=token)
                policy = answer.headers["content-security-policy"]
                self.assertIn("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'", policy)
                self.assertIn("frame-ancestors 'none'", policy)
                self.assertNotIn("unsafe", policy)
                self.assertEqual((answer.headers["x-content-type-options"], answer.headers["referrer-policy"]),
                                 ("nosniff", "no-referrer"))
                self.assertEqual(int(answer.headers["content-length"]), len(answer.body))
                self.assertRegex(answer.headers["cache-control"], "no-store" if path != "/own.html" else "no-cache")
                self.assertEqual(answer.headers["server"], "pycoslite")
        self.assertIn("text/event-stream", self.stream_type(monitor))

    def stream_type(self, monitor):
        with Stream(monitor) as stream:
            self.assertEqual(stream.answer.headers["X-Content-Type-Options"], "nosniff")
            return stream.answer.headers["Content-Type"]

    def folder(self, files) -> Path:
        folder = self.temp_dir()
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder

    def test_head(self):
        monitor = self.monitor()
        reply = self.raw(monitor, request("HEAD /cluster_status"))
        self.assertTrue(reply.endswith(b"\r\n\r\n"))
        self.assertIn(b"Content-Length: 2\r\n", reply)

    def test_names_are_text(self):
        """What users call things comes out as JSON text and escaped labels, never as HTML."""
        monitor = self.monitor()
        feed = Feed(monitor.feed, name=HOSTILE).up()
        feed.end(feed.start(1, 1, HOSTILE, name=HOSTILE), ValueError, HOSTILE)
        feed.start(2, 1, HOSTILE)
        for path in ("/cluster_status", "/node_info?host=10.0.0.1", "/server_info?location=10.0.0.1:9707", "/api/tasks",
                     "/api/log", "/api/changes", "/%3Cimg%20src=x%20onerror=alert(1)%3E"):
            with self.subTest(path):
                answer = self.ask(monitor, path)
                self.assertEqual(answer.headers["content-type"], "application/json; charset=utf-8")
                answer.json
        self.assertIn(HOSTILE, self.ask(monitor, "/api/tasks").json["tasks"][0]["args"])
        labels = re.findall(r'^pycoslite_node_servers{node="(.*)",id="10.0.0.1:9706"} 2$',
                            self.ask(monitor, "/metrics").body.decode("utf-8", "replace"), re.M)
        self.assertEqual(len(labels), 1)
        self.assertNotRegex(labels[0], r'(?<!\\)"')

    def test_document_root(self):
        folder = self.folder({"cluster.html": "poll {{poll_sec}} args {{show_task_args}}", "my.css": "p {}",
                              "my.js": "1", "my.ico": "i", "my.exe": "x", "my.svg": "<svg/>",
                              "my.html": "<title>Mine</title>\n<main>{{poll_sec}}</main>"})
        monitor = self.monitor(DocumentRoot=str(folder), poll_sec=7)
        for path in ("/", "/index.html", "/cluster.html", "/cluster.html?x=1"):
            answer = self.ask(monitor, path, token=None)
            self.assertEqual((answer.text, answer.headers["content-type"]),
                             ("poll 7 args true", "text/html; charset=utf-8"))
        self.ask(monitor, "/update", {"timeout": "3", "show_task_args": "false"})
        self.assertEqual(self.ask(monitor, "/", token=None).text, "poll 3 args false")
        for name, kind in (("my.css", "text/css"), ("my.js", "text/javascript"), ("my.ico", "image/x-icon"),
                           ("my.svg", "image/svg+xml")):
            self.assertIn(kind, self.ask(monitor, "/" + name, token=None).headers["content-type"])
        self.assertEqual(self.ask(monitor, "/my.exe").status, 404)
        self.assertEqual(self.ask(monitor, "/my.ico", token=None).headers["cache-control"], "max-age=86400")
        page = self.ask(monitor, "/my.html", token=None).text           # the frame of the built-in ones around it
        for part in ("<!doctype html>", "<title>Mine \u2013 pycoslite</title>", "<main>3</main>", 'src="my.js"'):
            self.assertIn(part, page)

    def test_update(self):
        """W14: what is no number, or not 'true', and what is not said."""
        monitor = self.monitor(poll_sec=5)
        for fields, expected in (({}, (5, True)), ({"timeout": "x"}, (5, True)), ({"timeout": "nan"}, (5, True)),
                                 ({"timeout": "2.5"}, (2.5, True)), ({"timeout": "0.5"}, (0, True)),
                                 ({"timeout": "-1"}, (0, True)), ({"show_task_args": "yes"}, (0, False)),
                                 ({"show_task_args": "true", "timeout": "7"}, (7, True)),
                                 ({"show_coro_args": "false"}, (7, False))):
            with self.subTest(fields):
                answer = self.ask(monitor, "/update", fields)
                self.assertEqual((answer.status, answer.body), (200, b""))
                found = self.ask(monitor, "/api/session").json
                self.assertEqual((found["poll_sec"], found["show_task_args"]), expected)

    def test_page_that_the_browser_has(self):
        monitor = self.monitor(DocumentRoot=str(self.folder({"own.js": "1"})))
        tag = self.ask(monitor, "/own.js", token=None).headers["etag"]
        answer = self.ask(monitor, "/own.js", token=None, If_None_Match=tag)
        self.assertEqual((answer.status, answer.body), (304, b""))
        self.assertEqual(self.ask(monitor, "/own.js", token=None, If_None_Match='"x"').body, b"1")

    def test_document_roots_that_cannot_be(self):
        for root in (self.temp_dir() / "missing", __file__):
            with self.assertRaisesRegex(pycoslite.MisuseError, "is not a directory"):
                httpd_lite.HTTPServer(None, port=0, DocumentRoot=str(root))

    def test_document_roots_with_too_much(self):
        self.addCleanup(setattr, httpd_lite, "_FILE_BYTES", httpd_lite._FILE_BYTES)
        self.addCleanup(setattr, httpd_lite, "_FILES_MOST", httpd_lite._FILES_MOST)
        httpd_lite._FILE_BYTES, httpd_lite._FILES_MOST = 10, 3
        folder = self.folder({"long.js": "x" * 11, "a.js": "1", "b.js": "2", "c.js": "3"})
        with self.expect_log("long.js of the DocumentRoot is not shown: it is no file of at most 10 bytes"):
            self.assertEqual(sorted(httpd_lite.document_root_pages(str(folder))), ["/a.js", "/b.js", "/c.js"])
        (folder / "long.js").unlink()
        (folder / "d.js").write_text("4")
        with self.assertRaisesRegex(pycoslite.MisuseError, "more than 3 pages"):
            httpd_lite.document_root_pages(str(folder))

    def test_built_in_pages(self):
        listed = {"/" + name for name in httpd_lite.STATIC_FILES}
        there = {"/" + path.name for path in (ROOT / "static").iterdir()} - {"/frame.html"}
        self.assertEqual(listed, there)
        self.assertEqual(set(httpd_lite.built_in_pages()), listed)
        monitor = self.monitor()
        for path in ("/", "/index.html", "/cluster.html", "/node.html?host=a", "/server.html?location=b"):
            self.assertEqual(self.ask(monitor, path, token=None).headers["content-type"], "text/html; charset=utf-8")
        for path in sorted(listed):
            page = self.ask(monitor, path, token=None)
            self.assertEqual(page.status, 200)
            self.assertNotRegex(page.body, rb"https?://(?!www\.w3\.org/)")       # nothing comes from elsewhere
            if path.endswith(".html"):
                for part in (b"<!doctype html>", b"<noscript>", b"</html>", b'src="%s.js"' % path[1:-5].encode()):
                    self.assertEqual(page.body.count(part), 1, (path, part))
                self.assertNotIn(b"{{", page.body)
        self.assertEqual(self.ask(monitor, "/frame.html", token=None).status, 404)

    def test_pages_from_a_zip_file(self):
        """Where the modules are part of another package in it; that they can be imported so, test_structure shows."""
        archive = self.temp_dir() / "all.zip"
        with zipfile.ZipFile(str(archive), "w") as file:
            file.writestr("theirpkg/__init__.py", "")
            for path in [ROOT / (name + ".py") for name in MODULES] + sorted((ROOT / "static").iterdir()):
                file.write(str(path), "theirpkg/" + str(path.relative_to(ROOT)))
        code = "import sys; sys.path.insert(0, %r)\nimport theirpkg.httpd_lite as m\nprint(sorted(m.built_in_pages()))"
        text = subprocess.run([sys.executable, "-E", "-s", "-S", "-c", code % str(archive)], cwd=str(self.temp_dir()),
                              text=True, stdout=subprocess.PIPE, timeout=100).stdout
        self.assertEqual(text.strip(), str(sorted("/" + name for name in httpd_lite.STATIC_FILES)))

    def test_without_pages(self):
        self.addCleanup(setattr, httpd_lite, "STATIC_FILES", httpd_lite.STATIC_FILES)
        httpd_lite.STATIC_FILES = ("missing.html",)
        with self.expect_log("there are no pages, as the directory static/ does not lie beside"):
            monitor = self.monitor()
        answer = self.ask(monitor, "/")
        self.assertEqual(answer.status, 404)
        self.assertIn("static/ does not lie beside httpd_lite.py", answer.json["error"])
        self.alive(monitor)

    def test_fault_of_ours_is_told_and_survived(self):
        monitor = self.monitor()
        monitor._site.view.find_node = None
        with self.expect_log("could not be answered", level=40):
            answer = self.ask(monitor, "/node_info?host=x")
        self.assertEqual((answer.status, list(answer.json)), (500, ["error"]))
        self.alive(monitor)

    def test_fault_of_ours_in_a_stream_ends_it(self):
        monitor = self.monitor()
        with Stream(monitor, "?interval=0.2") as stream:
            stream.read()
            monitor._site.view.summary = None
            with self.expect_log("a stream of events failed", level=40):
                Feed(monitor.feed).up()
                self.assertIsNone(stream.read())

    def test_texts_are_made_while_others_are_answered(self):
        """A `__str__` of the user's that takes its time holds up its own program, and nobody who looks."""
        monitor = self.monitor()
        asked, go_on = threading.Event(), threading.Event()

        class Slow:
            def __str__(self):
                asked.set()
                go_on.wait(60)
                return "at last"
        feed = Feed(monitor.feed).up()
        task = feed.start(1, 1, Slow())
        ending = threading.Thread(target=feed.end, args=(task,))
        ending.start()
        try:
            self.assertTrue(asked.wait(60))
            self.assertEqual(self.ask(monitor, "/cluster_status").json[0]["tasks_done"], 0)
        finally:
            go_on.set()
            ending.join()
        self.assertEqual(self.ask(monitor, "/api/tasks").json["tasks"][0]["args"], "at last")

    def test_metrics(self):
        monitor = self.monitor()
        feed = Feed(monitor.feed).up()
        feed.end(feed.start(1), ValueError, "")
        feed.start(2)
        text = self.ask(monitor, "/metrics").text
        for line in ("pycoslite_tasks_submitted_total 2", 'pycoslite_tasks_ended_total{outcome="failed"} 1',
                     "pycoslite_tasks_running 1", 'pycoslite_nodes{status="Initialized"} 1',
                     'pycoslite_node_cpu_free_percent{node="n1",id="10.0.0.1:9706"} 75.0'):
            self.assertIn("\n" + line + "\n", text)
        for line in text.splitlines():
            self.assertRegex(line, r'^(# (HELP|TYPE) pycoslite_\w+ .+|pycoslite_\w+({(\w+="[^"]*",?)+})? -?[\d.e+]+)$')


class ViewersTest(ServerTestCase):
    """Any number of them, by stream, by polling, by the documented way."""

    def test_every_viewer_sees_every_change(self):
        """V21. Eight streams, a poller and two readers of cluster_updates all end with what is the case."""
        monitor = self.monitor(poll_sec=1)
        feeds = [Feed(monitor.feed, addr="10.0.0.%d" % n, name="n%d" % n).up() for n in range(6)]
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(Stream(monitor, "?interval=0.2")) for _ in range(8)]
            for stream in streams:
                self.assertEqual(stream.follow(1), ["full"])
            polled = self.ask(monitor, "/api/changes").json
            seen = {node["id"]: node for node in polled["nodes"]}
            readers = {name: {} for name in ("one", "two")}
            for step in range(60):
                feed = feeds[step % 6]
                feed.end(feed.start(step, 1 + step % 2))
                feed.node("Suspended" if step % 4 else "Resumed")
                if step % 10 == 0:
                    polled = self.ask(monitor, "/api/changes?instance=%(instance)s&seq=%(seq)d" % polled).json
                    seen.update((node["id"], node) for node in polled["nodes"])
                if step % 20 == 0:
                    self.update(monitor, "one", readers)
            polled = self.ask(monitor, "/api/changes?instance=%(instance)s&seq=%(seq)d" % polled).json
            seen.update((node["id"], node) for node in polled["nodes"])
            truth = {node["id"]: node for node in self.ask(monitor, "/api/changes").json["nodes"]}
            self.assertEqual(seen, truth)
            for stream in streams:
                self.assertNotIn("full", stream.follow(polled["seq"]))
                self.assertEqual(stream.known, truth)
            documented = {node["name"]: node for node in self.ask(monitor, "/cluster_status").json}
            for name in readers:
                self.update(monitor, name, readers)
                self.assertEqual(readers[name], documented)
                self.assertEqual(self.update(monitor, name, readers), [])

    def update(self, monitor, name, readers):
        found = self.ask(monitor, "/cluster_updates?reader=" + name).json
        readers[name].update((node["name"], node) for node in found)
        return found

    def test_each_browser_is_a_reader(self):
        monitor = self.monitor()
        browsers = [self.signed_in(monitor) for _ in range(2)]
        Feed(monitor.feed).up()
        for _ in range(2):
            for count in (1, 0):
                for headers in browsers:
                    found = self.ask(monitor, "/cluster_updates", token=None, **headers).json
                    self.assertEqual(len(found), count)
            Feed(monitor.feed).node("Suspended")

    def test_events(self):
        self.limit(http_alive_s=0.1)
        monitor = self.monitor()
        feed = Feed(monitor.feed)
        with Stream(monitor, "?interval=0.2") as stream:
            self.assertEqual(stream.read()[0], "full")
            self.assertEqual(stream.read()[0], "alive")
            feed.up()
            name, data = stream.read()
            while name == "alive":
                name, data = stream.read()
            self.assertEqual((name, data["full"]), ("change", False))
            monitor.shutdown(wait=False)
            while stream.read() is not None:            # it ends with the monitor
                pass

    def test_first_change_after_a_quiet_time_comes_at_once(self):
        self.limit(http_alive_s=0.5)
        monitor = self.monitor()
        with Stream(monitor, "?interval=0.2") as stream:
            self.assertEqual([stream.read()[0] for _ in range(2)], ["full", "alive"])   # more than the interval ago
            Feed(monitor.feed).node("Discovered")
            self.assertEqual(stream.read()[0], "change")

    def test_readers_that_do_not_come_again_are_forgotten(self):
        self.limit(http_readers=2)
        monitor = self.monitor()
        Feed(monitor.feed).up()
        counts = [len(self.ask(monitor, "/cluster_updates?reader=" + name).json) for name in "abacbca"]
        self.assertEqual(counts, [1, 1, 0, 1, 1, 0, 1])

    def test_waiting_for_a_change(self):
        monitor = self.monitor()
        feed = Feed(monitor.feed)
        found = self.ask(monitor, "/api/changes").json
        timer = threading.Timer(0.1, feed.up)
        timer.start()
        self.addCleanup(timer.join)
        found = self.ask(monitor, "/api/changes?instance=%(instance)s&seq=%(seq)d&wait=20" % found).json
        self.assertEqual((found["full"], found["totals"]["nodes"]), (False, 1))
        timer.join()
        seq = self.ask(monitor, "/api/changes").json["seq"]
        found = self.ask(monitor, "/api/changes?instance=%s&seq=%d&wait=0.05" % (found["instance"], seq)).json
        self.assertEqual((found["full"], found["nodes"]), (False, []))

    def test_arguments_hidden_for_all(self):
        monitor = self.monitor()
        feed = Feed(monitor.feed).up()
        feed.start(1, 1, "visible")
        self.assertEqual(self.ask(monitor, "/api/tasks").json["tasks"][0]["args"], "visible")
        with Stream(monitor, "?interval=0.2") as stream:
            stream.read()
            self.ask(monitor, "/update", {"show_task_args": "no"})
            self.assertFalse(stream.read()[1]["show_task_args"])
        self.assertEqual(self.ask(monitor, "/api/tasks").json["tasks"][0]["args"], "")

    def test_history(self):
        self.limit(sample_s=0.05)
        monitor = self.monitor()
        Feed(monitor.feed).up()

        def sampled():
            found = self.ask(monitor, "/api/history").json
            return 2 in found["servers"] and found
        found = self.wait_until(sampled)
        self.assertEqual((found["step"], found["cpu_used"][-1]), (0.05, 25.0))
        self.assertEqual(self.ask(monitor, "/api/history?scope=run").status, 200)
        self.assertEqual(self.ask(monitor, "/api/history?scope=x").status, 400)

    def test_log_after_a_seq(self):
        monitor = self.monitor()
        feed = Feed(monitor.feed).up()
        found = self.ask(monitor, "/api/log").json
        self.assertEqual(found["log"][0]["text"], "Discovered")
        feed.node("Abandoned")
        found = self.ask(monitor, "/api/log?after=%d" % found["seq"]).json
        self.assertEqual([line["text"] for line in found["log"]], ["Abandoned"])
        self.assertEqual(self.ask(monitor, "/api/tasks?state=x").status, 400)


class FakeClient:
    """What a monitor needs of a client that counts no jobs; `calls` are those that viewers caused."""

    def __init__(self) -> None:
        self.calls = []
        self.watch = lambda callback: lambda: None

    def __getattr__(self, name: str) -> Any:
        if name not in ("suspend_node", "resume_node", "suspend_server", "resume_server"):
            raise AttributeError(name)

        def call(where: Any) -> int:
            self.calls.append((name, where, pycoslite.Pycos.cur_task() is not None))
            return 0
        return call


class ActTest(ServerTestCase):
    """What a client is asked to do, in places that a real cluster of one machine does not have."""

    def test_ipv6(self):
        client = FakeClient()
        monitor = self.monitor(client)
        task = Feed(monitor.feed, addr="fd00::1").up().start(1)
        self.assertEqual(repr(task), "compute/1@[fd00::1]:9707")
        self.assertEqual(self.ask(monitor, "/terminate_tasks", {"task": repr(task)}).json, [repr(task)])
        self.assertEqual(task.terminated, 1)
        for name, text in (("servers", '["[fd00::1]:9707"]'), ("servers", "[fd00::1]:9708")):
            self.assertEqual(len(self.ask(monitor, "/suspend_server", {name: text}).json), 1)
        self.assertEqual(self.ask(monitor, "/suspend_node", {"nodes": '["fd00::1"]'}).json, ["fd00::1"])
        self.assertEqual(client.calls, [
            ("suspend_server", pycoslite.Location("fd00::1", 9707), True),
            ("suspend_server", pycoslite.Location("fd00::1", 9708), True),
            ("suspend_node", pycoslite.Location("fd00::1", 9706), True)])
        self.assertEqual(len(self.ask(monitor, "/node_info?host=[fd00::1]:9706").json["servers"]), 2)

    def test_nodes_at_one_address(self):
        """By its Location, as name and address may be several nodes'; those alone are refused then."""
        client = FakeClient()
        monitor = self.monitor(client)
        for port, name in ((9706, "a"), (9806, "b"), (9906, "b")):
            Feed(monitor.feed, port=port, name=name).up()
        for who, port in (("10.0.0.1:9806", 9806), ("10.0.0.1:9906", 9906), ("a", 9706)):
            self.assertEqual(self.ask(monitor, "/suspend_node", {"nodes": [who]}).json, [who])
            self.assertEqual(client.calls.pop(), ("suspend_node", pycoslite.Location("10.0.0.1", port), True))
        for who in ("b", "10.0.0.1"):
            answer = self.ask(monitor, "/suspend_node", {"nodes": ["10.0.0.1:9806", who]})
            self.assertEqual((answer.status, client.calls), (409, []), answer.text)

    def test_what_is_not_there_is_not_done(self):
        client = FakeClient()
        monitor = self.monitor(client)
        for path, fields in (("/suspend_node", {"nodes": '["x"]'}), ("/resume_server", {"servers": '["x", "y:1"]'}),
                             ("/suspend_node", {}), ("/terminate_tasks", {"task": "x"}), ("/terminate_tasks", {})):
            self.assertEqual((self.ask(monitor, path, fields).status, self.ask(monitor, path, fields).json), (200, []))
        for path, fields in (("/suspend_node", {"nodes": "[1]]"}), ("/suspend_server", {"servers": "[{}]"})):
            self.assertEqual(self.ask(monitor, path, fields).status, 400)
        self.assertEqual(client.calls, [])

    def test_body_in_json(self):
        client = FakeClient()
        monitor = self.monitor(client)
        Feed(monitor.feed).up()
        answer = self.ask(monitor, "/suspend_node", json.dumps({"nodes": ["n1"]}).encode(),
                          Content_Type="application/json")
        self.assertEqual((answer.json, client.calls), (
            ["n1"], [("suspend_node", pycoslite.Location("10.0.0.1", 9706), True)]))


class OptionsTest(ServerTestCase):
    """What a monitor is made with, and how it ends."""

    def test_oldest_form(self):
        with self.expect_log("^monitor: open"):
            monitor = httpd_lite.HTTPServer("127.0.0.1", 0, 2)
        self.addCleanup(pycoslite.stop_default)
        Feed(monitor.status_coro.send).up()             # a program that relays its messages by hand
        self.wait_until(lambda: self.ask(monitor, "/cluster_status", token=monitor.token).json)
        self.assertEqual(self.ask(monitor, "/api/session", token=monitor.token).json["poll_sec"], 2)
        monitor.shutdown(wait=False)

    def test_old_names_of_options(self):
        monitor = self.monitor(show_coro_args=False, poll_sec=0.1)
        found = self.ask(monitor, "/api/session").json
        self.assertEqual((found["show_task_args"], found["poll_sec"]), (False, 1))

    def test_what_cannot_be(self):
        for options, sentence in (
                ({"port": 70000}, "port=70000 is not a port number"), ({"port": "x"}, "port='x' is not"),
                ({"poll_sec": "x"}, "poll_sec='x' is not"), ({"host": 5}, "host=5 is not"),
                ({"keyfile": "x"}, "keyfile without certfile"), ({"token": "short"}, "token must be 16 or more"),
                ({"token": "with a blank inside it"}, "token must be"), ({"certfile": "/missing"}, "cannot be used"),
                ({"host": "no-such-host.invalid"}, "cannot listen at no-such-host.invalid port 0")):
            with self.subTest(options), self.assertRaisesRegex(pycoslite.MisuseError, sentence):
                httpd_lite.HTTPServer(None, **{"port": 0, **options})
        with self.assertRaisesRegex(pycoslite.MisuseError, "is not a Client"):
            httpd_lite.HTTPServer(object(), port=0)
        with self.assertRaises(TypeError):
            httpd_lite.HTTPServer(None, nonsense=1)

    def test_port_in_use(self):
        monitor = self.monitor()
        with self.assertRaisesRegex(pycoslite.MisuseError, "port %d: .*choose another port" % monitor.port):
            httpd_lite.HTTPServer(None, port=monitor.port)

    def test_without_threads(self):
        """As CPython 3.12.0 and 3.12.1 have it when the main program has ended."""
        monitor = self.monitor()
        refusing = unittest.mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread"))
        with refusing, self.assertRaisesRegex(pycoslite.MisuseError, r"can't start new thread\)\. CPython 3\.12\.0"):
            httpd_lite.HTTPServer(None, port=0)
        with self.expect_log("viewers get no answer: no thread can be started") as found, refusing:
            for _ in range(3):
                self.assertEqual(self.raw(monitor, request("GET /cluster_status")), b"")
        self.assertEqual(len(found), 1)
        self.alive(monitor)

    def test_this_machine_only_unless_told(self):
        monitor = self.monitor()
        self.assertEqual(monitor._listener._socket.getsockname()[0], "127.0.0.1")
        everywhere = self.monitor(host="0.0.0.0")
        self.assertEqual(everywhere._listener._socket.getsockname()[0], "0.0.0.0")
        self.assertEqual(self.ask(everywhere, "/cluster_status", Host=socket.gethostname()).status, 200)
        self.assertEqual(self.ask(everywhere, "/cluster_status", token=None).status, 401)

    def test_more_names(self):
        monitor = self.monitor(hosts=["Monitor.Example"])
        self.assertEqual(self.ask(monitor, "/cluster_status", Host="monitor.example:443").status, 200)

    def test_ipv6(self):
        try:
            with socket.socket(socket.AF_INET6) as sock:
                sock.bind(("::1", 0))
        except OSError:
            self.skipTest("there is no IPv6 loopback here")
        monitor = self.monitor(host="::1")
        self.assertRegex(monitor.url, r"^http://\[::1\]:\d+/#token=")
        connection = http.client.HTTPConnection("::1", monitor.port, timeout=60)
        self.addCleanup(connection.close)
        connection.request("GET", "/cluster_status", headers={"Authorization": "Bearer " + TOKEN})
        self.assertEqual(connection.getresponse().read(), b"[]")

    def test_shutdown_waits_for_browsers_that_have_looked(self):
        monitor = self.monitor(poll_sec=1)
        monitor.shutdown()                              # nobody has
        with self.assertRaises(OSError):
            self.connect(monitor)
        monitor = self.monitor(poll_sec=1)
        self.alive(monitor)
        ending = threading.Thread(target=monitor.shutdown)
        ending.start()
        self.alive(monitor)                             # the browser gets the last changes
        ending.join()
        with self.assertRaises(OSError):
            self.connect(monitor)
        monitor.shutdown()                              # again does nothing

    def test_shutdown_in_a_task_does_not_wait(self):
        monitor = self.monitor(poll_sec=1)
        self.alive(monitor)

        def main(task=None):
            monitor.shutdown()
            yield
            return monitor._site.closing.is_set()
        self.assertIs(pycoslite.Task(main).value(60), False)
        self.alive(monitor)
        self.assertTrue(monitor._site.closing.wait(60))

    def test_as_a_context_manager(self):
        with self.monitor() as monitor:
            pass
        with self.assertRaises(OSError):
            self.connect(monitor)

    def test_program_ends_with_an_open_stream(self):
        program = ("import sys, httpd_lite, pycoslite\nm = httpd_lite.HTTPServer(None, port=0, token=%r)\n"
                   "print('port', m.port, flush=True)\nsys.stdin.readline()\n" % TOKEN)
        with running([sys.executable, "-X", "dev", "-W", "error", "-c", program], ready=r"port (\d+)") as process:
            class Place:
                port = int(process.match.group(1))
            with Stream(Place) as stream:
                stream.read()
                process.write("\n")
                self.assertEqual(process.wait(), 0, process.output)
                self.assertIsNone(stream.read())
            self.assertNotIn("Traceback", process.output)

    def test_messages_that_make_no_sense(self):
        monitor = self.monitor()
        with self.expect_log("makes no sense", level=40):
            monitor.feed(DispycosStatus(Scheduler.TaskStarted, "text"))
        Feed(monitor.feed).up()
        self.assertEqual(len(self.ask(monitor, "/cluster_status").json), 1)


@unittest.skipUnless(shutil.which("openssl"), "makes its certificate with the openssl program, which is not here")
class TlsTest(ServerTestCase):
    """https."""

    @classmethod
    def setUpClass(cls):
        cls.folder = Path(tempfile.mkdtemp(prefix="t-"))
        cls.addClassCleanup(shutil.rmtree, str(cls.folder), ignore_errors=True)
        cls.cert, cls.key, cls.both = (str(cls.folder / name) for name in ("cert.pem", "key.pem", "both.pem"))
        subprocess.run(["openssl", *CERTIFICATE, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", cls.key, "-out",
                        cls.cert], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        Path(cls.both).write_text(Path(cls.key).read_text() + Path(cls.cert).read_text())

    def get(self, monitor, path="/cluster_status", **headers):
        context = ssl.create_default_context(cafile=self.cert)
        connection = http.client.HTTPSConnection("127.0.0.1", monitor.port, timeout=60, context=context)
        self.addCleanup(connection.close)
        connection.request("GET", path, headers={"Authorization": "Bearer " + TOKEN, **headers})
        return connection.getresponse()

    def test_one_file_and_two(self):
        for files in ({"certfile": self.both}, {"certfile": self.cert, "keyfile": self.key}):
            monitor = self.monitor(**files)
            self.assertTrue(monitor.url.startswith("https://127.0.0.1:"))
            self.assertEqual(self.get(monitor).read(), b"[]")
            self.assertEqual(self.get(monitor, Origin="https://127.0.0.1:%d" % monitor.port).status, 200)
            self.assertEqual(self.get(monitor, Origin="http://127.0.0.1:%d" % monitor.port).status, 403)

    def test_cookie_is_for_https_only(self):
        monitor = self.monitor(certfile=self.both)
        context = ssl.create_default_context(cafile=self.cert)
        connection = http.client.HTTPSConnection("127.0.0.1", monitor.port, timeout=60, context=context)
        self.addCleanup(connection.close)
        connection.request("POST", "/api/sign_in", "token=" + TOKEN)
        self.assertIn("; Secure", connection.getresponse().headers["Set-Cookie"])

    def test_who_does_not_speak_tls_or_stalls_holds_up_nobody(self):
        self.limit(http_header_s=QUICK_S)
        monitor = self.monitor(certfile=self.both)
        stalled = [self.connect(monitor) for _ in range(80)]
        for sock in stalled[::2]:
            sock.sendall(b"\x16\x03\x01")
        self.assertEqual(self.get(monitor).status, 200)
        self.raw(monitor, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for sock in stalled:
            self.assertEqual(self.rest(sock), b"")
        self.assertEqual(self.get(monitor).status, 200)

    def test_oldest_version(self):
        # Whether the client's side could speak them depends on how OpenSSL was built: the server's side is looked at.
        self.assertEqual(httpd_lite._Options(certfile=self.both).tls().minimum_version, ssl.TLSVersion.TLSv1_2)

    def test_stream(self):
        monitor = self.monitor(certfile=self.both)
        answer = self.get(monitor, "/api/events?interval=0.2")
        self.assertEqual(answer.fp.readline(), b"event: full\n")
        monitor.shutdown(wait=False)
        answer.read()

    def test_key_that_does_not_fit(self):
        with self.assertRaisesRegex(pycoslite.MisuseError, "cannot be used"):
            httpd_lite.HTTPServer(None, port=0, certfile=self.cert, keyfile=self.cert)


if __name__ == "__main__":
    unittest.main()
