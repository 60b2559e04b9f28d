"""S3 as strict as Amazon: a proxy through which all S3 traffic of the tests goes.

Behind it is a server that is more forgiving (SeaweedFS, moto). What Amazon would refuse is refused
here, by the rules of `s3_rules`; what a bucket may be set up to do (a key of KMS, Object Lock,
another region, requester pays) is played here too.

What it cannot know it lets pass: bucket policies and IAM (the server behind knows two users), ACLs,
lifecycle, versions, access points and directory buckets, virtual-hosted addresses, SigV4a, CRC32C
and CRC64NVME. It does not know which unsigned headers other than Content-MD5 and x-amz-* Amazon
minds. S3 is strongly consistent: nothing here is delayed, but for a bucket that was just made.
"""

import base64
import collections
import contextlib
import dataclasses
import hashlib
import re
import secrets
import threading
import time
import xml.sax.saxutils
from collections.abc import Callable, Iterator, Mapping

from aws import sigv4
from aws.relay import Answer, Passed, Relay, header_of, replaced
from aws.rule import Refusal, Rule
from aws.s3_call import Body, Call, call_of
from aws.s3_rules import FAULTS, RULES
from aws.sigv4 import Credential, Fault, Request, Unverified

HOME = "us-east-1"
_LEAST_PART, _MOST_BYTES, _MOST_KEY, _MOST_HEAD = 5 << 20, 5 << 30, 1024, 8192
_BUCKET = re.compile(r"(?!xn--|sthree-)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
_ETAG = re.compile(rb'(<ETag>(?:"|&#34;|&quot;)?)([0-9a-f]{32})')
_WRITES = {"PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload"}
# An ETag of a bucket that a key of KMS encrypts: any 32 hex digits, as long as it is always these.
_OPAQUE = str.maketrans("0123456789abcdef", "fedcba9876543210")


@dataclasses.dataclass
class Bucket:
    """How a bucket is set up."""

    region: str = HOME
    kms: bool = False
    object_lock: bool = False
    requester_pays: bool = False
    young: int = 0  # calls that are answered NoSuchBucket


@dataclasses.dataclass
class Trouble:
    """A refusal that a test asks for: of what `when` takes, so many times."""

    rule: Rule
    when: Callable[[Call], bool]
    times: float = float("inf")
    facts: dict[str, str] = dataclasses.field(default_factory=dict)


class _Keys:
    """The keys being written just now, and the parts that were sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: dict[tuple[str, str], int] = {}
        self.parts: dict[tuple[str, int], tuple[int, str]] = {}

    def begin(self, call: Call, *, is_conditional: bool) -> Callable[[], None]:
        """Note that a key is being written; return what ends that.

        Raises:
            Refusal: another one is just writing it, and this one has a condition.
        """
        name = (call.bucket, call.key)
        with self._lock:
            if is_conditional and self._busy.get(name):
                raise RULES["conflict"].refuse(Condition="If-None-Match")
            self._busy[name] = self._busy.get(name, 0) + 1

        def end() -> None:
            with self._lock:
                self._busy[name] -= 1
                if not self._busy[name]:
                    del self._busy[name]

        return end


class StrictS3(Relay):
    """The proxy. A test sets up `buckets`, `keys` and `clock_s`, and asks for refusals."""

    def __init__(
        self, behind: Callable[[], tuple[str, int]], keys: Mapping[str, Credential], owner: str
    ) -> None:
        self.keys = dict(keys)
        self.buckets: dict[str, Bucket] = {}
        self.clock_s = 0.0  # how far this server's clock is ahead
        self.redirects = False  # a wrong region is answered 301, not 400
        self.failing: dict[str, tuple[str, int]] = {}  # of DeleteObjects: key -> code, times
        self.seen: collections.deque[Call] = collections.deque(maxlen=10_000)
        self._owner = owner
        self._troubles: list[Trouble] = []
        self._damages: list[Callable[[Call], bool]] = []
        self.writing = _Keys()
        super().__init__(behind)

    def bucket(self, name: str) -> Bucket:
        """Return how a bucket is set up, to change it."""
        return self.buckets.setdefault(name, Bucket())

    @contextlib.contextmanager
    def refusing(
        self, rule: str, when: Callable[[Call], bool], times: float = float("inf"), **facts: str
    ) -> Iterator[Trouble]:
        """Refuse meanwhile what `when` takes, the first so many times; the answer has `facts`."""
        trouble = Trouble(RULES[rule], when, times, facts)
        self._troubles.append(trouble)
        try:
            yield trouble
        finally:
            self._troubles.remove(trouble)

    @contextlib.contextmanager
    def damaging(self, when: Callable[[Call], bool]) -> Iterator[None]:
        """Change a bit of the body of each request that `when` takes, before it is looked at."""
        self._damages.append(when)
        try:
            yield
        finally:
            self._damages.remove(when)

    # -- requests ----------------------------------------------------------------------------------

    def admit(self, request: Request, body: bytes | None) -> Passed:
        """Return what is passed on to the server behind.

        Raises:
            Refusal: Amazon would refuse it.
        """
        call = call_of(request)
        self.seen.append(call)
        verified = self._verified(call)
        _check_head(call, body)
        self._check_bucket(call)
        self._check_asked(call)
        _check_values(call)
        damages = any(when(call) for when in self._damages)
        watch = Body(request, verified, damages=damages)
        if call.operation == "CompleteMultipartUpload":
            self._check_parts(call, body or b"")
        passed = Passed(request, watch, answered=lambda answer: self._answered(call, answer))
        if call.operation in {"PutObject", "CompleteMultipartUpload", "CopyObject"}:
            conditional = request.header("If-None-Match") is not None
            passed.over = self.writing.begin(call, is_conditional=conditional)
        if call.operation == "DeleteObjects":
            self._check_delete(call, passed, body or b"")
        self._adapt(call, passed, verified, body)
        return passed

    def _verified(self, call: Call) -> sigv4.Verified:
        region = self.bucket(call.bucket).region if call.bucket else ""
        now = time.time() + self.clock_s
        try:
            return sigv4.verify(call.request, self.keys, region=region, service="s3", now=now)
        except Unverified as bad:
            raise self._unverified(call, bad) from bad

    def _unverified(self, call: Call, bad: Unverified) -> Refusal:
        facts = dict(bad.facts)
        rule = RULES[FAULTS[bad.fault][call.is_presigned]]
        if bad.fault is Fault.WRONG_SCOPE and facts.pop("part") == "region":
            rule = RULES["region of a query" if call.is_presigned else "region"]
            rule = RULES["redirect"] if self.redirects else rule
        if bad.fault is Fault.MALFORMED and "x-amz-content-sha256" in facts.get("why", ""):
            rule = RULES["no payload hash"]
        if "{why}" not in rule.message:
            facts.pop("why", None)
        return rule.refuse(**facts)

    def _check_bucket(self, call: Call) -> None:
        if not call.bucket:
            return
        bucket = self.bucket(call.bucket)
        is_name = _BUCKET.fullmatch(call.bucket) and not _ADDRESS.fullmatch(call.bucket)
        if not is_name or ".." in call.bucket or call.bucket.endswith(("-s3alias", "--ol-s3")):
            raise RULES["bucket name"].refuse(BucketName=call.bucket)
        if bucket.young and call.operation != "CreateBucket":
            bucket.young -= 1
            raise RULES["young bucket"].refuse(BucketName=call.bucket)
        payer = call.request.header("x-amz-request-payer") or call.query.get("x-amz-request-payer")
        if bucket.requester_pays and payer != "requester":
            raise RULES["requester pays"].refuse()
        names = call.request.names()
        has_digest = "content-md5" in names or any(n.startswith("x-amz-checksum-") for n in names)
        is_put = call.operation in {"PutObject", "UploadPart"}
        if bucket.object_lock and is_put and not has_digest and "x-amz-trailer" not in names:
            raise RULES["object lock"].refuse()

    def _check_asked(self, call: Call) -> None:
        for trouble in list(self._troubles):
            if trouble.times > 0 and trouble.when(call):
                trouble.times -= 1
                raise trouble.rule.refuse(**trouble.facts)

    # -- uploads in parts --------------------------------------------------------------------------

    def _check_parts(self, call: Call, body: bytes) -> None:
        upload = call.query["uploadId"]
        named = _named_parts(body)
        numbers = [number for number, _ in named]
        if numbers != sorted(set(numbers)):
            raise RULES["part order"].refuse(UploadId=upload)
        for number, etag in named:
            size, sent = self.writing.parts.get((upload, number), (0, ""))
            if sent != etag:
                raise RULES["part"].refuse(
                    UploadId=upload, PartNumber=str(number), ETag=etag.strip('"')
                )
            if size < _LEAST_PART and number != numbers[-1]:
                facts = {"ProposedSize": str(size), "MinSizeAllowed": str(_LEAST_PART)}
                raise RULES["small part"].refuse(PartNumber=str(number), ETag=etag, **facts)

    def _check_delete(self, call: Call, passed: Passed, body: bytes) -> None:
        names = call.request.names()
        digests = [name for name in names if name.startswith("x-amz-checksum-")]
        if "content-md5" not in names and not digests and "x-amz-trailer" not in names:
            raise RULES["delete without digest"].refuse()
        objects = re.findall(rb"<Object>.*?</Object>", body, re.DOTALL)
        keys = [_text(re.search(rb"<Key>(.*?)</Key>", one, re.DOTALL)) for one in objects]
        if not keys or len(keys) > 1000 or "" in keys:
            raise RULES["many deletes"].refuse()
        failed: list[tuple[str, str]] = []
        for key, one in zip(keys, objects, strict=True):
            code, times = self.failing.get(key, ("", 0))
            if times:
                self.failing[key] = (code, times - 1)
                failed.append((key, code))
                body = body.replace(one, b"")
        if failed:
            passed.body, passed.wants_body = body, True
            passed.answered = lambda answer: _add_errors(answer, failed)

    # -- what is changed on its way ----------------------------------------------------------------

    def _adapt(
        self, call: Call, passed: Passed, verified: sigv4.Verified, body: bytes | None
    ) -> None:
        """Change what the server behind cannot know, and sign that again where it must be."""
        request, bucket = call.request, self.bucket(call.bucket)
        if bucket.kms:
            is_xml = call.operation.startswith("List") or call.operation.startswith("Complete")
            passed.wants_body = passed.wants_body or is_xml
            etag = request.header("If-Match")
            if etag:
                new = {"If-Match": etag.translate(_OPAQUE)}
                request = dataclasses.replace(request, headers=replaced(request.headers, new))
            if call.operation == "CompleteMultipartUpload" and body:
                passed.body = _ETAG.sub(lambda found: found[1] + _swapped(found[2]), body)
        if passed.body is not None:
            digest = hashlib.sha256(passed.body).hexdigest()
            md5 = hashlib.md5(passed.body, usedforsecurity=False).digest()
            headers = [
                one for one in request.headers if not one[0].lower().startswith("x-amz-checksum-")
            ]
            headers = replaced(headers, {"Content-MD5": base64.b64encode(md5).decode()})
            request = dataclasses.replace(request, headers=headers)
        else:
            digest = verified.payload
        is_foreign = verified.signed.token or bucket.region != HOME or self.clock_s
        if request is not call.request or is_foreign:
            owner = self.keys[self._owner]
            scope = dataclasses.replace(verified.signed, region=HOME)
            request = sigv4.signed(request, self._owner, owner, scope, digest)
        passed.request = request

    def _answered(self, call: Call, answer: Answer) -> None:
        """Change an answer into Amazon's."""
        if call.bucket and not call.key:
            where = {"x-amz-bucket-region": self.bucket(call.bucket).region}
            answer.headers = replaced(answer.headers, where)
        if answer.status >= 300:
            return
        if call.operation == "DeleteObjects":
            return
        if self.bucket(call.bucket).kms:
            self._encrypt(call, answer)
        if call.operation == "UploadPart":
            size = int(call.request.header("x-amz-decoded-content-length") or 0)
            size = size or int(call.request.header("Content-Length") or 0)
            part = (call.query["uploadId"], int(call.query["partNumber"]))
            self.writing.parts[part] = (size, header_of(answer.headers, "ETag"))

    def _encrypt(self, call: Call, answer: Answer) -> None:
        if answer.body is not None:
            answer.body = _ETAG.sub(lambda found: found[1] + _swapped(found[2]), answer.body)
        new = {}
        etag = header_of(answer.headers, "ETag")
        if etag:
            digest, dash, count = etag.partition("-")
            new["ETag"] = digest.translate(_OPAQUE) + dash + count
        if call.operation in _WRITES or call.operation in {"GetObject", "HeadObject"}:
            new["x-amz-server-side-encryption"] = "aws:kms"
            key = "arn:aws:kms:us-east-1:111122223333:key/k"
            new["x-amz-server-side-encryption-aws-kms-key-id"] = key
        answer.headers = replaced(answer.headers, new)

    def refusal(self, request: Request, refusal: Refusal) -> Answer:
        """Return Amazon's answer: a page of XML, but for HEAD, which has no body."""
        call, rule = call_of(request), refusal.rule
        elements = {"Code": rule.code, "Message": refusal.message, **refusal.elements}
        if call.key and rule.code in {"SlowDown", "NoSuchKey"}:
            elements["Key"] = call.key
        elements["RequestId"] = secrets.token_hex(8).upper()
        elements["HostId"] = secrets.token_hex(32)
        escaped = xml.sax.saxutils.escape
        text = "".join(f"<{name}>{escaped(text)}</{name}>" for name, text in elements.items())
        page = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{text}</Error>'
        headers = [("Content-Type", "application/xml"), ("Server", "AmazonS3")]
        headers.append(("x-amz-request-id", elements["RequestId"]))
        if rule.status in {301, 400} and call.bucket:
            headers.append(("x-amz-bucket-region", self.bucket(call.bucket).region))
        return Answer(rule.status, headers, page.encode("utf-8", "replace"))


def _check_head(call: Call, body: bytes | None) -> None:
    request = call.request
    if "chunked" in (request.header("Transfer-Encoding") or "").lower():
        raise RULES["transfer encoding"].refuse(Header="Transfer-Encoding")
    if request.method == "PUT" and request.header("Content-Length") is None and not body:
        raise RULES["no length"].refuse()
    if int(request.header("Content-Length") or 0) > _MOST_BYTES:
        raise RULES["large body"].refuse(MaxSizeAllowed=str(_MOST_BYTES))
    size = len(request.path) + len(request.query)
    size += sum(len(name) + len(value) for name, value in request.headers)
    if size > _MOST_HEAD:
        raise RULES["large head"].refuse(MaxSizeAllowed=str(_MOST_HEAD))


def _check_values(call: Call) -> None:
    size = len(call.key.encode("utf-8", "surrogateescape"))
    if size > _MOST_KEY:
        raise RULES["long key"].refuse(Size=str(size), MaxSizeAllowed=str(_MOST_KEY))
    number = call.query.get("partNumber")
    is_number = number is not None and number.isdecimal() and 1 <= int(number) <= 10_000
    if number is not None and not is_number:
        raise RULES["part number"].refuse(ArgumentName="partNumber", ArgumentValue=number)
    most = call.query.get("max-keys")
    if most is not None and not most.isdecimal():
        raise RULES["max keys"].refuse(ArgumentName="max-keys", ArgumentValue=most)
    condition = call.request.header("If-None-Match")
    if call.operation == "PutObject" and condition not in {None, "*"}:
        raise RULES["other condition"].refuse(Header="If-None-Match")


def _named_parts(body: bytes) -> list[tuple[int, str]]:
    found = re.findall(rb"<Part>(.*?)</Part>", body, re.DOTALL)
    return [
        (
            int(_text(re.search(rb"<PartNumber>(.*?)</PartNumber>", one)) or 0),
            _text(re.search(rb"<ETag>(.*?)</ETag>", one)),
        )
        for one in found
    ]


def _text(found: "re.Match[bytes] | None") -> str:
    more = {"&quot;": '"', "&#34;": '"', "&apos;": "'", "&#39;": "'", "&#13;": "\r", "&#10;": "\n"}
    said = found[1].decode("utf-8", "replace") if found else ""
    return xml.sax.saxutils.unescape(said, more)


def _swapped(etag: bytes) -> bytes:
    return etag.decode().translate(_OPAQUE).encode()


def _add_errors(answer: Answer, failed: list[tuple[str, str]]) -> None:
    """Say in the answer to a DeleteObjects that some keys were not deleted."""
    escaped = xml.sax.saxutils.escape
    errors = "".join(
        f"<Error><Key>{escaped(key)}</Key><Code>{code}</Code><Message>Please reduce your request"
        " rate.</Message></Error>"
        for key, code in failed
    )
    start = '<?xml version="1.0" encoding="UTF-8"?><DeleteResult>'
    answer.status, answer.body = 200, f"{start}{errors}</DeleteResult>".encode()
    answer.headers = [("Content-Type", "application/xml")]
