"""The other process of the tests of channels, services and files: network_peer.py, whose agent knows more here."""
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import network_peer                                                     # noqa: E402  (found through the line above)
from pycoslite import RPS, Channel, Pycos, Task                         # noqa: E402  (found through network_peer)

channels = {}


def listener(channel, asker, task=None):
    """Subscribes to a channel and passes on what comes; ends with "end"."""
    task.set_daemon()
    asker.send(("subscribed", (yield channel.subscribe(task))))
    while True:
        message = yield task.receive()
        asker.send(("heard", message))
        if message == "end":
            break


def on_listen(asker, channel, count, task):
    """Subscribe so many tasks to `channel`."""
    for _ in range(count):
        Task(listener, channel, asker)


def on_channel(asker, name, task):
    """Make and register a channel, and send it."""
    channels[name] = Channel(name)
    asker.send((channels[name].register(), channels[name]))


def on_local_channel(asker, name, subscriber, task):
    """Make a channel with one task of this process as subscriber, and subscribe it to the channel `subscriber`."""
    def run(task=None):
        channels[name] = channel = Channel(name)
        yield channel.subscribe(Task(listener, channel, asker))
        asker.send(("chained", (yield subscriber.subscribe(channel))))
    Task(run)


def on_publish(name, message, task):
    """Send to a channel of this process."""
    channels[name].send(message)


def on_close(name, task):
    """Close a channel of this process."""
    channels.pop(name).close()


def on_subscribers(asker, name, task):
    """Send how many subscribers a channel has."""
    asker.send(channels[name].count())


def on_watched(asker, task):
    """Send how many ends of tasks of this process others want to hear of."""
    asker.send(sum(map(len, Pycos().network.tasks.watched.values())))


def on_send_file(asker, location, path, task):
    """Send a file, and then what that gave."""
    def run(task=None):
        asker.send((yield Pycos().send_file(location, path, overwrite=True)))
    Task(run)


def on_largest_file(asker, size, task):
    """Let this process write no file that is longer; say so."""
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    asker.send("limited")


def double(number, task=None):
    """Returns twice `number`, once a message says go; fails at a negative one."""
    if number < 0:
        raise ValueError("negative: %d" % number)
    if number > 100:
        yield task.receive()
    return number * 2


async def later(number, task=None):
    """Returns the message it gets."""
    return number, await task.receive()


def unsendable():
    """Returns what cannot be pickled."""
    yield
    return threading.Lock()


def on_peer_status(asker, task):
    """Tell `asker` who comes and goes."""
    def watch(task=None):
        task.set_daemon()
        Pycos().peer_status(task)
        asker.send("watching")
        while True:
            status = yield task.receive()
            asker.send((status.name, status.status))
    Task(watch)


def on_contact(location, task):
    """Connect to one more process."""
    def run():
        yield Pycos().peer(location)
    Task(run)


for function in (on_listen, on_channel, on_local_channel, on_publish, on_close, on_subscribers, on_peer_status,
                 on_contact, on_watched, on_send_file, on_largest_file):
    setattr(network_peer, function.__name__, function)

if __name__ == "__main__":
    for method in (double, later, unsendable):
        RPS(method).register()
    network_peer.main(sys.argv[1:])
