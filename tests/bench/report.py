"""From single runs to tables: medians, spread, ratios to the limit, and how ours stands to its goals."""
from __future__ import annotations

import statistics
from typing import Dict, Iterable, List, Mapping, Sequence

from .catalogue import Summary, Workload

_MARKS = {True: "reached", False: "NOT reached", None: "not measured"}


def _significant(value: float) -> str:
    """Three digits of a small number, all of a large one."""
    return format(value, ",.0f") if value >= 1000 else format(value, ".3g")


def summarise(runs: Iterable[Mapping]) -> Dict[str, Summary]:
    """Per contestant that had a good run, from results of `runner.run_plan`; in the order of their first run."""
    grouped: Dict[str, List[Mapping]] = {}
    for run in runs:
        if "error" not in run:
            grouped.setdefault(run["contestant"], []).append(run)
    return {name: _summary(good) for name, good in grouped.items()}


def _summary(runs: Sequence[Mapping]) -> Summary:
    rates = [run["rate"] for run in runs]
    notes = {key: statistics.median(run["notes"][key] for run in runs) for key in runs[0]["notes"]}
    return Summary(statistics.median(rates), min(rates), max(rates), len(runs), runs[0]["n"], notes, tuple(rates))


def table(workload: Workload, runs: Sequence[Mapping]) -> str:
    """All there is to say about one workload, as text."""
    summaries = summarise(runs)
    pinned = " - pinned to one core" if runs and runs[0]["pinned"] is not None else ""
    if runs and runs[0].get("same_addresses"):
        pinned += ", both ends at the same addresses"
    lines = ["", "%s  %s (%s)%s" % (workload.name, workload.title, workload.unit, pinned), ""]
    lines.append("  %-10s %12s   %-25s %8s  %11s  %s" % ("", "median", "lowest - highest", "of limit", "n x runs", ""))
    limit = summaries.get("limit")
    for name, summary in sorted(summaries.items(), key=lambda item: -item[1].rate):
        share = "%.3f" % summary.times(limit) if limit else "-"
        notes = "  ".join("%s=%g" % note for note in summary.notes.items())
        spread = "%s - %s" % (_significant(summary.low), _significant(summary.high))
        size = "%d x %d" % (summary.size, summary.runs)
        lines.append(("  %-10s %12s   %-25s %8s  %11s  %s" % (
            name, _significant(summary.rate), spread, share, size, notes)).rstrip())
    lines += ["  %-10s FAILED: %s" % (run["contestant"], run["error"]) for run in runs if "error" in run]
    if "ours" in summaries:
        lines += _goal_lines(workload, summaries)
    return "\n".join(lines)


def _goal_lines(workload: Workload, summaries: Mapping[str, Summary]) -> List[str]:
    verdicts = [goal.judge(summaries) for goal in workload.goals]
    return [""] + ["  goal %s (%s)" % (verdict.sentence, _MARKS[verdict.reached]) for verdict in verdicts]


def size_table(workload: Workload, runs: Sequence[Mapping]) -> str:
    """Rate per size: a contestant is linear when its rate does not fall as the size grows."""
    sizes = sorted({run["n"] for run in runs})
    lines = ["", "%s  %s (%s), by n" % (workload.name, workload.title, workload.unit), ""]
    lines.append("  %-10s" % "" + "".join("%14s" % format(size, ",") for size in sizes) + "   last / first")
    for name in dict.fromkeys(run["contestant"] for run in runs):
        by_size = [summarise(run for run in runs if run["n"] == size).get(name) for size in sizes]
        cells = ["%14s" % (_significant(summary.rate) if summary else "FAILED") for summary in by_size]
        ends = "   %.2f" % (by_size[-1].rate / by_size[0].rate) if by_size[0] and by_size[-1] else "   -"
        lines.append("  %-10s" % name + "".join(cells) + ends)
    lines += ["  %-10s FAILED at n=%d: %s" % (run["contestant"], run["n"], run["error"])
              for run in runs if "error" in run]
    return "\n".join(lines)
