"""S3's errors, each as one message with the operation, bucket, key and remedy."""

import re

from workflows.config import settings
from workflows.storage.place import Place

_LOGIN = "log in again (aws sso login), then run the same"
_CLOCK = "set this machine's clock (timedatectl set-ntp true)"
_REPORT = (
    "{endpoint} does not accept what workflows sends: a bug in workflows, not of your"
    " credentials. Please report this, with the line above"
)
_REMEDIES = {
    "NoSuchBucket": "there is no such bucket at {endpoint}: make it (aws s3 mb s3://{bucket}), or"
    " fix its name or [s3] endpoint_url",
    "NoSuchKey": "there is no such object",
    "AccessDenied": "these credentials may not: grant s3:{operation} on it (and s3:ListBucket, or"
    " what is missing looks denied too), or choose others with [s3] profile. Existing results"
    " stay readable (workflows results); --checkpoint DIRECTORY keeps new results on this machine",
    "KMS": "these credentials may not use the key that encrypts the bucket: grant them"
    " kms:GenerateDataKey and kms:Decrypt on that key, or choose others with [s3] profile",
    "InvalidAccessKeyId": "{endpoint} does not know these credentials: check AWS_ACCESS_KEY_ID, or"
    " [s3] profile and endpoint_url",
    "SignatureDoesNotMatch": "if no call succeeds, the secret key is not that of the access key:"
    " check AWS_SECRET_ACCESS_KEY, or [s3] profile. If others do (aws s3 ls s3://{bucket}),"
    " workflows signs this one wrongly: please report this, with the line above",
    "ExpiredToken": f"the credentials have expired: {_LOGIN}. If the login is fresh, {_CLOCK}",
    "InvalidToken": "the session token is not that of the access key: check AWS_SESSION_TOKEN, or"
    f" {_LOGIN}",
    "RequestTimeTooSkewed": "the clock of the machine that signs is wrong: set it (timedatectl"
    " set-ntp true)",
    "PermanentRedirect": "the bucket is in another region: set [s3] region{region}",
    "Malformed": "check that AWS_ACCESS_KEY_ID has no blanks or slashes, or [s3] profile. If it is"
    " right: please report this, with the line above",
    "400": f"S3 gives no reason. Most often the credentials have expired: {_LOGIN}. Else the bucket"
    f" is in another region (set [s3] region), or {_CLOCK}",
    "SlowDown": "S3 asks for less at once, even after several tries: run the same again later",
    "BadDigest": "the bytes changed on their way, several times: check the memory and network of"
    " that machine, then run the same again",
    "PreconditionFailed": "it was changed meanwhile: run the same again",
    "InvalidObjectState": "it is archived: restore it first (aws s3api restore-object)",
    "NotImplemented": "{endpoint} cannot do this, and checkpoints need its If-None-Match",
}
_SAME_AS = {
    "403": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "AccountProblem": "AccessDenied",
    "404": "NoSuchKey",
    "412": "PreconditionFailed",
    "301": "PermanentRedirect",
    "307": "PermanentRedirect",
    "TemporaryRedirect": "PermanentRedirect",
    "IllegalLocationConstraintException": "PermanentRedirect",
    "BadRequest": "400",
    "ExpiredTokenException": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "RequestExpired": "ExpiredToken",
    "503": "SlowDown",
    "ServiceUnavailable": "SlowDown",
    "InternalError": "SlowDown",
    "429": "SlowDown",
    "501": "NotImplemented",
}
# Of these the user is never to blame. So is any code that begins with InvalidParameter.
_OURS = {
    "HeadersNotSigned",
    "InvalidArgument",
    "InvalidDigest",
    "InvalidPart",
    "InvalidPartOrder",
    "InvalidRequest",
    "EntityTooSmall",
    "MalformedXML",
    "MissingContentLength",
    "XAmzContentSHA256Mismatch",
}
# Amazon denies access for several reasons, and only the message tells which.
_DENIED = {
    "not signed": "HeadersNotSigned",
    "has expired": "RequestExpired",
    "not yet valid": "RequestTimeTooSkewed",
    "not valid yet": "RequestTimeTooSkewed",
    "kms:": "KMS",
}


def explanation(operation: str, place: Place, code: str, why: str, region: str = "") -> str:
    """Return one message for what S3 answered: operation, bucket, key, reason and remedy."""
    region = region or "".join(re.findall(r"expecting '([\w-]+)'", why)[:1])
    remedy = _remedy(code, why, region)
    said = remedy.format(
        endpoint=settings().s3_endpoint_url or "Amazon S3",
        bucket=place.bucket,
        operation=_RIGHTS.get(operation, operation),
        region=f" = {region}" if region else "",
    )
    return f"{operation} of {place.url}: {why}\n  {said}"


# Operations whose right has another name.
_RIGHTS = dict.fromkeys(("CreateMultipartUpload", "CompleteMultipartUpload"), "PutObject")


def _remedy(code: str, why: str, region: str) -> str:
    if code in ("AccessDenied", "403"):
        code = next((one for text, one in _DENIED.items() if text in why), code)
    if code.startswith("Authorization"):  # ...HeaderMalformed, or ...QueryParametersError
        code = "PermanentRedirect" if "region" in why else "Malformed"
    if code in ("400", "BadRequest") and region:
        code = "PermanentRedirect"
    if code in _OURS or code.startswith("InvalidParameter"):
        return _REPORT
    return _REMEDIES.get(_SAME_AS.get(code, code), "run the same again; finished work is kept")


def unreachable(operation: str, place: Place, error: Exception) -> str:
    """Return one message for an error that is no answer of S3."""
    name, why = type(error).__name__, str(error)
    if "Credentials" in name or "Token" in name or "SSO" in name:
        said = "give credentials: aws configure, AWS_ACCESS_KEY_ID, or [s3] profile; then run again"
    elif name == "ProfileNotFound":
        said = "fix [s3] profile, or make it: aws configure --profile NAME"
    elif name == "ParamValidationError":
        why = why.partition(": Bucket name must")[0]
        said = "fix the URL: s3://BUCKET/PREFIX, where a bucket is 3 to 63 of a-z 0-9 . -"
    elif name == "InvalidRegionError":
        said = "fix [s3] region: the name of one is like eu-west-1"
    else:
        endpoint = settings().s3_endpoint_url or "Amazon S3"
        said = (
            f"check the network, and that [s3] endpoint_url is right ({endpoint}); then run again"
        )
    return f"{operation} of {place.url}: {why}\n  {said}"
