"""Amazon's Signature Version 4, verified: requests signed in a header or in their query.

Written from the specification ("Signature Version 4 for API requests" in the IAM guide, and
"Authenticating Requests (AWS Signature Version 4)" in the S3 API reference), not from botocore: it
must not share an error with what it verifies. `verify` says which `Fault` a request has; what is
answered to it is the business of each service's table of rules.

What it does not know: SigV4a, and which unsigned headers other than ``x-amz-*`` and Content-MD5
Amazon minds. It lets those pass.
"""

import calendar
import dataclasses
import enum
import hashlib
import hmac
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence

SKEW_S = 900
LONGEST_S = 604_800
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY = hashlib.sha256(b"").hexdigest()
_ALGORITHM = "AWS4-HMAC-SHA256"
_HEADER = re.compile(
    rf"{_ALGORITHM}\s+Credential=([^,\s]+)\s*,\s*SignedHeaders=([^,\s]+)\s*,\s*Signature=(\S+)\s*"
)
_QUERY = ("X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders")
_PLAIN = "-_.~"


class Fault(enum.Enum):
    """What is wrong with a request's signature, in the order in which it is looked for."""

    ANONYMOUS = "it has no signature"
    MALFORMED = "its signature cannot be read"
    UNKNOWN_KEY = "nobody has its key id"
    WRONG_SCOPE = "it is signed for another day, region or service"
    SKEWED = "its clock differs by more than 15 minutes"
    NOT_YET_VALID = "its query is signed for a later time"
    EXPIRED = "its time is over"
    TOO_LONG = "its query is signed for more than a week"
    INVALID_TOKEN = "its session token is none of this key's"
    EXPIRED_TOKEN = "its session is over"
    UNSIGNED_HEADERS = "it has headers that must be signed and are not"
    MISMATCH = "the signature is none of this request"


class Unverified(Exception):
    """A request that is not signed as it must be; `facts` are what Amazon tells about that."""

    def __init__(self, fault: Fault, **facts: str) -> None:
        super().__init__(fault, facts)
        self.fault, self.facts = fault, facts


@dataclasses.dataclass(frozen=True)
class Credential:
    """A secret key; that of a session has a token, and may end (seconds since the epoch)."""

    secret: str
    token: str = ""
    ends: float = float("inf")


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as it came: path and query as they are on the request line, headers in order."""

    method: str
    path: str
    query: str
    headers: Sequence[tuple[str, str]]

    def header(self, name: str) -> str | None:
        """Return all values of a header as the signature has them, or None."""
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        return ",".join(" ".join(value.split()) for value in found) if found else None

    def names(self) -> set[str]:
        """Return the names of its headers, in lower case."""
        return {name.lower() for name, _ in self.headers}

    def parameters(self) -> list[tuple[str, str]]:
        """Return its query, decoded."""
        return urllib.parse.parse_qsl(self.query, keep_blank_values=True)


@dataclasses.dataclass(frozen=True)
class Signed:
    """What a request says of its signature."""

    key_id: str
    day: str
    region: str
    service: str
    headers: tuple[str, ...]
    signature: str
    date: str
    token: str
    expires_s: int | None  # of a presigned URL

    @property
    def scope(self) -> str:
        """Return what the signature is good for."""
        return f"{self.day}/{self.region}/{self.service}/aws4_request"

    @property
    def at(self) -> float:
        """Return when it was signed, in seconds since the epoch."""
        return calendar.timegm(time.strptime(self.date, "%Y%m%dT%H%M%SZ"))


@dataclasses.dataclass(frozen=True)
class Verified:
    """A signature that is right; `chunk_key` and the signature are what chunks are signed with."""

    signed: Signed
    payload: str  # as the signature has it: a SHA-256 in hex, UNSIGNED-PAYLOAD, or STREAMING-...
    chunk_key: bytes


def is_presigned(request: Request) -> bool:
    """Tell whether a request's signature is in its query."""
    return any(name == "X-Amz-Signature" for name, _ in request.parameters())


