"""URLs signed in large numbers: 25 us each, where boto3 takes 320.

How a bucket is addressed, in which region and by whom, is decided by boto3: it signs one URL as an
example, and others are signed like it, if this module would have made the very same example.
"""

import calendar
import time
import urllib.parse
from typing import Any, Protocol

from workflows.node import role

# Characters that must be quoted, and those that must not.
EXAMPLE = "example/ é+%~'*&=?#:@,;(1)"
EXAMPLE_MD5 = "1B2M2Y8AsgTpgAmY7PhCfg=="  # of no bytes


class Credentials(Protocol):
    """Credentials of botocore, which may have to be renewed."""

    def get_frozen_credentials(self) -> Any:
        """Return those of this moment."""


class Signer:
    """Signs URLs for one method and the objects of one bucket, with ever new credentials."""

    def __init__(self, method: str, example: str, credentials: Credentials) -> None:
        address, _, query = example.partition("?")
        said = dict(urllib.parse.parse_qsl(query))
        self._method, self._credentials = method, credentials
        self._base = address.removesuffix(_quoted(EXAMPLE))
        self._region = said["X-Amz-Credential"].split("/")[-3]
        self._holds_s = int(said["X-Amz-Expires"])

    def __call__(self, key: str, md5: str = "", now: float | None = None) -> str:
        """Return the URL of an object, for a body of this MD5 (in base64) if one is given.

        It is a secret.
        """
        frozen = self._credentials.get_frozen_credentials()
        given = role.Credentials(frozen.access_key, frozen.secret_key, frozen.token or "", 0)
        now = time.time() if now is None else now
        url = self._base + _quoted(key)
        return role.presigned(self._method, url, self._region, given, now, self._holds_s, md5)


def signer_like(example: str, method: str, credentials: Credentials | None) -> Signer | None:
    """Return what signs as the example of boto3 was signed, or None if nothing here does.

    An example for PUT is one with the Content-MD5 EXAMPLE_MD5.
    """
    if credentials is None:
        return None
    try:
        signer = Signer(method, example, credentials)
        said = dict(urllib.parse.parse_qsl(example.partition("?")[2]))
        at = calendar.timegm(time.strptime(said["X-Amz-Date"], "%Y%m%dT%H%M%SZ"))
    except (KeyError, IndexError, ValueError):
        return None  # a signature of another kind
    md5 = EXAMPLE_MD5 if method == "PUT" else ""
    return signer if _parts(signer(EXAMPLE, md5, at)) == _parts(example) else None


def _parts(url: str) -> tuple[str, list[tuple[str, str]]]:
    address, _, query = url.partition("?")
    return address, sorted(urllib.parse.parse_qsl(query, keep_blank_values=True))


def _quoted(key: str) -> str:
    return urllib.parse.quote(key, safe="/-_.~")
