"""What S3 answers, as one message that names operation, bucket and key, and says what to do."""

from typing import TYPE_CHECKING

from workflows.config import settings

if TYPE_CHECKING:
    from workflows.s3 import Place

_REMEDIES = {
    "NoSuchBucket": "there is no such bucket at {endpoint}: make it (aws s3 mb s3://{bucket}), or"
    " mend its name or [s3] endpoint_url",
    "NoSuchKey": "there is no such object",
    "AccessDenied": "these credentials may not: grant s3:{operation} on it (and s3:ListBucket, or"
    " what is missing looks denied too), or choose others with [s3] profile. What is stored already"
    " stays readable (workflows results); --checkpoint DIRECTORY keeps new results on this machine",
    "InvalidAccessKeyId": "{endpoint} does not know these credentials: check AWS_ACCESS_KEY_ID, or"
    " [s3] profile and endpoint_url",
    "SignatureDoesNotMatch": "the secret key is not that of the access key: check"
    " AWS_SECRET_ACCESS_KEY, or [s3] profile",
    "ExpiredToken": "the credentials have expired: log in again (aws sso login), then run the same",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it (timedatectl set-ntp true)",
    "PermanentRedirect": "the bucket is in another region: set [s3] region{region}",
    "SlowDown": "S3 asks for less at once, even after several tries: run the same again later",
    "PreconditionFailed": "it was changed meanwhile: run the same again",
    "NotImplemented": "{endpoint} cannot do this, and checkpoints need its If-None-Match",
}
_SAME_AS = {
    "403": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "AccountProblem": "AccessDenied",
    "404": "NoSuchKey",
    "412": "PreconditionFailed",
    "301": "PermanentRedirect",
    "400": "PermanentRedirect",
    "AuthorizationHeaderMalformed": "PermanentRedirect",
    "IllegalLocationConstraintException": "PermanentRedirect",
    "ExpiredTokenException": "ExpiredToken",
    "InvalidToken": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "RequestExpired": "ExpiredToken",
    "503": "SlowDown",
    "ServiceUnavailable": "SlowDown",
    "InternalError": "SlowDown",
    "429": "SlowDown",
    "501": "NotImplemented",
}


def explanation(operation: str, place: "Place", code: str, why: str, region: str = "") -> str:
    """Return one message for what S3 answered: operation, bucket, key, reason and remedy."""
    remedy = _REMEDIES.get(_SAME_AS.get(code, code), "run the same again; what is done is kept")
    said = remedy.format(
        endpoint=settings().s3_endpoint_url or "Amazon S3",
        bucket=place.bucket,
        operation="PutObject" if "Upload" in operation else operation,
        region=f" = {region}" if region else "",
    )
    return f"{operation} of {place.url}: {why}\n  {said}"


def unreachable(operation: str, place: "Place", error: Exception) -> str:
    """Return one message for an error that is no answer of S3."""
    name, why = type(error).__name__, str(error)
    if "Credentials" in name or "Token" in name or "SSO" in name:
        said = "give credentials: aws configure, AWS_ACCESS_KEY_ID, or [s3] profile; then run again"
    elif name == "ProfileNotFound":
        said = "mend [s3] profile, or make it: aws configure --profile NAME"
    elif name == "ParamValidationError":
        why = why.partition(": Bucket name must")[0]
        said = "mend the URL: s3://BUCKET/PREFIX, where a bucket is 3 to 63 of a-z 0-9 . -"
    elif name == "InvalidRegionError":
        said = "mend [s3] region: the name of one is like eu-west-1"
    else:
        endpoint = settings().s3_endpoint_url or "Amazon S3"
        said = (
            f"check the network, and that [s3] endpoint_url is right ({endpoint}); then run again"
        )
    return f"{operation} of {place.url}: {why}\n  {said}"