def verify(
    request: Request,
    keys: Mapping[str, Credential],
    *,
    region: str,
    service: str,
    now: float,
    payload: str | None = None,
) -> Verified:
    """Verify a request's signature, of S3 (`payload` None: its header says the hash) or of another.

    For another service than S3 `payload` is the SHA-256 of the body, in hex. An empty `region`
    takes any.

    Raises:
        Unverified: it is not signed as it must be.
    """
    signed = read(request)
    given = keys.get(signed.key_id)
    if given is None:
        raise Unverified(Fault.UNKNOWN_KEY, AWSAccessKeyId=signed.key_id)
    _check_scope(signed, region, service)
    _check_time(signed, now)
    _check_token(signed, given, now)
    unsigned = sorted(_must_be_signed(request) - set(signed.headers))
    if unsigned:
        raise Unverified(Fault.UNSIGNED_HEADERS, HeadersNotSigned=", ".join(unsigned))
    if payload is None:
        payload = _payload(request, signed)
    canonical = canonical_request(request, signed.headers, payload, is_s3=service == "s3")
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"{_ALGORITHM}\n{signed.date}\n{signed.scope}\n{digest}"
    key = signing_key(given.secret, signed)
    expected = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, signed.signature):
        raise Unverified(
            Fault.MISMATCH,
            AWSAccessKeyId=signed.key_id,
            StringToSign=text,
            SignatureProvided=signed.signature,
            CanonicalRequest=canonical,
        )
    return Verified(signed, payload, key)


def read(request: Request) -> Signed:
    """Return what a request says of its signature.

    Raises:
        Unverified: it has none, or one that cannot be read.
    """
    header = request.header("Authorization")
    query = dict(request.parameters())
    if "X-Amz-Signature" in query or "X-Amz-Algorithm" in query:
        if header is not None:
            raise Unverified(Fault.MALFORMED, why="Only one auth mechanism allowed")
        return _of_query(query)
    if header is None:
        raise Unverified(Fault.ANONYMOUS)
    found = _HEADER.fullmatch(header)
    if found is None:
        raise Unverified(Fault.MALFORMED, why="the Authorization header cannot be read")
    date = request.header("X-Amz-Date") or ""
    token = request.header("X-Amz-Security-Token") or ""
    return _signed(found[1], found[2], found[3], date, token, None)


def _of_query(query: Mapping[str, str]) -> Signed:
    missing = [name for name in (*_QUERY, "X-Amz-Signature") if not query.get(name)]
    if missing or query.get("X-Amz-Algorithm") != _ALGORITHM:
        why = f"the query has no {', '.join(missing) or 'X-Amz-Algorithm'}"
        raise Unverified(Fault.MALFORMED, why=why)
    expires = query["X-Amz-Expires"]
    if not expires.isdecimal():
        raise Unverified(Fault.MALFORMED, why="X-Amz-Expires should be a number")
    return _signed(
        query["X-Amz-Credential"],
        query["X-Amz-SignedHeaders"],
        query["X-Amz-Signature"],
        query["X-Amz-Date"],
        query.get("X-Amz-Security-Token", ""),
        int(expires),
    )


def _signed(
    credential: str, names: str, signature: str, date: str, token: str, expires_s: int | None
) -> Signed:
    key_id, *scope = credential.rsplit("/", 4)
    if len(scope) != 4 or scope[3] != "aws4_request" or not key_id:
        raise Unverified(Fault.MALFORMED, why="the Credential is mal-formed")
    if not re.fullmatch(r"\d{8}T\d{6}Z", date):
        raise Unverified(Fault.MALFORMED, why="AWS authentication requires a valid Date")
    try:
        time.strptime(date, "%Y%m%dT%H%M%SZ")
    except ValueError as error:
        raise Unverified(Fault.MALFORMED, why="X-Amz-Date is no date") from error
    headers = tuple(names.split(";"))
    if list(headers) != sorted(set(headers)) or names != names.lower() or "host" not in headers:
        raise Unverified(Fault.MALFORMED, why="SignedHeaders must be sorted and name the host")
    day, region, service, _ = scope
    return Signed(key_id, day, region, service, headers, signature, date, token, expires_s)


