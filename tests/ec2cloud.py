"""A cloud without AWS: moto answers as EC2, and each instance is a real sshd made of its user data.

Moto accepts anything: so every request passes `aws.ec2.Account` first, which refuses what Amazon
refuses. What moto does not do is done here: ClientToken, spot prices, price lists, and faults.
Every request is kept.
"""

import email.utils
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
from xml.sax.saxutils import escape

from aws import ec2 as strict
from aws import sigv4
from aws.ec2_rules import RULES
from aws.rule import Refusal

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
        scope = [*environ.get("HTTP_AUTHORIZATION", "").split("/"), *[""] * 4]
        self.region, self.service = scope[2] or "us-east-1", scope[3]
        self.signed = _signed(environ)
        if sigv4.is_presigned(self.signed):
            self.service = "s3"
        self.is_refused = False  # a launch that names what is not there yet
        if target:
            self.action = target.rpartition(".")[2]
            self.body: dict[str, Any] = json.loads(self.raw or b"{}")
        else:
            text = self.raw.decode("utf-8", "replace")
            self.body = dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
            self.action = self.body.get("Action", environ["PATH_INFO"])

    def listed(self, prefix: str) -> list[str]:
        """Return the values of the fields that begin with `prefix`."""
        return [value for name, value in self.body.items() if re.match(prefix, name)]


