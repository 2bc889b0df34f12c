"""AsyncFile, AsyncPipe, Popen, pipe: every row of the feature list (F01-F17); real files, terminals and children."""
from __future__ import annotations

import errno
import gc
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import unittest
import warnings
from pathlib import Path
from typing import Any, Dict, Tuple
from unittest import mock

import pycoslite
from pycoslite import AsyncFile, AsyncPipe, AsyncSocket, MisuseError, Popen, Task
from tests.test_pycoslite_sockets import SocketCase

ROWS: Dict[str, str] = {
    "F01": "test_takes_every_kind_of_file",
    "F02": "test_read",
    "F03": "test_write",
    "F04": "test_readline",
    "F05": "test_close_and_context_manager",
    "F06": "test_pipe_of_one_process",
    "F07": "test_pipe_of_one_process",
    "F08": "test_pipe_of_one_process",
    "F09": "test_pipe_reads_lines",
    "F10": "test_stderr",
    "F11": "test_stderr",
    "F12": "test_communicate",
    "F13": "test_poll",
    "F14": "test_closing_forgets_the_process",
    "F15": "test_chain_of_processes",
    "F16": "test_popen_is_that_of_subprocess",
    "F17": "test_pipe_gives_two_descriptors",
}

PIPE = subprocess.PIPE
BIG = os.urandom(1 << 16) * 16          # more than a pipe holds
COPY = [sys.executable, "-c", "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"]
UPPER = [sys.executable, "-c", "import sys\nfor line in sys.stdin: print(line.strip().upper(), flush=True)"]


class FileCase(SocketCase):
    """Has files, pipes and children to work with."""

    def pipe(self) -> Tuple[AsyncFile, AsyncFile]:
        read_end, write_end = pycoslite.pipe()
        files = AsyncFile(read_end), AsyncFile(write_end)
        for file in files:
            self.addCleanup(file.close)
        return files

    def disk_file(self, data: bytes = b"") -> Path:
        path = self.temp_dir() / "file"
        path.write_bytes(data)
        return path

    def child(self, command: Any, **options: Any) -> Any:
        """A child process with pipes for stdin and stdout, killed and reaped after the test."""
        options.setdefault("stdin", PIPE)
        options.setdefault("stdout", PIPE)
        options.setdefault("stderr", subprocess.DEVNULL)
        process = Popen(command, **options)
        self.addCleanup(self.end, process)
        return process

    def end(self, process: Any) -> None:
        process.kill()
        process.wait()
        for file in (process.stdin, process.stdout, process.stderr):
            if file is not None:
                file.close()


class RowsTest(FileCase):

    def test_every_row_has_a_test(self):
        self.assertEqual(sorted(ROWS), ["F%02d" % n for n in range(1, 18)])
        for name in ROWS.values():
            self.assertTrue(any(hasattr(case, name) for case in (AsyncFileTest, AsyncPipeTest)), name)