def _check_scope(signed: Signed, region: str, service: str) -> None:
    if signed.day != signed.date[:8]:
        why = (
            f'Invalid credential date "{signed.day}".'
            f' This date is not the same as X-Amz-Date: "{signed.date[:8]}".'
        )
        raise Unverified(Fault.WRONG_SCOPE, part="date", why=why)
    if signed.service != service:
        why = f'incorrect service "{signed.service}". This endpoint belongs to "{service}".'
        raise Unverified(Fault.WRONG_SCOPE, part="service", why=why)
    if region and signed.region != region:
        why = f"the region '{signed.region}' is wrong; expecting '{region}'"
        raise Unverified(Fault.WRONG_SCOPE, part="region", why=why, Region=region)


def _check_time(signed: Signed, now: float) -> None:
    at, server = signed.at, _iso(now)
    if signed.expires_s is None:
        if abs(now - at) > SKEW_S:
            raise Unverified(Fault.SKEWED, RequestTime=signed.date, ServerTime=server)
        return
    if signed.expires_s > LONGEST_S:
        raise Unverified(Fault.TOO_LONG)
    ends = at + signed.expires_s
    if at > now + SKEW_S:
        raise Unverified(Fault.NOT_YET_VALID, Expires=_iso(ends), ServerTime=server)
    if now > ends:
        about = {"X-Amz-Expires": str(signed.expires_s)}
        raise Unverified(Fault.EXPIRED, Expires=_iso(ends), ServerTime=server, **about)


def _check_token(signed: Signed, given: Credential, now: float) -> None:
    if signed.token != given.token:
        raise Unverified(Fault.INVALID_TOKEN, Token=signed.token)
    if now > given.ends:
        raise Unverified(Fault.EXPIRED_TOKEN, Token=signed.token)


def _must_be_signed(request: Request) -> set[str]:
    return {
        name
        for name in request.names()
        if name.startswith("x-amz-") or name in {"host", "content-md5"}
    }


def _payload(request: Request, signed: Signed) -> str:
    said = request.header("x-amz-content-sha256")
    if said is None:
        if signed.expires_s is None:
            raise Unverified(Fault.MALFORMED, why="x-amz-content-sha256 is missing")
        return UNSIGNED
    return said


def canonical_request(
    request: Request, names: Sequence[str], payload: str, *, is_s3: bool = True
) -> str:
    """Return what is signed of a request."""
    path = urllib.parse.quote(urllib.parse.unquote_to_bytes(request.path or "/"), f"/{_PLAIN}")
    if not is_s3:
        path = urllib.parse.quote(path, f"/{_PLAIN}")  # all other services encode it twice
    pairs = sorted(
        (urllib.parse.quote(name, _PLAIN), urllib.parse.quote(value, _PLAIN))
        for name, value in request.parameters()
        if name != "X-Amz-Signature"
    )
    query = "&".join(f"{name}={value}" for name, value in pairs)
    headers = "".join(f"{name}:{request.header(name) or ''}\n" for name in names)
    return f"{request.method}\n{path}\n{query}\n{headers}\n{';'.join(names)}\n{payload}"


def signing_key(secret: str, signed: Signed) -> bytes:
    """Return the key of a day, region and service."""
    key = b"AWS4" + secret.encode()
    for part in signed.scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def _iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def signed(
    request: Request, key_id: str, given: Credential, signed_as: Signed, payload: str
) -> Request:
    """Return a request with a signature of another key in its headers, for the same scope."""
    parameters = [one for one in request.parameters() if not one[0].startswith("X-Amz-")]
    query = "&".join(
        f"{urllib.parse.quote(k, _PLAIN)}={urllib.parse.quote(v, _PLAIN)}" for k, v in parameters
    )
    old = {"authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256", "date"}
    headers = [one for one in request.headers if one[0].lower() not in old]
    now = time.time()
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    headers += [("X-Amz-Date", date), ("X-Amz-Content-SHA256", payload)]
    made = dataclasses.replace(request, query=query, headers=headers)
    names = tuple(sorted(_must_be_signed(made)))
    mine = dataclasses.replace(
        signed_as, key_id=key_id, day=date[:8], date=date, headers=names, token="", expires_s=None
    )
    canonical = canonical_request(made, names, payload)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"{_ALGORITHM}\n{date}\n{mine.scope}\n{digest}"
    signature = hmac.new(signing_key(given.secret, mine), text.encode(), hashlib.sha256).hexdigest()
    said = f"Credential={key_id}/{mine.scope}, SignedHeaders={';'.join(names)}"
    headers.append(("Authorization", f"{_ALGORITHM} {said}, Signature={signature}"))
    return dataclasses.replace(made, headers=headers)


