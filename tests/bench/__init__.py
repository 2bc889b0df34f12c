"""Benchmarks: ours beside hand-written limits and beside the means of the standard library.

    python3 -m tests.bench                          every workload, three rounds, tables with goals
    python3 -m tests.bench L1 D2 --rounds 5         some of them
    python3 -m tests.bench L1 --sizes 10000,100000,1000000      one rate per size: is it linear?
    python3 -m tests.bench --list                   what there is
    python3 -m tests.bench J1 --json >> runs.jsonl  one line per run, for other tools

Contestants of a workload run alternately (A B A B ...), every run in a fresh process with a kill timeout, and each
checks that its work was really done before it tells a rate. Judge by the ratio to `limit`, taken in one sitting:
absolute figures follow the machine. `limit` is code written by hand for just that workload.

Shares also follow the interpreter: the limits spend their time in the system and in C, ours in the interpreter's loop,
which takes longer in a Python that was built without --enable-optimizations (many that pyenv builds are). In round
trips with both ends on one core where the interpreter lies in memory counts for more than how it was built; so both
are put at the same addresses (`runner.aligned`; --randomised leaves them where they are).

    catalogue.py       the workloads: sizes, units, goals (the only table of them)
    harness.py         what a measured process needs: the registry of contestants, child processes, checks
    one.py             main program of a measured process
    runner.py          starts measured processes, alternately
    report.py          medians, spread, ratios, goals
    reference.py       the least a generator scheduler can do: the limit of the L workloads
    local.py           L1-L5, D6a: tasks, switches, messages, timers, memory, a channel, within one process
    streams.py         L6a-L6c: TCP connections over the loopback interface
    messages.py        D1-D3p: two processes that talk over the loopback interface
    files.py           D5: a file to another process
    bulk.py            D4, D4b, D6b: large messages, and one channel for several processes
    jobs.py            J1-J2: jobs for two worker processes
    startup.py         J3: a client's time to its first result (its client program: first_result.py)

To add a contestant write a function `(n) -> Measured` under `@contestant(workload, name)`; one that needs a package
from outside the standard library names it with `needs=` and takes part where that package is installed.
"""
