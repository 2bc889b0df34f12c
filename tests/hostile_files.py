"""Files that a peer with the secret sends to places where they do not belong, or does not finish, or lies about."""
from __future__ import annotations

import binascii
import contextlib
import itertools
import os
import shutil
import stat
import struct
import tempfile
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import pycoslite
from pycoslite import encode_frame
from tests.figures import Figure
from tests.hostile_wire import STRANGE, Insider, target

OLD = b"the old file"
LARGE = bytes(range(256)) * 1024            # too much to come along with its offer
LIMIT = 1 << 20                             # max_file_size of the target
TOTAL = 32 << 20                            # its max_total_size
PLACES: List[Tuple[str, str]] = [           # (dir, name) that lead, or might lead, out of the directory for files
    (folder, "data.bin") for folder in (
        "..", "../keep", "/", "/tmp", "a/../../keep", "./../keep", "../base-twin", "link", "link/deeper", "link/..",
        "\0", "a\0b", "..\\keep", "C:\\keep", "C:keep", "\\\\host\\share", "n" * 300, "~", "$HOME", "fifo",
        "file-link", "device", "loop", "loop/x")] + [
    ("", name) for name in (
        "", ".", "..", "../keep/data.bin", "a/b", "/etc/passwd", "nul\0", "..\\data.bin", "n" * 300, "link",
        "file-link", "fifo", "device", "loop", "dangling", "sub", "con:stream", "C:data.bin", "\ud800", " ", "-rf")]