# -- bodies that are signed in chunks --------------------------------------------------------------


class Broken(Exception):
    """A body in chunks (aws-chunked) that is not what was signed, or cannot be read."""


class Chunks:
    """Reads a body of chunks piece by piece, and verifies what is signed of it.

    `trailers` are the headers behind the last chunk, once `is_over`.
    """

    def __init__(self, verified: Verified) -> None:
        self._verified = verified
        self._is_signed = _ALGORITHM in verified.payload
        self._previous = verified.signed.signature
        self._left = b""
        self._chunk: tuple[int, str] | None = None  # bytes, signature
        self._is_last = False
        self.trailers: dict[str, str] = {}
        self.is_over = False

    def feed(self, data: bytes) -> bytes:
        """Take some of the body; return what became known of the object.

        Raises:
            Broken: a chunk is not what was signed.
        """
        self._left += data
        out = []
        while not self.is_over:
            piece = self._trailer() if self._is_last else self._next()
            if piece is None:
                break
            out.append(piece)
        return b"".join(out)

    def end(self) -> None:
        """Say that there is no more.

        Raises:
            Broken: there should be.
        """
        if not self.is_over:
            raise Broken("the body ends in the middle of a chunk")

    def _next(self) -> bytes | None:
        if self._chunk is None:
            line, found, rest = self._left.partition(b"\r\n")
            if not found:
                return None
            self._chunk, self._left = _chunk_of(line), rest
        size, signature = self._chunk
        # Of an unsigned body with trailers the last chunk has no end of its own.
        ending = 0 if size == 0 and self._has_trailer else 2
        if len(self._left) < size + ending:
            return None
        piece, self._left = self._left[:size], self._left[size + ending :]
        if self._is_signed:
            self._check("AWS4-HMAC-SHA256-PAYLOAD", f"{EMPTY}\n", piece, signature)
        self._chunk = None
        if size == 0:
            self._is_last = True
            self.is_over = not self._has_trailer
        return piece

    @property
    def _has_trailer(self) -> bool:
        return self._verified.payload.endswith("-TRAILER")

    def _trailer(self) -> bytes | None:
        if not self._left.endswith(b"\r\n\r\n"):
            return None
        lines = [line for line in self._left.decode().replace("\r", "").split("\n") if line]
        found = dict(line.split(":", 1) for line in lines)
        signature = found.pop("x-amz-trailer-signature", "")
        if self._is_signed:
            text = "".join(f"{name}:{value}\n" for name, value in found.items()).encode()
            self._check("AWS4-HMAC-SHA256-TRAILER", "", text, signature)
        self.trailers = {name.lower(): value.strip() for name, value in found.items()}
        self.is_over = True
        return b""

    def _check(self, kind: str, more: str, data: bytes, signature: str) -> None:
        signed = self._verified.signed
        digest = hashlib.sha256(data).hexdigest()
        text = f"{kind}\n{signed.date}\n{signed.scope}\n{self._previous}\n{more}{digest}"
        expected = hmac.new(self._verified.chunk_key, text.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, signature):
            raise Broken("the signature of a chunk is none of its bytes")
        self._previous = signature


def _chunk_of(line: bytes) -> tuple[int, str]:
    size, _, rest = line.decode("latin-1").partition(";")
    try:
        return int(size, 16), rest.removeprefix("chunk-signature=")
    except ValueError as error:
        raise Broken(f"a chunk's size cannot be read: {size[:20]!r}") from error
