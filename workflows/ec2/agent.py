#!/usr/bin/env python3
"""workflows-node: a node's own agent, from its first boot on. Installed by its user data.

``agent``     powers the node off when nobody has renewed its lease for --idle seconds, or it is
              --max seconds old; notes what EC2 says about taking it back
``closeimds`` lets only root reach the metadata service, and notes how
``newkey``    makes a host key of the node's own and prints it; ``usekey`` puts it in use, and the
              settings of sshd that the user data wrote

Standard library, Python 3.9. In HOME/.workflows: `lease` (its time is the last renewal), `extended`
(its time is until when somebody extended it, if so), `deadline` (seconds since 1970), `notice`
(JSON), `imds` (closed by what, or why it is open), `flush` (if it is there, it is run before the
end).
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request

IMDS = "http://169.254.169.254/latest/"
KEY = "/etc/ssh/ssh_host_ed25519_key"
NOTICES = ("spot/instance-action", "events/recommendations/rebalance")
FLUSH_S = 60
SSHD = "/etc/ssh/sshd_config"
OWN = "/etc/ssh/sshd_config.d/10-workflows.conf"
ADMIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])
ADDRESS = "169.254.169.254"
RULE = f"OUTPUT -d {ADDRESS} -m owner ! --uid-owner 0 -j REJECT"
# All users but root are refused the way there: needs no firewall at all.
ROUTE = f"to {ADDRESS}/32 uidrange 1-4294967294 prohibit pref 100"
# Program -> what closes the service by it; of the commands between | one has to succeed. Amazon
# Linux 2023 has no iptables.
BLOCKS = {
    "iptables": [f"iptables -w -C {RULE}|iptables -w -A {RULE}"],
    "nft": [
        "nft add table ip workflows",
        "nft add chain ip workflows out { type filter hook output priority 0 ; }",
        "nft flush chain ip workflows out",
        f"nft add rule ip workflows out ip daddr {ADDRESS} meta skuid != 0 reject",
    ],
    "ip": [f"ip rule del {ROUTE}|true", f"ip rule add {ROUTE}"],
}
REACH = f"import socket; socket.create_connection(('{ADDRESS}', 80), 2)"
NOBODY = 65534


def agent(home: str, idle: float, longest: float, poll: float) -> None:
    """Watch the lease, the age and EC2's notices until one of them ends the node."""
    os.makedirs(home, exist_ok=True)
    user = os.stat(os.path.dirname(home))
    os.chown(home, user.st_uid, user.st_gid)
    lease, deadline = os.path.join(home, "lease"), os.path.join(home, "deadline")
    for path, text in ((lease, ""), (deadline, str(int(time.time() + longest)))):
        if not os.path.exists(path):
            with contextlib.suppress(OSError):
                write(path, text)
                os.chown(path, user.st_uid, user.st_gid)
    known = {"deadline": time.time() + longest, "lease": time.time()}
    while True:
        why = over(lease, deadline, idle, known)
        if why:
            end(home, why)
        for name in NOTICES:
            text = imds(name)
            if text:
                with contextlib.suppress(OSError):  # a full disk must not end what watches
                    write(os.path.join(home, "notice"), json.dumps({"what": name, "says": text}))
                break
        time.sleep(poll)


def over(lease: str, deadline: str, idle: float, known: "dict[str, float]") -> str:
    """Return why the node's time is over, or nothing.

    A value that cannot be read, since it is being written, was removed, or the disk was full, is
    as in `known`: the last value read.
    """
    now = time.time()
    with contextlib.suppress(OSError, ValueError), open(deadline) as file:
        known["deadline"] = int(file.read())
    with contextlib.suppress(OSError):
        known["lease"] = os.stat(lease).st_mtime
    last, renewed = known["deadline"], known["lease"]
    with contextlib.suppress(OSError):
        extended = os.path.join(os.path.dirname(lease), "extended")
        renewed = max(renewed, os.stat(extended).st_mtime)
    if now > last:
        return "it has reached its longest life"
    if now - renewed > idle:
        return f"nobody has renewed its lease for {idle:g} s"
    return ""


def end(home: str, why: str) -> None:
    """Run the flush hook, then power off, again and again until it works."""
    with contextlib.suppress(OSError):  # the disk may be full
        write(os.path.join(home, "off"), why)
    flush = os.path.join(home, "flush")
    if os.access(flush, os.X_OK):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.call([flush], timeout=FLUSH_S)
    for words in (["systemctl", "poweroff"], ["poweroff"], ["systemctl", "poweroff", "-ff"]) * 9:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.call(words, timeout=30)
        time.sleep(20)