class AsyncFileTest(FileCase):

    def outcome(self, request):
        """Task: the exception of a request, or its result."""
        try:
            return (yield request)
        except Exception as error:
            return error

    def until(self, condition):
        """Wait for what another thread does; a task that only yields would compete with it."""
        while not condition():
            yield pycoslite._Timed(0.001)

    def test_takes_every_kind_of_file(self):
        left, right = socket.socketpair()
        third, fourth = socket.socketpair()
        numbers = pycoslite.pipe()
        files = [AsyncFile(left), AsyncFile(AsyncSocket(right)), AsyncFile(os.fdopen(third.detach(), "r+b", 0)),
                 AsyncFile(fourth.detach()), AsyncFile(numbers[0]), AsyncFile(numbers[1])]
        for file in files:
            self.addCleanup(file.close)
            self.assertFalse(os.get_blocking(file.fileno()))

        def body():
            for first, second in ((files[0], files[1]), (files[2], files[3]), (files[5], files[4])):
                self.assertEqual((yield first.write(b"hello")), 5)
                self.assertEqual((yield second.read(100)), b"hello")
        self.task(body)
        for wrong in ("path", None, object(), True, 1.5):
            with self.assertRaisesRegex(ValueError, "is not a file"):
                AsyncFile(wrong)
        with self.assertRaises(OSError):
            AsyncFile(12345)

    def test_read(self):
        reader, writer = self.pipe()

        def body():
            yield writer.write(b"hello")
            self.assertEqual((yield reader.read(2)), b"he")
            self.assertEqual((yield reader.read(100)), b"llo")
            task = Task(self.outcome, reader.read(6, full=True))
            for piece in (b"ab", b"cd", b"efg"):
                yield writer.write(piece)
                yield
            self.assertEqual((yield task.finish()), b"abcdef")
            self.assertEqual((yield reader.read(5, full=True, timeout=0.01)), b"g")      # what has come
            with self.assertRaises(socket.timeout):
                yield reader.read(5, timeout=0.01)
            task = Task(self.outcome, reader.read())
            yield writer.write(BIG, full=True)
            writer.close()
            self.assertEqual((yield task.finish()), BIG)
            self.assertEqual((yield reader.read()), b"")
            self.assertEqual((yield reader.read(3)), b"")
            self.assertEqual((yield reader.read(3, full=True)), b"")
        self.task(body)

    def test_write(self):
        reader, writer = self.pipe()

        def body():
            self.assertEqual((yield writer.write(b"")), 0)
            count = yield writer.write(BIG)
            self.assertTrue(0 < count < len(BIG), count)
            with self.assertRaises(socket.timeout):
                yield writer.write(BIG, timeout=0.01)
            self.assertEqual((yield reader.read(count, full=True)), BIG[:count])
            more = yield writer.write(BIG, full=True, timeout=0.01)
            self.assertTrue(0 < more < len(BIG), more)
            self.assertEqual((yield reader.read(more, full=True)), BIG[:more])
            task = Task(self.outcome, writer.write(bytearray(BIG), full=True))
            self.assertEqual((yield reader.read(len(BIG), full=True)), BIG)
            self.assertEqual((yield task.finish()), len(BIG))
            reader.close()
            with self.assertRaises(BrokenPipeError):
                yield writer.write(b"x")
            with self.assertRaises(TypeError):
                writer.write("text")
        self.task(body)

    def test_readline(self):
        reader, writer = self.pipe()

        def body():
            yield writer.write(b"one\ntwo\n\nlong line\nrest")
            self.assertEqual((yield reader.readline()), b"one\n")
            self.assertEqual((yield reader.readline(sizehint=1)), b"two\n")
            self.assertEqual((yield reader.readline(size=1)), b"\n")
            self.assertEqual((yield reader.readline(size=4)), b"long")
            self.assertEqual((yield reader.readline(size=100)), b" line\n")
            writer.close()
            self.assertEqual((yield reader.readline()), b"rest")
            self.assertEqual((yield reader.readline()), b"")
        self.task(body)

    def test_partial_line_survives_a_timeout(self):
        reader, writer = self.pipe()

        def body():
            for piece in (b"be", b"gin"):
                yield writer.write(piece)
                with self.assertRaises(socket.timeout):
                    yield reader.readline(timeout=0.01)
            yield writer.write(b"ning\nnext")
            self.assertEqual((yield reader.readline(timeout=60)), b"beginning\n")
            self.assertEqual((yield reader.read(2)), b"ne")
            task = Task(self.outcome, reader.readline())
            yield
            task.terminate()
            yield task.finish()
            self.assertEqual((yield reader.read(100)), b"xt")
            self.assertIsNone(reader.watch.reader)
        self.task(body)

    def test_close_and_context_manager(self):
        def body():
            reader, writer = self.pipe()
            tasks = [Task(self.outcome, reader.read(10, full=True)), Task(self.outcome, writer.write(BIG, full=True))]
            yield
            reader.close()
            writer.close()
            self.assertIsInstance((yield tasks[0].finish()), bytes)
            self.assertIsInstance((yield tasks[1].finish()), OSError)
            for request in (reader.read(1), reader.readline(), writer.write(b"x")):
                with self.assertRaisesRegex(ValueError, "closed"):
                    yield request
            with self.assertRaises(KeyError):
                with AsyncFile(os.dup(0)) as file:
                    raise KeyError
            with self.assertRaises(ValueError):
                file.fileno()
        self.task(body)

    def test_closed_while_reading_gives_what_has_come(self):
        def body():
            for make in (lambda f: f.read(10, full=True), lambda f: f.readline(), lambda f: f.read()):
                reader, writer = self.pipe()
                yield writer.write(b"part")
                task = Task(self.outcome, make(reader))
                yield
                reader.close()
                self.assertEqual((yield task.finish()), b"part")
        self.task(body)

    def test_one_reader_and_one_writer(self):
        reader, _writer = self.pipe()

        def body():
            task = Task(self.outcome, reader.read(1))
            yield
            with self.assertRaisesRegex(MisuseError, "reading from .*AsyncFile"):
                yield reader.readline()
            task.terminate()
        self.task(body)

    def test_files_on_disk(self):
        path = self.disk_file(BIG + b"\nlast")

        def body():
            with AsyncFile(open(str(path), "rb")) as file:
                self.assertEqual((yield file.read(10, full=True)), BIG[:10])
                self.assertEqual((yield file.read(7)), BIG[10:17])
                rest = yield file.read()
                self.assertEqual(BIG[17:] + b"\nlast", rest)
                self.assertEqual((yield file.read(5)), b"")
            with AsyncFile(open(str(path), "wb")) as file:
                self.assertEqual((yield file.write(BIG, full=True)), len(BIG))
                with self.assertRaises(OSError):
                    yield file.read(1)                  # opened to write only
            with AsyncFile(os.open(str(path), os.O_RDONLY)) as file:
                self.assertEqual((yield file.read()), BIG)
            with AsyncFile(io.open(str(path), "wb")) as file:
                yield file.write(b"a\nb")
            with AsyncFile(open(str(path), "rb")) as file:
                self.assertEqual((yield file.readline()), b"a\n")
                self.assertEqual((yield file.readline()), b"b")
                self.assertEqual((yield file.readline()), b"")
        self.task(body)

    def slow_read(self) -> Tuple[Any, threading.Event, threading.Event]:
        """An os.read that waits for an event, this event, and one that tells that it is waiting."""
        may_read, reading = threading.Event(), threading.Event()
        self.addCleanup(may_read.set)

        def slow_read(fd, count, read=os.read):
            reading.set()
            may_read.wait()
            return read(fd, count)
        return slow_read, may_read, reading

    def test_slow_disk_blocks_nobody_and_loses_nothing(self):
        path = self.disk_file(b"0123456789")
        slow_read, may_read, reading = self.slow_read()

        def body():
            with mock.patch("os.read", slow_read):
                file = AsyncFile(open(str(path), "rb"))
            task = Task(self.outcome, file.read(8))
            yield self.until(reading.is_set)            # other tasks run
            task.terminate()
            yield task.finish()
            with self.assertRaises(socket.timeout):
                yield file.read(3, timeout=0.01)
            task = Task(self.outcome, file.read(3))
            yield
            may_read.set()
            self.assertEqual((yield task.finish()), b"012")         # of what the first one asked for
            self.assertEqual((yield file.read(100)), b"34567")
            self.assertEqual((yield file.read(100)), b"89")
            file.close()
        self.task(body)

    def test_file_on_disk_is_closed_after_the_call_that_is_under_way(self):
        path = self.disk_file(b"0123456789")
        slow_read, may_read, reading = self.slow_read()

        def body():
            raw = open(str(path), "rb")
            with mock.patch("os.read", slow_read):
                file = AsyncFile(raw)
            task = Task(self.outcome, file.read(8))
            yield self.until(reading.is_set)
            file.close()
            self.assertFalse(raw.closed)
            self.assertEqual((yield task.finish()), b"")
            may_read.set()
            yield self.until(lambda: raw.closed)
        self.task(body)

    @unittest.skipUnless(hasattr(os, "openpty"), "no pseudo-terminals here")
    def test_terminals_stay_blocking(self):
        main, terminal = os.openpty()
        with AsyncFile(main) as keyboard, AsyncFile(terminal) as file:
            def body():
                self.assertTrue(os.get_blocking(terminal))
                task = Task(self.outcome, file.readline())
                yield
                self.assertTrue(task.is_alive())
                yield keyboard.write(b"typed\n")
                self.assertEqual((yield task.finish()), b"typed\n")
                self.assertEqual((yield file.write(b"shown\n", full=True)), 6)
                while (yield keyboard.readline(timeout=60)) != b"shown\r\n":
                    pass
            self.task(body)

    def test_await_and_yield_from(self):
        reader, writer = self.pipe()

        async def awaiting():
            await writer.write(b"a\nb\n")
            return await reader.readline()

        def from_():
            return (yield from reader.readline())
        self.assertEqual(self.task(awaiting), b"a\n")
        self.assertEqual(self.task(from_), b"b\n")

    def test_dropped_file_is_closed_with_a_warning(self):
        read_end, write_end = pycoslite.pipe()
        self.addCleanup(os.close, write_end)
        file = AsyncFile(read_end)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del file
            gc.collect()
        self.assertEqual([w.category for w in caught], [ResourceWarning])
        with self.assertRaises(OSError):
            os.fstat(read_end)

    def test_pipe_gives_two_descriptors(self):
        read_end, write_end = pycoslite.pipe(1 << 18)
        with AsyncFile(read_end) as reader, AsyncFile(write_end) as writer:
            def body():
                if sys.platform.startswith("linux"):
                    self.assertEqual((yield writer.write(BIG[:1 << 18])), 1 << 18)
                else:
                    yield writer.write(BIG)
                self.assertEqual((yield reader.read(100)), BIG[:100])
            self.task(body)
            self.assertFalse(os.get_inheritable(read_end))

    def test_what_windows_lacks_is_refused_with_a_sentence(self):
        read_end, write_end = os.pipe()
        self.addCleanup(os.close, write_end)
        file = open(read_end, "rb", buffering=0)
        self.addCleanup(file.close)
        with mock.patch.object(os, "name", "nt"):
            with self.assertRaisesRegex(MisuseError, "Windows cannot wait"):
                AsyncFile(file)
            with self.assertRaisesRegex(MisuseError, "Windows cannot wait"):
                pycoslite.pipe()


