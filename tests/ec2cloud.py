"""A cloud without AWS: moto answers as EC2, and each instance is a real sshd made of its user data.

What moto does not do is done here: ClientToken, spot prices, price lists, quotas, and faults. Every
request is kept, since moto accepts anything.
"""

import itertools
import json
import logging
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

HARNESS = "made-by-the-tests"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
TYPES = ["m7i.large", "m6i.large"]
_ONCE = ("CreateFleet", "RunInstances")
Fault = Callable[["Request"], "bytes | None"]


class Request:
    """One request to AWS, as it came."""

    def __init__(self, environ: dict[str, Any]) -> None:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        self.raw = environ["wsgi.input"].read(size)
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        self.region = environ.get("HTTP_AUTHORIZATION", "//us-east-1").split("/")[2]
        if target:
            self.action = target.rpartition(".")[2]
            self.body: dict[str, Any] = json.loads(self.raw or b"{}")
        else:
            pairs = urllib.parse.parse_qsl(self.raw.decode("utf-8", "replace"))
            self.body = dict(pairs)
            self.action = self.body.get("Action", environ["PATH_INFO"])

    def listed(self, prefix: str) -> list[str]:
        """Return the values of the fields that begin with `prefix`."""
        return [value for name, value in self.body.items() if re.match(prefix, name)]


