"""A process to be attacked: network_peer.py that tells of everything it unpickles, with few descriptors if asked.

    python3 hostile_target.py [descriptors=N] [option=value ...]

Its output has a line UNPICKLED for each use of pickle.
"""
import pickle
import sys


def tell_of_pickles() -> None:
    """From now on each use of pickle prints a line."""
    def telling(name):
        plain = getattr(pickle, name)

        def use(*args, **kwargs):
            print("UNPICKLED through pickle.%s" % name, flush=True)
            return plain(*args, **kwargs)
        setattr(pickle, name, use)
    for name in ("loads", "load"):
        telling(name)


def main(words) -> None:
    """Limit the descriptors, then go on as network_peer.py does."""
    tell_of_pickles()
    import network_peer                     # now, so that nothing has kept the functions of pickle as they were
    for word in [word for word in words if word.startswith("descriptors=")]:
        import resource                     # not on every platform; only who asks needs it
        words.remove(word)
        count = int(word.partition("=")[2])
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
    network_peer.main(words)


if __name__ == "__main__":
    main(sys.argv[1:])