def build(root: Path) -> Path:
    """The directory for received files in `root`, with traps in it, and what is to be left alone beside it."""
    base = root / "base"
    for folder in (base, base / "sub", root / "base-twin", root / "keep", root / "keep" / "deeper"):
        folder.mkdir(parents=True)
    for kept in (root / "keep" / "data.bin", root / "keep" / "deeper" / "data.bin", root / "base-twin" / "data.bin",
                 root / "keep" / "hard"):
        kept.write_bytes(OLD)
    (base / "link").symlink_to(root / "keep")
    (base / "file-link").symlink_to(root / "keep" / "data.bin")
    (base / "dangling").symlink_to(root / "keep" / "new")
    (base / "loop").symlink_to(base / "loop")
    os.link(root / "keep" / "hard", base / "hard")
    os.mkfifo(base / "fifo")
    with contextlib.suppress(OSError):              # only root may
        os.mknod(base / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return base


def snapshot(root: Path) -> Dict[str, Any]:
    """All that is in `root` and not below its base: type, inode, content."""
    found = {}
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders.remove("base")
        for name in folders + names:
            path = Path(folder, name)
            kind = path.lstat()
            found[str(path)] = kind.st_mode, kind.st_ino, path.read_bytes() if path.is_file() else b""
    return found


class Sender:
    """Sends files by hand, in the words of section 25."""

    def __init__(self, insider: Insider) -> None:
        self.insider = insider
        self._numbers = itertools.count(1)

    def offer(self, folder: str, name: str, size: int, payload: bytes = b"", **more: Any) -> Tuple[int, str]:
        """(number of the file, state that was answered; '' when it was refused)."""
        number = next(self._numbers)
        failed, reply, _ = self.insider.request("file.offer", dict({
            "id": number, "name": name, "dir": folder, "place": "", "size": size, "mtime_ns": 1_600_000_000_000_000_000,
            "mode": 0o644, "overwrite": True}, **more), payload)
        return number, "" if failed else reply["state"]

    def small(self, folder: str, name: str, data: bytes = b"evil", digest: Optional[str] = None) -> bool:
        """Whether a small file was taken."""
        digest = "%08x" % binascii.crc32(data) if digest is None else digest
        return self.offer(folder, name, len(data), data, digest=digest)[1] == "done"

    def large(self, folder: str, name: str, data: bytes = LARGE, promised: Optional[int] = None,
              digest: str = "") -> bool:
        """Whether a file that comes through the link was taken; `promised` and `digest` may be lies."""
        number, state = self.offer(folder, name, len(data) if promised is None else promised)
        if state != "go":
            return False
        self.insider.request("file.rest", {"id": number})
        for start in range(0, len(data), 1 << 16):
            self.insider.say(encode_frame(pycoslite.CHUNK, struct.pack(">Q", number) + data[start:start + (1 << 16)]))
        digest = digest or "%08x" % binascii.crc32(data)
        return not self.insider.request("file.end", {"id": number, "digest": digest})[0]

    def delete(self, folder: str, name: str) -> bool:
        """Whether a file was deleted."""
        return not self.insider.request("file.delete", {"name": name, "dir": folder})[0]


def files(soak: bool) -> Iterator[Figure]:
    """S9."""
    if not hasattr(os, "mkfifo"):
        yield Figure("needs a POSIX file system: measured nothing", 0)
        return
    root = Path(tempfile.mkdtemp(prefix="files-"))
    try:
        base = build(root)
        before = snapshot(root)
        with target("dest_path=%r" % str(base), "max_file_size=%d" % LIMIT, "max_total_size=%d" % TOTAL) as victim:
            with Insider(victim.port) as insider:
                sender = Sender(insider)
                yield from misplaced(sender)
                yield from changed_outside(root, before)
                yield from unfinished(sender, base)
                yield from caps(sender, base)
                yield from raced(sender, root, 2000 if soak else 150)
                yield from strange_offers(sender, base)
                yield from changed_outside(root, before)
            yield Figure("tracebacks in its log", victim.lines("Traceback (most recent call last)"), "", "==", 0)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def misplaced(sender: Sender) -> Iterator[Figure]:
    """All the names, in all the ways."""
    taken = []
    for folder, name in PLACES:
        for way in (sender.small, sender.large, sender.delete):
            if way(folder, name):
                taken.append((way.__name__, folder, name))
    harmless = {("~", "data.bin"), ("$HOME", "data.bin"), ("", " "), ("", "-rf"), ("", "con:stream"),
                ("", "C:data.bin"), ("", "..\\data.bin"), ("C:\\keep", "data.bin"), ("C:keep", "data.bin"),
                ("\\\\host\\share", "data.bin")}
    wrong = [what for what in taken if what[1:] not in harmless]
    yield Figure("files written or deleted under misleading names, of %d, not counting odd but plain ones %s" % (
        len(PLACES) * 3, wrong or ""), len(wrong), "", "==", 0)


def changed_outside(root: Path, before: Dict[str, Any]) -> Iterator[Figure]:
    """What is beside the directory for files."""
    after = snapshot(root)
    changed = sorted(name for name in set(before) | set(after) if before.get(name) != after.get(name))
    yield Figure("files outside of the directory that were written or deleted %s" % (changed or ""), len(changed), "",
                 "==", 0)


def unfinished(sender: Sender, base: Path) -> Iterator[Figure]:
    """Transfers over an old file that come to nothing."""
    (base / "old").write_bytes(OLD)
    taken = [sender.small("", "old", b"evil", "0" * 64), sender.small("", "old", b"evil", ""),
             sender.large("", "old", digest="0" * 64), sender.large("", "old", LARGE[:-1], len(LARGE)),
             sender.large("", "old", LARGE + b"more", len(LARGE)), sender.large("", "old", b"", len(LARGE))]
    number, _ = sender.offer("", "old", len(LARGE))
    sender.insider.say(encode_frame(pycoslite.CHUNK, struct.pack(">Q", number) + LARGE[:1000]))
    sender.insider.request("file.abort", {"id": number})
    digest = "%08x" % binascii.crc32(LARGE[:1000])
    failed, _, _ = sender.insider.request("file.end", {"id": number, "digest": digest})
    taken.append(not failed)
    yield Figure("transfers cut, aborted, or with a lie about length or checksum, that were taken, of %d" % len(taken),
                 sum(taken), "", "==", 0)
    yield Figure("the old file is byte for byte as it was", (base / "old").read_bytes() == OLD, "", "==", 1)
    yield Figure("an honest one replaces it", sender.large("", "old") and (base / "old").read_bytes() == LARGE, "",
                 "==", 1)
    yield Figure("a hard link is replaced, and not written through",
                 sender.small("", "hard", b"new") and (base.parent / "keep" / "hard").read_bytes() == OLD, "", "==", 1)


def caps(sender: Sender, base: Path) -> Iterator[Figure]:
    """Sizes beyond the limit, told honestly and not."""
    taken = [sender.offer("", "huge", size)[1] for size in (LIMIT + 1, 1 << 40, (1 << 63) - 1, -1)]
    number, _ = sender.offer("", "huge", 10)
    for _ in range(40):
        sender.insider.say(encode_frame(pycoslite.CHUNK, struct.pack(">Q", number) + bytes(1 << 16)))
    sender.insider.ping()
    most = max([path.stat().st_size for path in base.rglob("*") if path.is_file() and not path.is_symlink()], default=0)
    yield Figure("files above max_file_size that were let in", sum(state == "go" for state in taken), "", "==", 0)
    yield Figure("largest file after 2.5 MiB were sent where 10 bytes were promised", most, "B", "<=", LIMIT)
    open_offers = [sender.offer("", "open-%d" % count, len(LARGE)) for count in range(100)]
    yield Figure("transfers open at the same time, of 100 offered",
                 sum(state == "go" for _, state in open_offers), "", "<=", 64)
    abort(sender, open_offers)
    many = [sender.offer("", "much-%d" % count, LIMIT) for count in range(60)]
    most = sum(path.stat().st_size for path in base.rglob("*") if path.is_file() and not path.is_symlink())
    yield Figure("bytes of all files and of those let in, of 60 MiB offered at the same time",
                 most + LIMIT * sum(state == "go" for _, state in many), "B", "<=", TOTAL)
    abort(sender, many)


def abort(sender: Sender, offers: List[Tuple[int, str]]) -> None:
    """Give up those that were let in."""
    for number, state in offers:
        if state == "go":
            sender.insider.request("file.abort", {"id": number})


def raced(sender: Sender, root: Path, rounds: int) -> Iterator[Figure]:
    """A directory that becomes a link to elsewhere, and one again, as fast as possible, while files go to it."""
    base, ended = root / "base", threading.Event()
    swapped, aside = base / "swapped", base / "aside"
    swapped.mkdir()

    def swap() -> None:
        while not ended.is_set():
            try:
                swapped.rename(aside)
                swapped.symlink_to(root / "keep")
                swapped.unlink()
                aside.rename(swapped)
            except OSError:                 # there was none for a moment, so the process has made one
                with contextlib.suppress(OSError):          # it makes and removes more meanwhile: try again then
                    for path in (swapped, aside):
                        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
                    swapped.mkdir()
    thread = threading.Thread(target=swap)
    thread.start()
    taken = 0
    try:
        for number in range(rounds):
            taken += sender.small("swapped", "race-%d" % number)
            taken += sender.small("swapped", "data.bin")
            sender.delete("swapped", "data.bin")
    finally:
        ended.set()
        thread.join()
    yield Figure("files taken while their directory was swapped for a link and back", taken)


def strange_offers(sender: Sender, base: Path) -> Iterator[Figure]:
    """Requests about files whose items are of other types; afterwards files are taken as before."""
    ops = {"file.offer": ("id", "name", "dir", "place", "size", "mtime_ns", "mode", "overwrite", "token", "dials",
                          "line", "digest"),
           "file.end": ("id", "digest"), "file.rest": ("id",), "file.abort": ("id",), "file.delete": ("name", "dir"),
           "file.refused": ("id", "reason"), "file.undialled": ("id",)}
    usual = {"id": 7, "name": "strange", "dir": "", "place": "", "size": 4, "mtime_ns": 0, "mode": 0o600,
             "overwrite": True, "token": "t", "dials": "S", "line": "l", "digest": "0" * 64, "reason": "r"}
    count = 0
    for op, names in ops.items():
        for name, value in itertools.product(names, STRANGE):
            args = {other: usual[other] for other in names
                    if other not in ("token", "dials", "line", "digest") or op == "file.end"}
            sender.insider.request(op, dict(args, **{name: value}))
            sender.insider.request("file.abort", {"id": 7})
            count += 1
    yield Figure("requests about files with strange items", count)
    yield Figure("files are taken as before", sender.small("", "after") and sender.large("", "after-2"), "", "==", 1)
