"""Who may log in: the addresses that this machine's traffic comes from, as the nodes see it."""

import getpass
import hashlib
import ipaddress
import os
import re
import socket
import urllib.request

from workflows.ec2.api import Aws
from workflows.ec2.config import Spec
from workflows.errors import FleetError, UsageError

# EC2 refuses a rule whose description holds anything else.
_OTHERS = re.compile(r"[^a-zA-Z0-9. _\-:/()#,@\[\]+=;{}!$*]")
_DESCRIPTION = 255  # characters
_ANY_PORT = 9


def described() -> str:
    """Return how this user's rules are told from others': as EC2 takes it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container a uid may have no name
        user = f"uid {os.getuid()}"
    return plain(f"workflows: {user} at {socket.gethostname()}")


def plain(text: str) -> str:
    """Return a description as EC2 takes it; two different texts stay different.

    >>> plain("workflows: ann at laptop")
    'workflows: ann at laptop'
    >>> plain("workflows: o'hara at laptop").split("#")[0]
    'workflows: o_hara at laptop '
    """
    kept = _OTHERS.sub("_", text)
    if kept == text and len(text) <= _DESCRIPTION:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{kept[: _DESCRIPTION - len(digest) - 2]} #{digest}"


def sources(aws: Aws, spec: Spec, vpc: str) -> list[str]:
    """Return the address ranges that may log in.

    Raises:
        UsageError: one is none, or `me` cannot be what the nodes of a private fleet see.
        FleetError: nobody tells this machine's address.
    """
    found = []
    for text in spec.access.allow:
        try:
            cidr = f"{_me(aws, spec, vpc)}/32" if text == "me" else text
            found.append(str(ipaddress.IPv4Network(cidr)))
        except ValueError as error:
            raise UsageError(f"access: from: {text!r}: {error}") from error
    return found


def check(aws: Aws, spec: Spec, vpc: str) -> None:
    """Make sure that a private fleet will let in the address that its logins come from.

    Raises:
        UsageError: `me` is in its file, and is none that its nodes see.
    """
    if spec.access.address == "private":
        sources(aws, spec, vpc)


def _me(aws: Aws, spec: Spec, vpc: str) -> str:
    return caller_ip(spec) if spec.access.address == "public" else _private_ip(aws, spec, vpc)


def caller_ip(spec: Spec) -> str:
    """Return this machine's address as AWS sees it.

    Raises:
        FleetError: nobody tells.
    """
    try:
        with urllib.request.urlopen(spec.access.checkip, timeout=10) as answer:  # noqa: S310
            return str(ipaddress.IPv4Address(answer.read(100).decode().strip()))
    except (OSError, ValueError) as error:
        raise FleetError(
            f"cannot learn this machine's own address from {spec.access.checkip}: {error};"
            " write it in the fleet's file: access: {from: [203.0.113.7/32]}"
        ) from error


def _private_ip(aws: Aws, spec: Spec, vpc: str) -> str:
    """Return the address from which private nodes are reached: of this machine, or of the jump.

    Raises:
        UsageError: it is not in the fleet's VPC, so that nobody knows as which address it arrives.
    """
    row = aws.call("describe_vpcs", VpcIds=[vpc])["Vpcs"][0]
    blocks = [one["CidrBlock"] for one in row.get("CidrBlockAssociationSet", [])]
    ranges = [ipaddress.IPv4Network(text) for text in blocks or [row["CidrBlock"]]]
    jump = spec.access.jump
    mine = jump.address if jump is not None else _outgoing(str(ranges[0][_ANY_PORT]))
    if any(_is_in(mine, one) for one in ranges):
        return mine
    who = f"the jump host {mine}" if jump is not None else f"this machine ({mine or 'no route'})"
    raise UsageError(
        f"access: address is private, and {who} is not in the VPC {vpc}"
        f" ({', '.join(map(str, ranges))}): `me` would let in an address that the nodes never see."
        " Write the private range that logins come from, of the VPN, the peered network or the jump"
        " host: access: {from: [10.8.0.0/16]}"
    )


def _outgoing(address: str) -> str:
    """Return this machine's address on the way to another; empty if there is no way."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, _ANY_PORT))  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _is_in(address: str, network: ipaddress.IPv4Network) -> bool:
    try:
        return ipaddress.IPv4Address(address) in network
    except ValueError:
        return False
