"""The command lines that nodes are sent. Every login shell must take them: sh, bash, csh, fish.

So each is ``exec sh -c '...'`` whose script holds no single quote, exclamation mark or newline;
what is put into it was checked when hosts.yaml was read.
"""

from workflows.fleets.hosts import Host
from workflows.fleets.pack import RUN, runtime_pack

NOT_SHIPPED = "workflows-runtime-is-not-here"


def start(host: Host, slot: int, nodes: int, socket: str, lease_s: float) -> str:
    """Return the line that starts the runtime of a slot, or says `NOT_SHIPPED`."""
    slots = host.slots or f"x{host.slots_per_core:g}"
    arguments = f'"{host.scratch}/{slot}" {slot} {nodes} {slots} {socket} {lease_s:g}'
    return _sh(
        f'test -f "{_program(host)}" || {{ echo; echo {NOT_SHIPPED}; exit 0; }}; '
        f"exec {_python(host)} {arguments}"
    )


def attach(host: Host, socket: str) -> str:
    """Return the line that joins its stdin and stdout to the runtime's socket."""
    return _sh(f"exec {_python(host)} attach {socket}")


def ship(host: Host, token: str) -> str:
    """Return the line that keeps its stdin as the runtime, once all of it has arrived."""
    tmp = f"{host.scratch}/.{token}"
    size = len(runtime_pack().data)
    return _sh(
        f'umask 077; mkdir -p "{host.scratch}" || exit 1; '
        f'if cat > "{tmp}" && test $(wc -c < "{tmp}") -eq {size}; '
        f'then mv -f "{tmp}" "{_program(host)}"; else rm -f "{tmp}"; exit 1; fi'
    )


def _program(host: Host) -> str:
    return f"{host.scratch}/runtime-{runtime_pack().digest}.pyz"


def _python(host: Host) -> str:
    return f'"{host.python}" -I -S -c "{RUN}" "{_program(host)}"'


def _sh(script: str) -> str:
    return f"exec /bin/sh -c '{script}'"