class Cloud:
    """moto behind a real port, and what the tests put in its way. One for a test process."""

    def __init__(self) -> None:
        from moto import server as moto
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto: Any = moto.DomainDispatcherApplication(moto.create_backend_app)  # type: ignore[attr-defined]
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.answered: list[Callable[[Request], None]] = []
        self.notices: dict[str, str] = {}
        self.spot: dict[tuple[str, str], float] = {}
        self.caller = "127.0.0.1"
        self._tokens: dict[str, bytes] = {}
        self._mutex = threading.Lock()  # moto is not made for threads
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """Forget what a test has set up; moto keeps what there is, in VPCs of its own."""
        self.requests, self.faults, self.answered = [], [], []
        self.notices, self.spot, self.caller = {}, {}, "127.0.0.1"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def asked(self, action: str) -> list[Request]:
        """Return the requests for an action."""
        return [request for request in self.requests if request.action == action]

    def refuse(self, action: str, code: str, *, times: int = 1000) -> None:
        """Let EC2 refuse an action with an error code some times."""
        left = itertools.count(1)

        def fault(request: Request) -> bytes | None:
            if request.action == action and next(left) <= times:
                return error_body(code, f"{action} is refused")
            return None

        self.faults.append(fault)

    # -- answering -----------------------------------------------------------------------------

    def _serve(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/imds/"):
            return self._imds(environ, start)
        if path == "/checkip":
            start("200 OK", [("Content-Type", "text/plain")])
            return [self.caller.encode() + b"\n"]
        request = Request(environ)
        if HARNESS in environ.get("HTTP_USER_AGENT", ""):
            status, headers, body = self._by_moto(environ, request)
            start(status, headers)
            return [body]
        self.requests.append(request)
        own = self._own(request)
        status, headers, body = "200 OK", [("Content-Type", "text/xml")], own or b""
        if own is None:
            status, headers, body = self._by_moto(environ, request)
        elif body.startswith(b"<Response><Errors>"):
            status = "503 Slow" if b"RequestLimitExceeded" in body else "400 Bad Request"
        try:
            for answered in self.answered:
                answered(request)
        except ConnectionResetError:  # the answer is lost on its way
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise
        start(status, headers)
        return [body]

    def _own(self, request: Request) -> bytes | None:
        for fault in self.faults:
            body = fault(request)
            if body is not None:
                return body
        token = request.body.get("ClientToken", "")
        if request.action in _ONCE and token in self._tokens:
            return self._tokens[token]
        answer = getattr(self, "_on_" + re.sub(r"\W", "_", request.action), None)
        found: bytes | None = answer(request) if answer is not None else None
        return found

    def _by_moto(self, environ: dict[str, Any], request: Request) -> tuple[str, Any, bytes]:
        import io

        said: list[Any] = []
        environ["wsgi.input"] = io.BytesIO(request.raw)
        with self._mutex:
            answer = self._moto(
                environ, lambda status, headers, _=None: said.extend((status, headers))
            )
            body = b"".join(answer)
        if request.action in _ONCE and said[0].startswith("200"):
            self._tokens[request.body["ClientToken"]] = body
        return said[0], said[1], body

    def _imds(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        _, _, name, rest = environ["PATH_INFO"].split("/", 3)
        if environ["REQUEST_METHOD"] == "PUT":
            start("200 OK", [])
            return [b"token"]
        known = "HTTP_X_AWS_EC2_METADATA_TOKEN" in environ
        text = self.notices.get(name) if known and rest.endswith("spot/instance-action") else None
        start("200 OK" if text else "404 Not Found", [])
        return [(text or "").encode()]

    def _on_DescribeSpotPriceHistory(self, request: Request) -> bytes:  # noqa: N802
        types = request.listed(r"InstanceType\.")
        rows = "".join(
            f"<item><instanceType>{name}</instanceType><availabilityZone>{zone}</availabilityZone>"
            f"<productDescription>Linux/UNIX</productDescription><spotPrice>{price:.6f}</spotPrice>"
            "<timestamp>2020-01-01T00:00:00.000Z</timestamp></item>"
            for (name, zone), price in self.prices().items()
            if name in types
        )
        return (
            "<DescribeSpotPriceHistoryResponse xmlns='http://ec2.amazonaws.com/doc/2016-11-15/'>"
            f"<spotPriceHistorySet>{rows}</spotPriceHistorySet></DescribeSpotPriceHistoryResponse>"
        ).encode()

    def prices(self) -> dict[tuple[str, str], float]:
        """Return the spot prices of (type, zone)."""
        zones = [f"us-east-1{letter}" for letter in "abc"]
        return self.spot or {(name, zone): 0.03 for name in TYPES for zone in zones}

    def _on_GetProducts(self, request: Request) -> bytes:  # noqa: N802
        unit = {"pricePerUnit": {"USD": "0.1000"}}
        product = {"terms": {"OnDemand": {"a": {"priceDimensions": {"b": unit}}}}}
        return json.dumps({"FormatVersion": "1", "PriceList": [json.dumps(product)]}).encode()

    def _on_GetServiceQuota(self, request: Request) -> bytes:  # noqa: N802
        return json.dumps({"Quota": {"Value": 64.0}}).encode()


def error_body(code: str, message: str) -> bytes:
    """Return how EC2 refuses something."""
    return (
        f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
        "<RequestID>1</RequestID></Response>"
    ).encode()


def fleet_answer(ids: Iterable[str], errors: Iterable[tuple[str, str]]) -> bytes:
    """Return CreateFleet's answer: instances, and (code, type) of what did not come."""
    made = "".join(f"<item>{one}</item>" for one in ids)
    missing = "".join(
        f"<item><errorCode>{code}</errorCode><errorMessage>none left</errorMessage>"
        "<launchTemplateAndOverrides><overrides>"
        f"<instanceType>{name}</instanceType><availabilityZone>us-east-1a</availabilityZone>"
        "</overrides></launchTemplateAndOverrides></item>"
        for code, name in errors
    )
    instances = f"<item><instanceIds>{made}</instanceIds></item>" if made else ""
    return (
        "<CreateFleetResponse xmlns='http://ec2.amazonaws.com/doc/2016-11-15/'>"
        f"<fleetId>fleet-1</fleetId><errorSet>{missing}</errorSet>"
        f"<fleetInstanceSet>{instances}</fleetInstanceSet></CreateFleetResponse>"
    ).encode()


def wait_for(what: Callable[[], object], within_s: float) -> float:
    """Wait until `what` holds; return how long that took."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < within_s, f"not within {within_s} s"
        time.sleep(0.02)
    return time.monotonic() - started
