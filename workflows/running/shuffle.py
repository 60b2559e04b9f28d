"""The delivery of a 1:n step's pieces, from node to node; no data passes through the driver.

Nodes that see each other's files share or copy them. Others open an HTTPS listener each for as long
as it takes (node/https.py), and fetch from each other; docs/adr/0007 says why.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from workflows.errors import NodeRefused
from workflows.fleets.fleet import Fleet
from workflows.model import Piece
from workflows.planning.to_n import PlanToN

Event = dict[str, Any]
Pieces = Mapping[int, Sequence[Piece]]


def move(step: PlanToN, by_slot: Pieces, made_on: Mapping[str, int]) -> dict[int, list[Event]]:
    """Bring each piece to its slot; return what came of them, by slot.

    `made_on` is the slot of each maker's identity.

    Raises:
        NodeLost: a node was lost; those that are only out of another's reach are not.
        NodeRefused: a node cannot reach another, or cannot be reached.
    """
    fleet = step.nodes
    if fleet.credential is None:

        def share(slot: int) -> list[Event]:
            items = [
                {**_item(step, piece), "share": True, "path": _path(fleet, piece, made_on)}
                for piece in by_slot[slot]
            ]
            return _brought(fleet, slot, {"op": "bring", "step": step.ledger, "items": items})

        return fleet.each(by_slot, share)

    credential = fleet.credential()
    ports = _open(fleet, by_slot, made_on, credential)
    senders = {slot: [fleet.nodes[slot].peer, port] for slot, port in ports.items()}
    known = {"certificate": credential["certificate"], "token": credential["token"]}

    def fetch(slot: int) -> list[Event]:
        items = _fetched_items(step, by_slot[slot], made_on, slot, len(fleet))
        message = {"op": "bring", "step": step.ledger, "items": items, "senders": senders}
        return _brought(fleet, slot, {**message, **known})

    outcomes = fleet.each(by_slot, fetch)
    _look_after(fleet, outcomes, senders)
    # After an error the listeners end with this process's sessions.
    fleet.each(ports, lambda slot: fleet.channel(slot).one({"op": "unserve"}, "unserved"))
    return outcomes


def _item(step: PlanToN, piece: Piece) -> Event:
    return {
        "key": piece.key.name,
        "id": piece.key.identity,
        "bytes": piece.size,
        "crc": piece.crc,
        "by_name": step.by_name,
        "maker": [piece.maker.identity, piece.proof],
    }


def _part(piece: Piece) -> str:
    return piece.key.name.rsplit("/", 1)[1]


def _path(fleet: Fleet, piece: Piece, made_on: Mapping[str, int]) -> str:
    root = fleet.nodes[made_on[piece.maker.identity]].root
    maker = piece.maker
    return os.path.join(root, "data", maker.step, maker.identity, maker.name, _part(piece))


def _brought(fleet: Fleet, slot: int, message: Event) -> list[Event]:
    return [event for event in fleet.channel(slot).ask(message, "ran") if "key" in event]


def _open(
    fleet: Fleet, by_slot: Pieces, made_on: Mapping[str, int], credential: Event
) -> dict[int, int]:
    """Let every node listen that has a piece for another one; return their ports by slot."""
    needed = {
        made_on[piece.maker.identity]
        for slot, pieces in by_slot.items()
        for piece in pieces
        if made_on[piece.maker.identity] != slot
    }

    def serve(slot: int) -> int:
        node = fleet.nodes[slot]
        message = {"op": "serve", "address": node.peer, **credential}
        for event in fleet.channel(slot).ask(message, "serving", "refused"):
            if event["event"] == "refused":
                raise NodeRefused(
                    node.name,
                    f"it cannot listen on {node.peer}: {event['why']}. Give the address by which"
                    f" the other nodes reach it as peer in hosts.yaml",
                )
        return int(event["port"])

    return fleet.each(needed, serve)


def _fetched_items(
    step: PlanToN, pieces: Sequence[Piece], made_on: Mapping[str, int], slot: int, slots: int
) -> list[Event]:
    """Return what a node is told to fetch: every node begins with another sender."""
    items = []
    for piece in sorted(pieces, key=lambda one: (made_on[one.maker.identity] - slot) % slots):
        sender = made_on[piece.maker.identity]
        made = [piece.maker.step, piece.maker.identity, piece.maker.name, _part(piece)]
        item = {**_item(step, piece), "made": made}
        items.append(item if sender == slot else {**item, "sender": sender})
    return items


def _look_after(
    fleet: Fleet, outcomes: Mapping[int, Sequence[Event]], senders: Mapping[int, Sequence[Any]]
) -> None:
    """Find out why nodes could not reach others.

    Raises:
        NodeLost: the other one is gone.
        NodeRefused: it is there, so something is between them.
    """
    for slot, events in outcomes.items():
        for event in events:
            if "unreachable" not in event:
                continue
            sender = event["unreachable"]
            fleet.channel(sender).one({"op": "list", "steps": []}, "listing")
            host, port = senders[sender]
            other = fleet.nodes[sender].name
            raise NodeRefused(
                fleet.nodes[slot].name,
                f"it cannot reach {other} at {host} port {port}: {event['why']}. Let the nodes"
                f" connect to each other on TCP ports 1024-65535 (firewall, security group), or"
                f" give the address by which others reach {other} as peer in hosts.yaml",
            )