def _signed(environ: dict[str, Any]) -> sigv4.Request:
    """Return a request as its signature has it."""
    headers = [
        (name[5:].replace("_", "-").lower(), value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers.append((name.replace("_", "-").lower(), environ[name]))
    path, query = environ["RAW_URI"].partition("?")[0], environ.get("QUERY_STRING", "")
    return sigv4.Request(environ["REQUEST_METHOD"], path, query, headers)


class Cloud:
    """moto behind a real port, and what the tests put in its way. One for a test process."""

    def __init__(self) -> None:
        import boto3
        from botocore.config import Config
        from moto import server as moto
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Handler(WSGIRequestHandler):
            """Answers with the time on AWS's clock."""

            def date_time_string(_, timestamp: float | None = None) -> str:  # noqa: N805
                now = time.time() + self.account.clock_s if timestamp is None else timestamp
                return email.utils.formatdate(now, usegmt=True)

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto: Any = moto.DomainDispatcherApplication(moto.create_backend_app)  # type: ignore[attr-defined]
        self._server = make_server(
            "127.0.0.1", 0, self._serve, threaded=True, request_handler=Handler
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.requests: list[Request] = []
        self.refused: list[tuple[Request, Refusal]] = []
        self.faults: list[Fault] = []
        self.answered: list[Callable[[Request], None]] = []
        self.notices: dict[str, str] = {}
        self.spot: dict[tuple[str, str], float] = {}
        self.caller = "127.0.0.1"
        self._tokens: dict[str, bytes] = {}
        self._mutex = threading.Lock()  # moto is not made for threads
        self._strictly = threading.Lock()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        session = boto3.session.Session("testing", "testing", region_name="us-east-1")
        self.ec2: Any = session.client(
            "ec2", endpoint_url=self.url, config=Config(user_agent_extra=HARNESS)
        )
        self._facts = strict.Facts(self.ec2)
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Forget what a test has set up; moto keeps what there is, in VPCs of its own.

        `seed` says how long new things are not there yet.
        """
        self.requests, self.refused, self.faults, self.answered = [], [], [], []
        self.notices, self.spot, self.caller = {}, {}, "127.0.0.1"
        self.account = strict.Account({"testing": sigv4.Credential("testing")}, seed)

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
                return strict.error_xml(code, f"{action} is refused")
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
        if HARNESS in environ.get("HTTP_USER_AGENT", "") or path.startswith("/moto-api/"):
            status, headers, body = self._by_moto(environ, request)
            start(status, headers)
            return [body]
        try:
            found = self._checked(request)
            status, headers, body = self._answer(environ, request, found)
        except Refusal as refusal:
            self.refused.append((request, refusal))
            start(f"{refusal.rule.status} Refused", [("Content-Type", "text/xml")])
            return [_said(request, refusal)]
        if request.is_refused:
            start(status, headers)
            return [body]
        self.requests.append(request)
        try:
            for answered in self.answered:
                answered(request)
        except ConnectionResetError:  # the answer is lost on its way
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise
        start(status, headers)
        return [body]

    def _checked(self, request: Request) -> dict[str, Any]:
        """Return the parameters of a request that Amazon would take."""
        self.account.verify(request.signed, request.raw, request.service)
        if request.service != "ec2":
            return {}
        return self.account.check(request.action, request.body)

    def _answer(
        self, environ: dict[str, Any], request: Request, found: dict[str, Any]
    ) -> tuple[str, Any, bytes]:
        late = self._late(request, found)
        own = late if late is not None else self._by_fault(request)
        if own is None and request.service == "ec2":
            self.account.check_policy(request.action, found, self._facts)
            self.account.check_token(request.action, found)
            if found.get("DryRun"):
                raise RULES["dry run"].refuse()
        own = own if own is not None else self._own(request)
        if own is not None:
            return _status(own), [("Content-Type", "text/xml")], own
        if request.action in _ONCE:
            return self._launch(environ, request, found)
        status, headers, body = self._by_moto(environ, request)
        self._made(request, found, status, body)
        return status, headers, body

    def _late(self, request: Request, found: dict[str, Any]) -> bytes | None:
        """Refuse what names a thing that is not there yet; CreateFleet says so in its answer."""
        if request.service != "ec2":
            return None
        with self._strictly:
            self.account.check_there(request.action, found)
            if request.action not in _ONCE:
                return None
            late = self.account.not_there(request.action, found)
        if late is None:
            return None
        if request.action == "RunInstances":
            raise late
        request.is_refused = True
        self.refused.append((request, late))
        return fleet_answer([], [(late.rule.code, "m7i.large", late.message)])

    def _launch(
        self, environ: dict[str, Any], request: Request, found: dict[str, Any]
    ) -> tuple[str, Any, bytes]:
        came = self._launched(request, found)
        if request.action == "CreateFleet":
            if not came.spot + came.demand:
                return "200 OK", [("Content-Type", "text/xml")], _came(came, b"")
            _ask_for(request, came)
        status, headers, body = self._by_moto(environ, request)
        self._made(request, found, status, body)
        if came.errors:
            body = self._tokens[request.body["ClientToken"]] = _came(came, body)
            headers = [("Content-Type", "text/xml")]
        return status, headers, body

    def _launched(self, request: Request, found: dict[str, Any]) -> strict.Launch:
        """Return how a launch comes out, of the counts that faults may have changed."""
        target = found.get("TargetCapacitySpecification", {})
        asked = dict(urllib.parse.parse_qsl(request.raw.decode()))
        for name in target:
            text = asked.get(f"TargetCapacitySpecification.{name}", "")
            target[name] = int(text) if text.isdigit() else target[name]
        return self.account.launch(request.action, found, self._facts)

    def _made(self, request: Request, found: dict[str, Any], status: str, body: bytes) -> None:
        """Take down what a request has made: for a while it is not there yet."""
        kinds = {
            "CreateSecurityGroup": ("group", rb"<groupId>([^<]+)"),
            "CreateLaunchTemplate": ("template id", rb"<launchTemplateId>([^<]+)"),
            "CreateFleet": ("instance", rb"<item>(i-[0-9a-f]+)"),
            "RunInstances": ("instance", rb"<instanceId>([^<]+)"),
        }
        if not status.startswith("200"):
            return
        if request.action == "CreateLaunchTemplate":
            self.account.remember_template(found)
            self.account.made("template", found["LaunchTemplateName"])
        if request.action == "ImportKeyPair":
            self.account.made("key pair", found["KeyName"])
        if request.action in kinds:
            kind, pattern = kinds[request.action]
            self.account.made(kind, *{one.decode() for one in re.findall(pattern, body)})

    def _by_fault(self, request: Request) -> bytes | None:
        for fault in self.faults:
            body = fault(request)
            if body is not None:
                return body
        return None

    def _own(self, request: Request) -> bytes | None:
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
        usd = "0.0800" if b"volumeApiName" in request.raw else "0.1000"
        unit = {"pricePerUnit": {"USD": usd}}
        product = {"terms": {"OnDemand": {"a": {"priceDimensions": {"b": unit}}}}}
        return json.dumps({"FormatVersion": "1", "PriceList": [json.dumps(product)]}).encode()

    def _on_GetServiceQuota(self, request: Request) -> bytes:  # noqa: N802
        return json.dumps(
            {"Quota": {"Value": self.account.quota(request.body["QuotaCode"])}}
        ).encode()


def _said(request: Request, refusal: Refusal) -> bytes:
    """Return how a service says that it refuses; those that speak JSON do so."""
    if "x-amz-target" in request.signed.names():
        kind = {"type": refusal.rule.code, "message": refusal.message}
        return json.dumps({"__type": kind["type"], "message": kind["message"]}).encode()
    if request.service in {"sts", "iam"}:
        code, message = refusal.rule.code, escape(refusal.message)
        return (
            f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error>"
            "<RequestId>1</RequestId></ErrorResponse>"
        ).encode()
    return strict.xml(refusal)


def _status(body: bytes) -> str:
    if b"<Response><Errors>" not in body:
        return "200 OK"
    return "503 Slow" if b"RequestLimitExceeded" in body else "400 Bad Request"


def _ask_for(request: Request, came: strict.Launch) -> None:
    """Let moto launch what comes, and no more."""
    pairs = dict(urllib.parse.parse_qsl(request.raw.decode(), keep_blank_values=True))
    for name, count in (
        ("Total", came.spot + came.demand),
        ("Spot", came.spot),
        ("OnDemand", came.demand),
    ):
        key = f"TargetCapacitySpecification.{name}TargetCapacity"
        if key in pairs:
            pairs[key] = str(count)
    request.raw = urllib.parse.urlencode(pairs).encode()


def _came(came: strict.Launch, body: bytes) -> bytes:
    """Return CreateFleet's answer: what moto launched, and why the rest did not come."""
    ids = [one.decode() for one in re.findall(rb"<item>(i-[0-9a-f]+)", body)]
    errors = [(refusal.rule.code, name, refusal.message) for refusal, name in came.errors]
    return fleet_answer(ids, errors)


def fleet_answer(ids: Iterable[str], errors: Iterable[tuple[str, ...]]) -> bytes:
    """Return CreateFleet's answer: instances, and (code, type[, message]) of what did not come."""
    made = "".join(f"<item>{one}</item>" for one in ids)
    missing = "".join(
        f"<item><errorCode>{code}</errorCode>"
        f"<errorMessage>{escape(''.join(message) or 'none left')}</errorMessage>"
        "<launchTemplateAndOverrides><overrides>"
        f"<instanceType>{name}</instanceType><availabilityZone>us-east-1a</availabilityZone>"
        "</overrides></launchTemplateAndOverrides></item>"
        for code, name, *message in errors
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


error_body = strict.error_xml
