"""A place in S3: a bucket and a key."""

from typing import NamedTuple

from workflows.errors import UsageError

SCHEME = "s3://"


class Place(NamedTuple):
    """A bucket and a key in it, or the prefix of keys."""

    bucket: str
    key: str

    @property
    def url(self) -> str:
        """Return its stable URL: unquoted, as the AWS command line writes it."""
        return f"{SCHEME}{self.bucket}/{self.key}"


def place_of(url: str) -> Place:
    """Return the bucket and key of an ``s3://`` URL.

    >>> place_of("s3://nyc-tlc/trip data/100%+é.csv")
    Place(bucket='nyc-tlc', key='trip data/100%+é.csv')

    Raises:
        UsageError: it names no bucket.
    """
    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    if not url.startswith(SCHEME) or not bucket:
        raise UsageError(f"{url} is not an S3 URL: write s3://BUCKET/PREFIX/")
    return Place(bucket, key)
