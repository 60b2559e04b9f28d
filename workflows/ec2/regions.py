"""Buckets in another region than their fleet: traffic that is free within one costs dollars."""

from workflows.ec2.api import Aws
from workflows.errors import FleetError
from workflows.storage.place import SCHEME, place_of

# From S3, or EC2, to another region: in America and Europe; elsewhere up to seven times as much.
USD_PER_GB = 0.02


def far(aws: Aws, source: str, size: int, checkpoint: str) -> list[str]:
    """Return a sentence for each bucket that is in another region than `aws`.

    `size` is the bytes of the source.
    """
    said = []
    for what, url in (("source", source), ("checkpoint", checkpoint)):
        region = _region(aws, url)
        if region in ("", aws.region):
            continue
        about = f"the {what} {url} is in {region}, the fleet in {aws.region}: "
        if what == "source":
            dollars = size / 1e9 * USD_PER_GB
            about += f"to read its {size / 1e9:.1f} GB costs about ${dollars:.2f} each time"
        else:
            about += f"what is committed costs about ${USD_PER_GB} a GB"
        said.append(f"{about}; a fleet with region: {region} pays nothing")
    return said


def _region(aws: Aws, url: str) -> str:
    """Return the region of the bucket of a URL; empty if it has none, or nobody tells."""
    if not url.startswith(SCHEME):
        return ""
    try:
        found = aws.call("head_bucket", service="s3", Bucket=place_of(url).bucket)
    except FleetError:
        return ""  # a run that may not ask may still read
    headers = found["ResponseMetadata"]["HTTPHeaders"]
    return str(found.get("BucketRegion") or headers.get("x-amz-bucket-region", ""))
