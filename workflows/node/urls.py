"""Secrets in URLs: which parts may be shown and stored, and which identify a source.

A URL may hold a user and a password, and a signature or a token in its query. All of it is used,
none of it is shown or stored. Shared by the driver and the nodes; nothing here opens a connection.
"""

import re
import time
from typing import Optional

# All else is imported where it is used: every runtime imports this module, few ask when a URL ends.

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WEB = ("http", "https")
# In the query of a URL that is signed for a while: by S3 (new and old), CloudFront or GCS.
_SIGNED = re.compile(r"[?&-]signature=", re.IGNORECASE)
_SIGNS = re.compile(
    r"x-amz-|x-goog-|(awsaccesskeyid|googleaccessid|key-pair-id|policy|signature|expires)=",
    re.IGNORECASE,
)
# A shared access signature of Azure: `sig`, and in any order what it signs.
_SHARED = re.compile(r"[?&]sig=.*&se=|[?&]se=.*&sig=")
_SHARES = re.compile(
    r"(sv|ss|srt|sr|sp|st|se|spr|sip|sig|sdd|skoid|sktid|skt|ske|sks|skv|saoid|suoid|scid)="
)
_DATE = "%Y%m%dT%H%M%SZ"
_ISO = ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%MZ", "%Y-%m-%d")
_PARTS = re.compile(r"(\bX-Amz-[\w-]+=)[^&\s\"']+")  # where no whole URL is said
_IN_TEXT = re.compile(r"(?<![a-z0-9+.-])(?:https?|ftp)://[^\s\"'<>]+", re.IGNORECASE)


def scheme_of(text: str) -> str:
    """Return the scheme of a URL in lower case; nothing if the text is no URL, as a path is not.

    >>> scheme_of("HTTPS://host/a"), scheme_of("a/b://c"), scheme_of("s3a://b/k")
    ('https', '', 's3a')
    """
    found = _SCHEME.match(text)
    return found[1].lower() if found else ""


def normal(text: str) -> str:
    """Return a URL with its scheme in lower case, a path as it is."""
    scheme = scheme_of(text)
    return scheme + text[len(scheme) :] if scheme else text


def split_login(url: str) -> "tuple[str, str]":
    """Return a URL without ``user:password@``, and the user and password, still quoted.

    >>> split_login("https://ann:se%40cret@host:81/a@b?c")
    ('https://host:81/a@b?c', 'ann:se%40cret')
    """
    scheme, slashes, rest = url.partition("://")
    if not slashes or scheme.lower() in ("s3", "file"):
        return url, ""
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    login, at, place = rest[:end].rpartition("@")
    return (f"{scheme}://{place}{rest[end:]}", login) if at else (url, "")


def shown(url: str) -> str:
    """Return what may be shown and stored: without user, password, query and fragment.

    A path and an ``s3://`` URL are returned as they are: a ``?`` is a part of a name there.

    >>> shown("https://ann:secret@host/a.csv?token=1#x"), shown("s3://b/what?.csv")
    ('https://host/a.csv', 's3://b/what?.csv')
    """
    if scheme_of(url) in ("", "s3", "file"):
        return url
    return re.split("[?#]", split_login(url)[0], maxsplit=1)[0]


def unsigned(url: str) -> str:
    """Return the part of a URL that identifies what it is of: without login and signature.

    All other parts of the query count. This is hashed, never shown or stored: see `shown`.

    >>> unsigned("https://b.s3.amazonaws.com/k.gz?versionId=7&X-Amz-Expires=60&X-Amz-Signature=ab")
    'https://b.s3.amazonaws.com/k.gz?versionId=7'
    >>> unsigned("https://a.blob.core.windows.net/c/k?snapshot=3&sv=1&se=2030-01-01&sig=ab")
    'https://a.blob.core.windows.net/c/k?snapshot=3'
    """
    if scheme_of(url) not in _WEB:
        return url
    bare = split_login(url)[0]
    if not is_signed(url):
        return bare
    place, _, query = bare.partition("?")
    parts = query.split("&")
    if _SIGNED.search(url):
        parts = [part for part in parts if not _SIGNS.match(part)]
    if _SHARED.search(url):
        parts = [part for part in parts if not _SHARES.match(part)]
    return f"{place}?{'&'.join(parts)}" if parts else place


def is_signed(url: str) -> bool:
    """Tell whether a URL is signed for a while: such a signature is for GET, as a rule."""
    return scheme_of(url) in _WEB and bool(_SIGNED.search(url) or _SHARED.search(url))


def expires(url: str) -> Optional[float]:
    """Return when the signature of a URL ends, in seconds since the epoch; None if it has none.

    Known are S3 (both versions), Google Cloud Storage (both), CloudFront (both), and Azure.

    >>> expires("https://s3/k?X-Amz-Date=20250102T030405Z&X-Amz-Expires=400&X-Amz-Signature=a")
    1735787445.0
    >>> expires("https://d1.cloudfront.net/k?Expires=1735787445&Signature=a&Key-Pair-Id=b")
    1735787445.0
    >>> expires("https://host/k?Expires=1735787445") is None
    True
    """
    import urllib.parse

    if not is_signed(url):
        return None
    pairs = urllib.parse.parse_qsl(url.partition("?")[2].partition("#")[0])
    query = {name.lower(): value for name, value in pairs}
    ends = [_end_of(query, "x-amz-"), _end_of(query, "x-goog-"), _epoch(query.get("expires", ""))]
    ends += [_iso(query["se"]) if "sig" in query and "se" in query else None]
    ends += [_policy(query.get("policy", ""))]
    return min((end for end in ends if end is not None), default=None)


def _end_of(query: "dict[str, str]", prefix: str) -> Optional[float]:
    try:
        return _seconds(query[prefix + "date"], _DATE) + float(query[prefix + "expires"])
    except (KeyError, ValueError):
        return None


def _epoch(text: str) -> Optional[float]:
    return float(text) if text.isascii() and text.isdecimal() else None


def _iso(text: str) -> Optional[float]:
    for form in _ISO:
        try:
            return _seconds(text, form)
        except ValueError:
            pass
    return None


def _policy(text: str) -> Optional[float]:
    """Return the end that a custom policy of CloudFront states."""
    import base64

    try:
        plain = base64.b64decode(text.translate(str.maketrans("-_~", "+=/")))
    except ValueError:
        return None
    found = re.search(rb'"DateLessThan"\s*:\s*\{\s*"AWS:EpochTime"\s*:\s*(\d+)', plain)
    return float(found[1]) if found else None


def _seconds(text: str, form: str) -> float:
    import calendar

    return float(calendar.timegm(time.strptime(text, form)))


def scrubbed(text: str) -> str:
    """Return a text, such as a command's stderr, in which no URL shows more than it may."""
    return _PARTS.sub(r"\1...", _IN_TEXT.sub(lambda found: shown(found[0]), text))
