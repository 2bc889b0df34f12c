#!/usr/bin/env python3
"""Two processes that share a secret and, if you like, a certificate; they say how what they send is protected.

    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=cluster -keyout key.pem -out cert.pem
    python3 examples/tls_peers.py --secret-file FILE --certfile cert.pem --keyfile key.pem
    python3 examples/tls_peers.py --secret-file FILE --certfile cert.pem --keyfile key.pem PLACE

The second is started with what the first prints, on this machine or another; the files are the same at both ends, and
chmod 600. Without --secret-file it is ~/.pycoslite/secret; without --certfile two Pythons from 3.13 on encrypt with the
secret what goes to another host, others only authenticate.

Printed: `listening at HOST:PORT` and `client: tls 1.3, certificates`; the second prints `heard: HELLO` and the like.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the module lies

from pycoslite import Location, Pycos, PycosError, Task  # noqa: E402


def show():
    """Print how the connections to all peers are protected."""
    for peer in Pycos.status()["peers"]:
        print("%s: %s" % (peer["name"], peer["security"]), flush=True)


def server(task=None):
    """Answers messages in capitals."""
    task.register("capitals")
    print("listening at %r" % Pycos().location, flush=True)
    while True:
        sender, text = yield task.receive()
        show()
        sender.send(text.upper())


def client(location, task=None):
    """Asks the server at `location`; a certificate or secret that does not do is told by a line of the log."""
    if (yield Pycos().peer(location)) == 0:
        capitals = yield Task.locate("capitals", location, timeout=10)
        capitals.send((task, "hello"))
        print("heard:", (yield task.receive(timeout=10)))
        show()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two processes, a secret and a certificate.")
    for option in "secret-file", "certfile", "keyfile", "cafile", "host":
        parser.add_argument("--" + option)
    parser.add_argument("place", nargs="?", type=Location.parse, help="HOST:PORT of the server")
    options = vars(parser.parse_args())
    place = options.pop("place")
    try:
        Pycos(name="client" if place else "server", discover_peers=False, **options)
    except (OSError, PycosError) as error:
        sys.exit(str(error))                        # which file or address is wrong, and why
    Task(client, place) if place else Task(server)
