"""User data: the part that must work on a node even if ssh never does. The rest goes over ssh."""

import pathlib

from workflows.ec2 import agent
from workflows.ec2.config import Spec
from workflows.errors import FleetError

LIMIT = 16384  # bytes, EC2's
_POLL_S = 2.0  # AWS advises 5 s; two small requests a poll
_UNIT = """\
[Unit]
Description=powers this node off when its driver is gone
StartLimitIntervalSec=0
[Service]
{closed}ExecStart=/usr/bin/env python3 /usr/local/sbin/workflows-node agent {options}
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
"""
_SSHD = "MaxSessions 100\nMaxStartups 100:30:300\nPasswordAuthentication no\n"
_LIMITS = "* soft nofile 1048576\n* hard nofile 1048576\n"
# Only root reaches the metadata service: a job must not read the node's role or user data by chance
# (the nodes' user has sudo, which no rule holds back). At each start of the unit, since rules are
# gone after a reboot. - : it must not keep what ends the node from starting; `up` looks at how it
# went, and refuses a node on which it did not work.
_CLOSED = (
    "ExecStartPre=-/usr/bin/env python3 /usr/local/sbin/workflows-node closeimds --home {home}\n"
)


def user_data(spec: Spec, boot_key: tuple[str, str], login_key: str, poll_s: float = 0) -> str:
    """Return the cloud-config of a launch; `boot_key` is its private and public host key.

    Raises:
        FleetError: it is longer than EC2 takes.
    """
    user = spec.access.user
    home = f"/home/{user}/.workflows"
    options = (
        f"--home {home} --idle {spec.ttl.idle} --max {spec.ttl.max} --poll {poll_s or _POLL_S:g}"
    )
    unit = _UNIT.format(options=options, closed="" if spec.profile else _CLOSED.format(home=home))
    program = pathlib.Path(agent.__file__).read_text(encoding="utf-8")
    config = {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": boot_key[0], "ed25519_public": boot_key[1]},
        "users": [
            "default",
            {
                "name": user,
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
                "ssh_authorized_keys": [login_key],
            },
        ],
        "write_files": [
            _file("/usr/local/sbin/workflows-node", program, "0755"),
            _file("/etc/systemd/system/workflows-node.service", unit),
            _file("/etc/ssh/sshd_config.d/10-workflows.conf", _SSHD),
            _file("/etc/security/limits.d/10-workflows.conf", _LIMITS),
        ],
        "runcmd": [
            "systemctl daemon-reload",
            "systemctl enable --now workflows-node.service",
        ],
    }
    import yaml

    text: str = "#cloud-config\n" + yaml.safe_dump(config, sort_keys=False, width=1000)
    if len(text.encode()) > LIMIT:
        raise FleetError(f"the user data is {len(text.encode())} bytes, EC2 takes {LIMIT}")
    return text


def _file(path: str, content: str, mode: str = "0644") -> dict[str, str]:
    return {"path": path, "permissions": mode, "content": content}