class AsyncPipeTest(FileCase):

    def test_pipe_of_one_process(self):
        process = self.child(COPY)
        pipe = AsyncPipe(process)
        self.assertIsInstance(pipe.stdin, AsyncFile)
        self.assertIsInstance(pipe.stdout, AsyncFile)
        self.assertIsNone(pipe.stderr)
        self.assertEqual(pipe.pid, process.pid)
        self.assertFalse(hasattr(pipe, "no_such_attribute"))

        def body():
            self.assertEqual((yield pipe.write(b"hello", full=True)), 5)
            pipe.stdin.close()
            self.assertEqual((yield pipe.read(2)), b"he")
            self.assertEqual((yield pipe.read()), b"llo")
            self.assertEqual((yield pipe.finish()), 0)
            self.assertEqual(pipe.returncode, 0)
            with self.assertRaisesRegex(ValueError, "stderr of the process is not a pipe"):
                yield pipe.read_stderr()
        self.task(body)
        pipe.close()
        for wrong in (None, "ls", object()):
            with self.assertRaisesRegex(ValueError, "is not a process"):
                AsyncPipe(wrong)

    def test_pipe_reads_lines(self):
        pipe = AsyncPipe(self.child(UPPER))

        def body():
            for word in (b"one", b"two"):
                yield pipe.write(word + b"\n", full=True)
                self.assertEqual((yield pipe.readline(timeout=60)), word.upper() + b"\n")
            with self.assertRaises(socket.timeout):
                yield pipe.readline(timeout=0.01)
            pipe.stdin.close()
            self.assertEqual((yield pipe.readline()), b"")
        with pipe:
            self.task(body)

    def test_stderr(self):
        code = "import sys; print('one\\ntwo\\nthree', file=sys.stderr)"
        pipe = AsyncPipe(self.child([sys.executable, "-c", code], stderr=PIPE))

        def body():
            self.assertEqual((yield pipe.readline_stderr(timeout=60)), b"one\n")
            self.assertEqual((yield pipe.readline_stderr(size=2)), b"tw")
            self.assertEqual((yield pipe.read_stderr()), b"o\nthree\n")
            self.assertEqual((yield pipe.read()), b"")
        with pipe:
            self.task(body)

    def test_communicate(self):
        path = self.disk_file(b"from a file")

        def body(given, expected):
            pipe = AsyncPipe(self.child(COPY))
            self.assertEqual((yield pipe.communicate(given)), (expected, None))
            self.assertEqual(pipe.returncode, 0)
        text = open(str(path), "r")
        for given, expected in ((BIG, BIG), ("text \u00e9", "text \u00e9".encode()), (None, b""), (b"", b""),
                                (open(str(path), "rb"), b"from a file"), (text, b"from a file"),
                                (AsyncFile(open(str(path), "rb")), b"from a file")):
            with self.subTest(type(given).__name__):
                self.task(body, given, expected)
        self.assertTrue(text.closed)

    def test_communicate_with_all_three_streams(self):
        code = ("import sys; data = sys.stdin.buffer.read(); sys.stderr.buffer.write(data[::-1]); "
                "sys.stderr.flush(); sys.stdout.buffer.write(data); sys.exit(3)")
        pipe = AsyncPipe(self.child([sys.executable, "-c", code], stderr=PIPE))

        def body():
            self.assertEqual((yield pipe.communicate(BIG)), (BIG, BIG[::-1]))
            self.assertEqual(pipe.returncode, 3)
        self.task(body)

    def test_communicate_without_pipes(self):
        nothing = subprocess.DEVNULL
        pipe = AsyncPipe(self.child([sys.executable, "-c", "pass"], stdin=nothing, stdout=nothing))

        def body():
            with self.assertRaisesRegex(ValueError, "stdin of the process is not a pipe"):
                yield pipe.communicate(b"x")
            self.assertEqual((yield pipe.communicate()), (None, None))
            self.assertEqual(pipe.returncode, 0)
        self.task(body)

    def test_child_that_dies_early(self):
        def body():
            pipe = AsyncPipe(self.child([sys.executable, "-c", "print('enough')"]))
            self.assertEqual((yield pipe.communicate(BIG)), (b"enough\n", None))
            self.assertEqual(pipe.returncode, 0)
            pipe = AsyncPipe(self.child([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]))
            self.assertEqual((yield pipe.communicate(BIG)), (b"", None))
            self.assertEqual(pipe.returncode, -signal.SIGKILL)
        self.task(body)

    def test_child_is_killed_while_tasks_wait_for_it(self):
        pipe = AsyncPipe(self.child(COPY))

        def wait(request):
            return (yield request)

        def body():
            tasks = [Task(wait, pipe.readline()), Task(wait, pipe.finish())]
            yield
            pipe.kill()
            self.assertEqual((yield tasks[0].finish()), b"")
            self.assertEqual((yield tasks[1].finish()), -signal.SIGKILL)
            with self.assertRaises(BrokenPipeError):
                yield pipe.write(b"x")
        with pipe:
            self.task(body)

    def test_communicating_task_is_terminated(self):
        process = self.child(COPY)
        pipe = AsyncPipe(process)

        def body():
            task = Task(lambda: (yield pipe.communicate(BIG)))
            yield
            tasks = len(pycoslite.default_kernel().tasks)
            self.assertGreater(tasks, 2)                # its helpers
            task.terminate()
            yield task.finish()
            for _ in range(3):
                yield
            self.assertEqual(len(pycoslite.default_kernel().tasks), 1)
        self.task(body)
        process.wait()                                  # its pipes were closed

    SLOW = ("import sys; print('first', flush=True); print('oops', file=sys.stderr, flush=True); "
            "data = sys.stdin.read(); print(data); sys.stdin.close()")

    def test_communicate_in_time(self):
        """What came before the time was up is told, and nothing is lost: what came, what was still to be sent."""
        pipe = AsyncPipe(self.child([sys.executable, "-c", self.SLOW], stderr=PIPE))
        near, far = socket.socketpair()
        source = AsyncFile(near)

        def body():
            while not pipe.stdout.buffer.endswith(b"\n"):       # until the child has spoken
                with self.assertRaises(subprocess.TimeoutExpired) as caught:
                    yield pipe.communicate(None if pipe._feeder else source, timeout=0.02)
            self.assertEqual((caught.exception.output, caught.exception.timeout), (b"first\n", 0.02))
            self.assertEqual(caught.exception.cmd[0], sys.executable)
            with self.assertRaisesRegex(ValueError, "leave out `input`"):
                yield pipe.communicate(b"other")
            far.sendall(b"text")
            far.close()
            self.assertEqual((yield pipe.communicate(timeout=60)), (b"first\ntext\n", b"oops\n"))
            self.assertEqual(pipe.returncode, 0)
        self.task(body)
        self.assertEqual(len(pycoslite.default_kernel().tasks), 0)

    def test_communicate_with_a_child_that_closes_its_output_and_stays(self):
        stays = "import os, time; print('said', flush=True); os.close(1); time.sleep(100)"
        pipe = AsyncPipe(self.child([sys.executable, "-c", stays]))

        def body():
            said = b""
            while not said.endswith(b"\n"):
                with self.assertRaises(subprocess.TimeoutExpired) as caught:
                    yield pipe.communicate(timeout=0.1)
                said = caught.exception.output
            pipe.kill()
            self.assertEqual((yield pipe.communicate()), (b"said\n", None))
            self.assertEqual(pipe.returncode, -signal.SIGKILL)
        self.task(body)

    def test_exception_thrown_into_communicate(self):
        pipe = AsyncPipe(self.child([sys.executable, "-c", self.SLOW], stderr=PIPE))

        def communicates():
            try:
                yield pipe.communicate(b"text")
            except KeyError:
                return (yield pipe.communicate(timeout=60))

        def body():
            task = Task(communicates)
            yield
            task.throw(KeyError())
            self.assertEqual((yield task.finish()), (b"first\ntext\n", b"oops\n"))
        self.task(body)

    def test_finish_waits_so_long(self):
        pipe = AsyncPipe(self.child(COPY))

        def body():
            self.assertIsNone((yield pipe.finish(timeout=0.01)))
            with mock.patch("os.pidfd_open", create=True, side_effect=OSError(errno.ENOSYS, "not here")):
                self.assertIsNone((yield pipe.finish(timeout=0.01)))
                pipe.stdin.close()
                self.assertEqual((yield pipe.finish()), 0)
            self.assertEqual((yield pipe.finish()), 0)
        with pipe:
            self.task(body)

    def test_poll(self):
        process = self.child(COPY)
        with AsyncPipe(process) as pipe:
            self.assertIsNone(pipe.poll())
            process.stdin.close()
            process.wait()
            self.assertEqual(pipe.poll(), 0)

    def test_closing_forgets_the_process(self):
        code = "import time; time.sleep(100)"
        process = self.child([sys.executable, "-c", code])
        with AsyncPipe(process) as pipe:
            pass
        self.assertTrue(process.stdin.closed and process.stdout.closed)
        self.assertIsNone(pipe.poll())                  # alive

    def chain(self, *commands: Any) -> AsyncPipe:
        processes = [self.child(commands[0])]
        for command in commands[1:]:
            processes.append(self.child(command, stdin=processes[-1].stdout))
        for process in processes[1:-1]:
            process.stdout.close()
        return AsyncPipe(processes[0], processes[-1])

    def test_chain_of_processes(self):
        count = [sys.executable, "-c", "import sys; print(len(sys.stdin.readlines()))"]

        def body():
            pipe = self.chain(UPPER, COPY, COPY)
            self.assertEqual((yield pipe.communicate("a\nb\n")), (b"A\nB\n", None))
            pipe = self.chain(UPPER, count)
            for _ in range(3):
                yield pipe.write(b"line\n", full=True)
            pipe.stdin.close()
            self.assertEqual((yield pipe.readline()), b"3\n")
            self.assertEqual((yield pipe.finish()), 0)
            pipe.close()
        self.task(body)

    def test_chain_whose_end_dies_early(self):
        done = [sys.executable, "-c", "print('done')"]
        stubborn = [sys.executable, "-c", "import time; time.sleep(100)"]

        def body():
            pipe = self.chain(COPY, done)
            self.assertEqual((yield pipe.communicate(BIG)), (b"done\n", None))
            pipe = self.chain(stubborn, done)           # reads nothing: the input can never be written
            self.assertEqual((yield pipe.communicate(BIG)), (b"done\n", None))
            self.assertEqual(pipe.returncode, 0)
        with mock.patch.object(pycoslite, "_LINGER_S", 0.01):
            self.task(body)

    def test_popen_is_that_of_subprocess(self):
        process = self.child([sys.executable, "-c", "print(1)"], stdin=None, stderr=subprocess.STDOUT)
        self.assertIsInstance(process, subprocess.Popen)
        self.assertEqual(self.task(lambda: (yield AsyncPipe(process).communicate())), (b"1\n", None))


if __name__ == "__main__":
    unittest.main()
