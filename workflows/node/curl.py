"""Files to and from URLs: many with one curl, which reads the URLs from its stdin.

A URL here is signed, so it is a secret: it is in no argument, no file, no message and no log.
"""

import base64
import concurrent.futures
import functools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Optional

from workflows.node import role
from workflows.node.processes import Groups

PARALLEL = 16
ATTEMPTS, BACKOFF_S, LONGEST_WAIT_S = 6, 0.5, 20.0
# curl before 7.75 does not say how each of many transfers ended: it gets one each, so many at once.
_OLD_PARALLEL = 4
_ARGV = ["curl", "--disable"]
# Too many requests, and what servers say when they are overloaded or about to restart.
PASSING = {"408", "429", "500", "502", "503", "504"}
# Said with status 400: the bytes were changed on their way, or came too slowly.
_PASSING_CODES = {"BadDigest", "RequestTimeout", "SlowDown", "InternalError"}
# Full disk, no permission, a bad certificate, ...: the same the next time.
LASTING_EXITS = {"1", "3", "23", "26", "27", "60", "77"}
_RESUME_REFUSED = {"33", "36"}
_ERROR_KEPT = 4096
_ENDED = re.compile(rb"\nended (\d+) (\d+) (\d*) ?([^\n]*)\n")
_ASK_FIRST = 1 << 20


class Transfer(NamedTuple):
    """One file on its way. An upload has the MD5 its bytes must arrive with, in hex.

    Its URL must be signed for that MD5 (as Content-MD5): S3 refuses what is sent and not signed.
    A download may have the ETag that the object must still have.
    """

    url: str
    path: str
    size: int
    md5: str = ""
    etag: str = ""


class Trouble(NamedTuple):
    """Why a transfer did not happen: a sentence, the HTTP status (0: none came), S3's own code."""

    why: str
    status: int
    code: str


