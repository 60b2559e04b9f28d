"""``workflows up``: makes the hosts of an ssh fleet ready; prints their lines as they come."""

import argparse
import concurrent.futures
import contextlib
import functools
import sys
import threading
import time

from workflows.ec2.bootstrap import Recipe, check_limits, host_recipe, make_ready
from workflows.errors import NodeLost, NodeRefused, WorkflowsError
from workflows.fleets.hosts import Host
from workflows.fleets.ssh import Connection, connect_watched
from workflows.verbs.onfleet import add_fleet, exit_code, say, static_fleet

_AT_ONCE = 64
_AGAIN_S = 1.0


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_fleet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Return 0 if all hosts are ready, 1 if something failed on one, 3 if hosts are lost."""
    fleet = static_fleet(arguments.fleet, "up")
    wanted = [
        (f"node {slot} ({host})", host, host_recipe(host)) for slot, host in enumerate(fleet.hosts)
    ]
    with (
        contextlib.closing(_Work(fleet.patience)) as work,
        concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        futures = [pool.submit(work.on, *one) for one in wanted]
        try:
            results = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            work.close()  # or Ctrl-C would wait until every host is done
            raise
    errors = [result for result in results if isinstance(result, WorkflowsError)]
    for error in errors:
        say(str(error))
    say(_summary(results))
    return exit_code(errors)


class _Work:
    """The parallel work on the hosts; closing it ends their connections."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._over = threading.Event()
        self._screen = threading.Lock()
        self._connections: list[Connection] = []

    def on(self, name: str, host: Host, recipe: Recipe) -> list[str] | WorkflowsError:
        """Return which stages ran on a host, or why it is not ready."""
        try:
            stages = self._stages(name, host, recipe)
            check_limits(lambda: self._login(name, host), name, host.limits)
            return stages
        except (NodeLost, NodeRefused) as error:
            return error

    def _stages(self, name: str, host: Host, recipe: Recipe) -> list[str]:
        connection = self._login(name, host)
        show = functools.partial(self._show, name)
        try:
            return make_ready(connection, name, recipe, show, repeats=False)
        except NodeLost:  # its own script may have rebooted it
            show(f"hung up; waiting {self._patience_s:g} s for it to come back (patience)")
        connection = self._returned(name, host)
        return ["reboot", *make_ready(connection, name, recipe, show, repeats=False)]

    def _returned(self, name: str, host: Host) -> Connection:
        """Wait for a host to come back."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return self._login(name, host)
            except NodeLost:
                if time.monotonic() > deadline or self._over.wait(_AGAIN_S):
                    raise

    def _login(self, name: str, host: Host) -> Connection:
        connection = connect_watched(name, host)
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        """Close all connections."""
        self._over.set()
        for connection in self._connections:
            connection.close()

    def _show(self, name: str, text: str) -> None:
        with self._screen:  # whole lines, or those of several nodes would mix
            print(f"{name}: {text}", file=sys.stderr, flush=True)


def _summary(results: list[list[str] | WorkflowsError]) -> str:
    lost = sum(isinstance(result, NodeLost) for result in results)
    failed = sum(isinstance(result, WorkflowsError) for result in results) - lost
    if not lost + failed and not any(results):
        return f"nothing has changed, nothing was run: {len(results)} of {len(results)} ready"
    ready = len(results) - lost - failed
    return f"{ready} of {len(results)} ready, {failed} failed, {lost} lost"
