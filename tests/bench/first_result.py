"""J3's client, a program of its own: python3 first_result.py CONTESTANT [PORT]

Gets one job done the way a user's script would, with the function in its own `__main__`, and prints
`FIRST value clock` as soon as it has the result. Nothing is imported that the contestant does not need.
"""
import sys
import time

WORKERS = 2


def double(number):
    """The job."""
    return number * 2


def tell(value):
    """Print the result and when it was there; J3 subtracts the time at which it started this program."""
    print("FIRST", value, time.monotonic(), flush=True)


def first_limit(port):
    """A socket to the node; the node knows the job."""
    import pickle
    import socket
    with socket.create_connection(("127.0.0.1", int(port))) as sock:
        sock.sendall(pickle.dumps(21, 5))
        tell(pickle.loads(sock.recv(4096)))


def first_ours(port):
    """A Cluster of the one node that is running."""
    import dispycos_lite
    with dispycos_lite.Cluster(nodes=["127.0.0.1:" + port]) as cluster:
        tell(cluster.submit(double, 21).result())


def first_ppe():
    """concurrent.futures.ProcessPoolExecutor"""
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(WORKERS) as pool:
        tell(pool.submit(double, 21).result())


def first_mppool():
    """multiprocessing.Pool"""
    import multiprocessing
    with multiprocessing.Pool(WORKERS) as pool:
        tell(pool.apply(double, (21,)))


CLIENTS = {"limit": first_limit, "ours": first_ours, "ppe": first_ppe, "mppool": first_mppool}

if __name__ == "__main__":
    CLIENTS[sys.argv[1]](*sys.argv[2:])