def imds(path: str) -> str:
    """Return what the instance metadata service (version 2) holds, or nothing."""
    try:
        ask = urllib.request.Request(IMDS + "api/token", method="PUT")  # noqa: S310
        ask.add_header("X-aws-ec2-metadata-token-ttl-seconds", "60")
        token = answer(ask)
        ask = urllib.request.Request(IMDS + "meta-data/" + path)  # noqa: S310
        ask.add_header("X-aws-ec2-metadata-token", token)
        return answer(ask)
    except (OSError, ValueError):
        return ""  # 404 is the usual answer


def answer(ask: urllib.request.Request) -> str:
    """Return the text of an answer."""
    with urllib.request.urlopen(ask, timeout=2) as stream:  # noqa: S310 - IMDS is an http URL
        return str(stream.read().decode())


def write(path: str, text: str) -> None:
    """Write a file that is never half there."""
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)


def closeimds(home: str) -> None:
    """Let only root reach the metadata service; note by what, or why it is open."""
    why = []
    for name, steps in BLOCKS.items():
        if shutil.which(name, path=ADMIN) is None:
            why.append(f"there is no {name}")
        elif not all(any(run(words) for words in step.split("|")) for step in steps):
            why.append(f"{name} failed")
        elif is_open():
            why.append(f"{name} had no effect")
        else:
            why = []
            break
    os.makedirs(home, exist_ok=True)
    user = os.stat(os.path.dirname(home))
    os.chown(home, user.st_uid, user.st_gid)
    write(os.path.join(home, "imds"), "open: " + ", ".join(why) if why else "closed by " + name)
    if why:
        raise SystemExit("the metadata service is open to all users: " + ", ".join(why))


def is_open() -> bool:
    """Tell whether a user who is not root reaches the metadata service."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        words = [sys.executable, "-c", REACH]
        return subprocess.call(words, user=NOBODY, stderr=subprocess.DEVNULL, timeout=10) == 0
    return False


def run(line: str) -> bool:
    """Run a command; tell whether it succeeded."""
    words = line.split()
    words[0] = shutil.which(words[0], path=ADMIN) or words[0]
    try:
        return subprocess.call(words, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def settings() -> None:
    """Make sshd take the settings that the user data wrote.

    Some images include no folder in their configuration, or set something before they do. The first
    value counts: so ours go to the top.
    """
    with open(OWN) as file:
        own = file.read()
    with open(SSHD) as file:
        there = file.read()
    os.makedirs("/run/sshd", exist_ok=True)
    if takes(SSHD, own):
        return
    new = SSHD + ".new"
    write(new, own + there)
    shutil.copymode(SSHD, new)
    if not takes(new, own):
        raise SystemExit("sshd does not take: " + ", ".join(own.splitlines()))
    os.replace(new, os.path.realpath(SSHD))


def takes(path: str, own: str) -> bool:
    """Tell whether a configuration of sshd has our settings."""
    words = [shutil.which("sshd", path=ADMIN) or "sshd", "-T", "-f", path]
    told = subprocess.run(words, capture_output=True, check=False)
    said = told.stdout.decode("utf-8", "replace").splitlines()
    return set(own.lower().splitlines()) <= set(said)


def newkey() -> None:
    """Make the key unless a call before has; print its public half."""
    new = KEY + ".new"
    if not os.path.exists(new + ".pub") and not os.path.exists(KEY + ".own"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", new]
        subprocess.run(words, input=b"y\n", check=True, stdout=subprocess.DEVNULL)
    with open((new if os.path.exists(new + ".pub") else KEY) + ".pub") as file:
        print(" ".join(file.read().split()[:2]))


def usekey() -> None:
    """Put the new key in place of the one from the user data; sshd reads it at once."""
    if os.path.exists(KEY + ".new"):
        os.replace(KEY + ".new", KEY)
    if os.path.exists(KEY + ".new.pub"):
        write(KEY + ".own", "")
        os.replace(KEY + ".new.pub", KEY + ".pub")
    settings()
    for unit in ("ssh", "sshd"):
        if subprocess.call(["systemctl", "reload", unit], stderr=subprocess.DEVNULL) == 0:
            return
    raise SystemExit("sshd could not be reloaded")


def main() -> None:
    """Do what the first argument says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("agent", "closeimds", "newkey", "usekey"))
    parser.add_argument("--home", default="/home/workflows/.workflows")
    parser.add_argument("--idle", type=int, default=1800)
    parser.add_argument("--max", type=int, default=43200)
    parser.add_argument("--poll", type=float, default=2.0)
    given = parser.parse_args()
    if given.what == "agent":
        agent(given.home, given.idle, given.max, given.poll)
    elif given.what == "closeimds":
        closeimds(given.home)
    elif given.what == "newkey":
        newkey()
    else:
        usekey()


if __name__ == "__main__":
    main()