class Curl:
    """Runs transfers for one session; what it starts ends with it."""

    def __init__(self, env: Mapping[str, str], groups: Groups) -> None:
        self._env, self._groups = env, groups
        self._attempts = int(env.get("WORKFLOWS_FETCH_ATTEMPTS", ATTEMPTS))
        self._backoff_s = float(env.get("WORKFLOWS_FETCH_BACKOFF_S", BACKOFF_S))

    def run(self, transfers: Sequence[Transfer], scratch: str) -> "list[Optional[Trouble]]":
        """Do all transfers, several at once; passing troubles are tried again, after a wait.

        Returns what went wrong with each, None if nothing did. A download that was cut off goes on
        from where it was.
        """
        outcomes: list[Optional[Trouble]] = [None] * len(transfers)
        left = list(range(len(transfers)))
        for _ in self.attempts():
            try:
                said = self._once({number: signed(transfers[number]) for number in left}, scratch)
            except role.NoRole as error:
                return [Trouble(str(error), 0, "NoRole")] * len(transfers)
            again = []
            for number in left:
                outcomes[number], is_passing = _outcome(transfers[number], said.get(number))
                if outcomes[number] is not None and is_passing:
                    again.append(number)
            left = again
            if not left:
                break
        return outcomes

    def attempts(self) -> Iterator[None]:
        """Yield once per permitted attempt, after waits that double."""
        wait_s = self._backoff_s
        for attempt in range(self._attempts):
            if attempt:
                if self._groups.cancelled:
                    return
                time.sleep(wait_s)
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)
            yield

    def _once(self, transfers: "dict[int, Transfer]", scratch: str) -> "dict[int, _Said]":
        sizes = {number: _size(one.path) for number, one in transfers.items() if not one.md5}
        is_old = not _says_exit_codes(self._env.get("PATH", os.defpath))
        configs = [
            _config(number, one, sizes.get(number, 0), is_old=is_old)
            for number, one in transfers.items()
        ]
        if is_old:
            with concurrent.futures.ThreadPoolExecutor(_OLD_PARALLEL) as pool:
                ended = list(pool.map(functools.partial(self._one, scratch=scratch), configs))
        else:
            parallel = ["--parallel", "--parallel-immediate", "--parallel-max", str(PARALLEL)]
            ended = _ended(self.command(parallel, b"next\n".join(configs), scratch)[1])
        return {int(one[1]): _heard(one, sizes, transfers[int(one[1])]) for one in ended if one}

    def _one(self, config: bytes, scratch: str) -> "list[str]":
        """Do one transfer with an old curl; return what a new one would say of it."""
        out, said, status = self.command(["--show-error"], config, scratch)
        why = re.findall(rb"^curl: \(\d+\) (.*)", said, re.MULTILINE) or [b""]
        ended = _ended(out)
        return [*ended[0][:3], str(status), why[-1].decode("utf-8", "replace")] if ended else []

    def command(
        self, options: "list[str]", config: bytes, scratch: str, into: Optional[int] = None
    ) -> "tuple[bytes, bytes, int]":
        """Run curl; return its stdout and stderr, which hold no URL, and its exit status.

        With a file open as `into` its stdout goes there, in large writes.
        """
        buffered = [] if into is None else _buffered(self._env.get("PATH", os.defpath))
        process = subprocess.Popen(
            [*buffered, *_ARGV, *options, "--config", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if into is None else into,
            stderr=subprocess.PIPE,
            cwd=scratch,
            env=dict(self._env),
            start_new_session=True,
        )
        self._groups.add(process.pid)
        try:
            out, said = process.communicate(config)
        finally:
            self._groups.end(process.pid)
            status = process.wait()
        return out or b"", said, status


def signed(one: Transfer) -> Transfer:
    """Return a transfer with its URL as it can be used, which this node may have to sign itself."""
    method, md5 = ("PUT", in_base64(one.md5)) if one.md5 else ("GET", "")
    return one._replace(url=role.signed(one.url, method, md5))


def in_base64(md5: str) -> str:
    """Return an MD5 in hex as the header Content-MD5 has it."""
    return base64.b64encode(bytes.fromhex(md5)).decode("ascii")


@functools.lru_cache(maxsize=4)
def _buffered(path: str) -> "list[str]":
    """Return what makes a program's stdout less costly: curl alone writes 16 KB at a time.

    Measured for 1 GB on ext4: 1.0 s of CPU with curl alone, 0.3 with a buffer of 256 KB.
    """
    found = shutil.which("stdbuf", path=path)  # of coreutils; not everywhere
    return [found, "-o256K"] if found else []


@functools.lru_cache(maxsize=4)
def _says_exit_codes(path: str) -> bool:
    """Tell whether the curl of a PATH can say how each of many transfers ended: from 7.75 on."""
    done = subprocess.run(
        ["curl", "--disable", "--version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": path},
        check=False,
    )
    found = re.match(rb"curl (\d+)\.(\d+)", done.stdout)
    return found is None or (int(found[1]), int(found[2])) >= (7, 75)


class _Said(NamedTuple):
    """The report of curl on one transfer, and the body of a reply that is not data."""

    status: str
    exit: str
    message: str
    body: str


def _config(number: int, one: Transfer, have: int, *, is_old: bool) -> bytes:
    """Return curl's options for one transfer.

    At its end it says how it ended, and just before that what an upload was answered. Of many at
    once that must not be stdout, where answers mix; and a file for each would cost more than to
    send a small one.
    """
    lines = request(one)
    stream, answer = ("", "-") if is_old else ("%{stderr}", "/dev/stderr")
    said = f"{stream}\\nended {number} %{{http_code}} %{{exitcode}} %{{errormsg}}\\n"
    lines.append(f'write-out = "{said}"')
    if one.md5:
        lines += [f"upload-file = {quoted(one.path)}", f"output = {quoted(answer)}"]
        lines.append(f'header = "Content-MD5: {in_base64(one.md5)}"')
        if one.size < _ASK_FIRST:
            lines.append('header = "Expect:"')  # a small file is there before a "100 Continue" is
    else:
        lines.append(f"output = {quoted(one.path)}")
        if have:
            lines.append(f"continue-at = {have}")
    return encoded(lines)


def request(one: Transfer) -> "list[str]":
    """Return curl's options for any transfer: where to, how long to wait, for what."""
    lines = [
        "silent",
        "globoff",
        "http1.1",
        "connect-timeout = 20",
        "speed-limit = 1024",
        "speed-time = 60",
        'proto = "=http,https"',
        f"url = {quoted(one.url)}",
    ]
    if one.etag:
        lines.append("header = " + quoted(f'If-Match: "{one.etag}"'))
    return lines


def encoded(lines: Sequence[str]) -> bytes:
    """Return what curl reads of some options."""
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def quoted(text: str) -> str:
    """Return a value as curl's options have it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _ended(said: bytes) -> "list[list[str]]":
    """Return for each transfer that ended: the answer, number, status, exit code and message."""
    found = _ENDED.split(said)
    texts = [text.decode("utf-8", "replace") for text in found]
    return [texts[at : at + 5] for at in range(0, len(texts) - 5, 5)]


def _heard(ended: Sequence[str], sizes: Mapping[int, int], one: Transfer) -> _Said:
    answer, number, status, exit_code, message = ended
    if status.startswith("1"):
        status = "000"  # it was told to go on, and then heard no more
    body = answer[:_ERROR_KEPT] if one.md5 else ""
    if not one.md5 and not status.startswith("2"):
        # An error page came: read it, and take it out of the data.
        body = _taken_out(one.path, sizes[int(number)]) if status != "000" else ""
    elif not one.md5 and exit_code in _RESUME_REFUSED:
        _taken_out(one.path, 0)
    return _Said(status, exit_code, message, body)


def _taken_out(path: str, start: int) -> str:
    try:
        with open(path, "r+b") as file:
            file.seek(start)
            body = file.read(_ERROR_KEPT)
            file.truncate(start)
    except OSError:
        return ""
    return body.decode("utf-8", "replace")


def _outcome(one: Transfer, said: Optional[_Said]) -> "tuple[Optional[Trouble], bool]":
    """Return what went wrong with a transfer, if anything, and whether trying again may help."""
    if said is None:
        return Trouble("curl was killed", 0, ""), True
    if said.exit == "0" and said.status.startswith("2"):
        size = one.size if one.md5 else _size(one.path)
        if size == one.size:
            return None, False
        if size > one.size:
            _taken_out(one.path, 0)
        return Trouble(f"came with {size} of {one.size} bytes", int(said.status), ""), True
    code = _code(said.body)
    if said.status.startswith("2") or said.status == "000":
        why = said.message or f"curl exited {said.exit}"
        return Trouble(why, 0, code), said.exit not in LASTING_EXITS
    why = f"HTTP status {said.status} {code} {_tag('Message', said.body)}".strip()
    if said.status == "416" and not one.md5:
        _taken_out(one.path, 0)
        return Trouble(why, 416, code), True
    return Trouble(why, int(said.status), code), said.status in PASSING or code in _PASSING_CODES


def _code(body: str) -> str:
    """Return S3's own code; that of a denied access is the reason, where one is given."""
    if _tag("HeadersNotSigned", body):
        return "HeadersNotSigned"
    code = _tag("Code", body)
    is_old = code == "AccessDenied" and "has expired" in _tag("Message", body)
    return "RequestExpired" if is_old else code


def _tag(name: str, body: str) -> str:
    found = re.search(f"<{name}>([^<]*)</{name}>", body)
    return found[1] if found else ""


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
