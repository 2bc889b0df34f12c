"""A process of the reliability rows: network_peer.py that is told what to do by lines at its standard input.

    python3 reliability_peer.py [dialler] [log=FILE] [option=value ...]         then lines like
    ["exchange", "host:port", 1000, 0]

Each line is a JSON list, the name of one of the `do_` functions below and its arguments; it answers with lines of a
word and JSON: ``DONE {...}``, ``EVENT {...}`` for each peer that comes or goes, ``BEAT {...}``, ``SENT {...}`` and
``HEARD {...}`` for messages of a stream. ["go"] starts what was prepared last, ["stop"] ends all streams. A `dialler`
always dials first, and cannot be dialled itself. With `log` the number of each message is written to that file as it is
put into the mailbox.
"""
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import network_peer                                                     # noqa: E402  (found through the line above)
import pycoslite                                                        # noqa: E402  (found through network_peer)
from pycoslite import Location, Pycos, Task                             # noqa: E402

COME_S = 60
FIRST = bytes(16)                       # the process id that dials when both could


def say(word, **facts):
    """One line of output; `t` is the time."""
    print(word, json.dumps(dict(facts, t=time.monotonic())), flush=True)


def found(at, name="agent"):
    """Reference to a task of another process. Use with yield."""
    task = None
    while task is None:                 # the first connections may be cut before they are any
        task = yield Task.locate(name, Location.parse(at), timeout=COME_S)
    return task


def rss_kib():
    """Resident memory of this process."""
    with open("/proc/self/status") as file:
        return int(dict(line.split(":", 1) for line in file)["VmRSS"].split()[0])


def do_watch(task=None):
    """Say of all peers when they come and go."""
    Pycos().network.on_peer(lambda peer, event, detail: say(
        "EVENT", peer=peer.name, event=event, detail=detail))
    say("DONE")
    yield


def do_exchange(at, count, size, back=None, task=None):
    """Send `count` numbers, each with `size` bytes, and get `back` (None: as many) at the same time; say what arrived
    here and there."""
    agent, got, most, filler = (yield found(at)), [], 0, os.urandom(size)
    back = count if back is None else back
    agent.send(("spawn", task, "flood", (task, back, size)))
    session, began = agent.peer.session, time.monotonic()
    for number in range(count):
        agent.send(("number", number, filler))
        if not number % 20:
            most = max(most, session.unconfirmed_frames)
            yield
    while len(got) < back:
        message = yield task.receive(COME_S)
        if message is None:
            break
        number = message[0] if isinstance(message, tuple) else message
        if isinstance(number, int):
            got.append(number)
    agent.send(("report", task))
    there = yield task.receive(COME_S)
    say("DONE", here=[len(got), got == list(range(back))], there=there, most=most, seconds=time.monotonic() - began,
        connections=agent.peer.connections)


def do_send_file(at, size, task=None):
    """Send a file of `size` bytes; say what that gave, and how long it took."""
    peer = (yield found(at)).peer
    with tempfile.NamedTemporaryFile() as file:
        file.write(os.urandom(size))
        file.flush()
        began = time.monotonic()
        status = yield Pycos().send_file(peer.location, file.name, timeout=COME_S)
    say("DONE", status=status, seconds=time.monotonic() - began, connections=peer.connections)


def do_beat(at, task=None):
    """Have messages confirmed again and again; say when."""
    agent, number = (yield found(at)), 0
    while True:
        if (yield agent.deliver(("number", number), 0.25)) == 1:
            say("BEAT", number=number)
        number += 1
        yield task.sleep(0.02)


def do_listen(task=None):
    """Say what streams and deliveries of others bring, from whom."""
    task.register("ear")
    say("DONE")
    while True:
        by, number = yield task.receive()
        say("HEARD", by=by, number=number)


def do_stream(at, task=None):
    """Send a number four times a second, until told to "stop"; then say, once all that were sent are known to have
    arrived or to be lost, which were accepted, which were reported, and how."""
    streams.append(task)
    Pycos().undelivered(task)
    ear, me, number, accepted, reports = (yield found(at, "ear")), Pycos().name, 0, [], []
    message = None
    while message != "stop":
        if message is None:
            number += 1
            if ear.send((me, number)) == 0:
                accepted.append(number)
                say("SENT", to=at, number=number)
        elif message.recipient == ear:
            reports.append((message.message[1], message.status))
        message = yield task.receive(0.25)
    last = yield ear.deliver((me, number + 1), COME_S)
    say("DONE", to=at, accepted=accepted, reports=reports, last=last)


def do_deliver(at, task=None):
    """At ["go"], deliver one message, however long that takes, and say what came of it."""
    ear = yield found(at, "ear")
    say("DONE")
    yield task.receive()
    say("DELIVERED", to=at, status=(yield ear.deliver((Pycos().name + " delivers", 0))))


def do_hog(seconds, task=None):
    """Compute without a yield."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    say("DONE")
    yield


def do_send(at, count, size, task=None):
    """Send `count` numbers; say SENT after each tenth of them, and what became of those that are not confirmed."""
    Pycos().undelivered(task)
    agent = yield found(at)
    agent.send(("echo", task, "begin"))
    yield task.receive(COME_S)
    say("DONE")
    yield task.receive()                # ["go"] at standard input
    before, accepted, filler, ended = rss_kib(), [], bytearray(size), object()
    for number in range(count):
        if agent.send(("number", number, filler)) == 0:
            accepted.append(number)
        if number % (count // 10) == 0:
            say("SENT", number=number)
        if not number % 20 or size > 50_000:
            yield
    grown, told = rss_kib() - before, {}
    while agent.peer.state != "lost":
        yield task.sleep(0.01)
    while True:
        report = yield task.receive(0.3, ended)
        if report is ended:
            break
        if report.message[0] == "number":
            told[report.message[1]] = report.status
    say("DONE", accepted=accepted, told=sorted(told.items()), grown_kib=grown)


tasks, streams = [], []


def run(name, args, task=None):
    """Do what a line says, for no longer than the program runs."""
    task.set_daemon()
    yield globals()["do_" + name](*args, task=task)


def listen():
    """Do what the lines of standard input say, and end with them."""
    for line in sys.stdin:
        name, *args = json.loads(line)
        if name == "go":
            tasks[-1].send("go")
        elif name == "stop":
            for task in streams:
                task.send("stop")
        else:
            tasks.append(Task(run, name, args))
    network_peer.finish()


def log_messages(path):
    """Write the number of each message to a file, once it is in the mailbox."""
    handlers, log = Pycos().network.frame_handlers, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    take = handlers[pycoslite.MESSAGE]

    def logged(peer, body):
        take(peer, body)
        message = pycoslite.deserialize(bytes(body[8:]))
        if message[0] == "number":
            os.write(log, b"%d\n" % message[1])
    handlers[pycoslite.MESSAGE] = logged


def main(words):
    """As network_peer.main, with what the lines say beside it."""
    log = [word[4:] for word in words if word.startswith("log=")]

    def begin():
        if "dialler" in words:
            Pycos().network.process_id = FIRST
        for path in log:
            log_messages(path)
    network_peer.main([word for word in words if word != "dialler" and not word.startswith("log=")], begin, listen)


if __name__ == "__main__":
    main(sys.argv[1:])
