"""A node's own credentials: those of its instance's role, for URLs that it signs itself.

With ``[s3] nodes = role`` the driver gives nodes ``role:REGION:URL`` in place of a signed URL. Each
is signed when it is used, with credentials that the metadata service (IMDSv2) renews.
"""

import os
import threading
import time
from typing import NamedTuple

# All else is imported where it is used: every runtime imports this module, few sign.

PREFIX = "role:"
_SERVICE = "http://169.254.169.254"
_ROLE = "/latest/meta-data/iam/security-credentials/"
_TIMEOUT_S, _TRIES, _EARLY_S, _SIGNED_S = 2, 3, 300, 3600
_PLAIN = "-_.~"


class NoRole(Exception):
    """Says why this node has no credentials of its own, and what to do."""


class Credentials(NamedTuple):
    """A reply of the metadata service."""

    key: str
    secret: str
    token: str
    ends: float


_lock = threading.Lock()
_held: "list[Credentials]" = []


def signed(url: str, method: str, md5: str = "") -> str:
    """Return what a ``role:`` URL stands for, signed just now; any other as it is.

    An upload names the MD5 of its body, in base64: it is signed as Content-MD5.

    Raises:
        NoRole: this node has no credentials.
    """
    if not url.startswith(PREFIX):
        return url
    _, region, plain = url.split(":", 2)
    return presigned(method, plain, region, credentials(), time.time(), md5=md5)


def credentials() -> Credentials:
    """Return the node's credentials, asked for again five minutes before they end.

    Raises:
        NoRole: there are none.
    """
    with _lock:
        if not _held or _held[0].ends - time.time() < _EARLY_S:
            _held[:] = [_asked()]
        return _held[0]


def _asked() -> Credentials:
    import calendar
    import json
    import urllib.error
    import urllib.parse

    service = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _SERVICE).rstrip("/")
    for attempt in range(_TRIES):
        try:
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
            token = {"X-aws-ec2-metadata-token": _get(f"{service}/latest/api/token", "PUT", ttl)}
            role = _get(service + _ROLE, "GET", token).strip().splitlines()[0]
            found = json.loads(_get(service + _ROLE + urllib.parse.quote(role), "GET", token))
            ends = calendar.timegm(time.strptime(found["Expiration"], "%Y-%m-%dT%H:%M:%SZ"))
            return Credentials(
                found["AccessKeyId"], found["SecretAccessKey"], found.get("Token", ""), ends
            )
        except (OSError, ValueError, LookupError) as error:
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, urllib.error.HTTPError) or attempt == _TRIES - 1:
                raise NoRole(
                    f"this node has no role of its own ({service}: {why}): give it an instance"
                    " profile (profile: in the fleet's file), or set [s3] nodes = signed"
                ) from error
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def _get(url: str, method: str, headers: "dict[str, str]") -> str:
    import urllib.request

    # The service's address is http, and this machine's own environment names any other.
    request = urllib.request.Request(url, method=method, headers=headers)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    with opener.open(request, timeout=_TIMEOUT_S) as answer:
        text: str = answer.read().decode("utf-8")
        return text


def presigned(  # noqa: PLR0913 - what a signature is made of
    method: str,
    url: str,
    region: str,
    given: Credentials,
    now: float,
    holds_s: int = _SIGNED_S,
    md5: str = "",
) -> str:
    """Return an S3 URL with a signature (version 4) in its query, good for `holds_s` seconds.

    The URL's path is quoted as S3 wants it; its query may name an upload and a part. With `md5`
    (in base64) it is good for a request with this Content-MD5 alone.
    """
    import hashlib
    import hmac
    import urllib.parse

    parts = urllib.parse.urlsplit(url)
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    headers = {**({"content-md5": md5} if md5 else {}), "host": parts.netloc}
    names = ";".join(headers)
    scope = f"{when[:8]}/{region}/s3/aws4_request"
    query = [
        *urllib.parse.parse_qsl(parts.query, keep_blank_values=True),
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", f"{given.key}/{scope}"),
        ("X-Amz-Date", when),
        ("X-Amz-Expires", str(holds_s)),
        ("X-Amz-SignedHeaders", names),
        *([("X-Amz-Security-Token", given.token)] if given.token else []),
    ]
    text = "&".join(
        sorted(f"{urllib.parse.quote(k, _PLAIN)}={urllib.parse.quote(v, _PLAIN)}" for k, v in query)
    )
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = f"{method}\n{parts.path}\n{text}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = b"AWS4" + given.secret.encode()
    for part in [*scope.split("/"), f"AWS4-HMAC-SHA256\n{when}\n{scope}\n{digest}"]:
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = key.hex()
    return f"{parts.scheme}://{parts.netloc}{parts.path}?{text}&X-Amz-Signature={signature}"
