"""What Amazon S3 refuses, as a table: each rule with Amazon's answer and its source.

"Errors" is the S3 API reference's "Error responses", "SigV4" its "Authenticating Requests (AWS
Signature Version 4)"; others are pages of that reference, or issues on GitHub.
"""

from aws.rule import Rule
from aws.sigv4 import Fault

_TABLE = [
    # -- signatures
    Rule("anonymous", "a request without a signature", 403, "AccessDenied", "Access Denied",
         "Errors"),
    Rule("malformed header", "an Authorization header that cannot be read", 400,
         "AuthorizationHeaderMalformed", "The authorization header is malformed; {why}", "Errors"),
    Rule("malformed query", "a signature in the query that cannot be read", 400,
         "AuthorizationQueryParametersError",
         "Error parsing the X-Amz-Credential parameter; {why}", "SigV4, TTLabs/EvaporateJS#491"),
    Rule("unknown key", "a key id that nobody has", 403, "InvalidAccessKeyId",
         "The AWS Access Key Id you provided does not exist in our records.", "Errors"),
    Rule("signature", "a signature of another request, or made with another secret", 403,
         "SignatureDoesNotMatch",
         "The request signature we calculated does not match the signature you provided. Check your"
         " key and signing method.", "Errors"),
    Rule("headers not signed",
         "Content-MD5 or an x-amz-* header that the signature does not name", 403, "AccessDenied",
         "There were headers present in the request which were not signed",
         "boto/boto3#934, aws/aws-sdk-php#1392, aws/aws-sdk-ruby#543, awslabs/aws-sigv4-proxy#45,"
         " dandi/dandi-archive#1494"),
    Rule("expired", "a signed URL whose time is over", 403, "AccessDenied", "Request has expired",
         "SigV4"),
    Rule("not yet valid", "a URL that was signed by a clock more than 15 minutes ahead", 403,
         "AccessDenied", "Request is not yet valid", "dmjio/s3-signer#16"),
    Rule("skewed", "a clock that differs by more than 15 minutes", 403, "RequestTimeTooSkewed",
         "The difference between the request time and the current time is too large.", "Errors"),
    Rule("too long", "a URL that is signed for more than a week", 400,
         "AuthorizationQueryParametersError",
         "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires"
         " must be less than 604800 seconds", "SigV4, aws/aws-cli#5464"),
    Rule("expired token", "a session that is over", 400, "ExpiredToken",
         "The provided token has expired.", "Errors"),
    Rule("invalid token", "a session token of another key, or none", 400, "InvalidToken",
         "The provided token is malformed or otherwise invalid.", "Errors"),
    Rule("no payload hash", "a signed header without x-amz-content-sha256", 400, "InvalidRequest",
         "Missing required header for this request: x-amz-content-sha256", "SigV4"),
    Rule("payload hash", "a body of another SHA-256 than was signed", 400,
         "XAmzContentSHA256Mismatch",
         "The provided 'x-amz-content-sha256' header does not match what was computed.", "Errors"),
    # -- buckets
    Rule("region", "a header signed for another region than the bucket's", 400,
         "AuthorizationHeaderMalformed", "The authorization header is malformed; {why}",
         "Errors, TTLabs/EvaporateJS#364"),
    Rule("region of a query", "a URL signed for another region than the bucket's", 400,
         "AuthorizationQueryParametersError",
         "Error parsing the X-Amz-Credential parameter; {why}",
         "bigassforce/aws-sdk#5, HHS/Head-Start-TTADP#370"),
    Rule("redirect", "a request to another region's endpoint", 301, "PermanentRedirect",
         "The bucket you are attempting to access must be addressed using the specified endpoint."
         " Please send all future requests to this endpoint.", "Errors"),
    Rule("bucket name", "a name that no bucket may have", 400, "InvalidBucketName",
         "The specified bucket is not valid.", "Errors, Bucket naming rules"),
    Rule("young bucket", "a bucket that was made a moment ago, sometimes", 404, "NoSuchBucket",
         "The specified bucket does not exist", "CreateBucket, Errors"),
    Rule("requester pays", "a request that does not say that its sender pays", 403, "AccessDenied",
         "Access Denied", "Using Requester Pays buckets"),
    Rule("object lock", "a PUT without Content-MD5 or a checksum to a bucket with Object Lock", 400,
         "InvalidRequest",
         "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with"
         " Object Lock parameters", "PutObject: Content-MD5"),
    # -- keys and values
    Rule("long key", "a key of more than 1,024 bytes", 400, "KeyTooLongError",
         "Your key is too long", "Errors"),
    Rule("part number", "a part number out of 1 to 10,000", 400, "InvalidArgument",
         "Part number must be an integer between 1 and 10000, inclusive", "UploadPart"),
    Rule("max keys", "a max-keys that is no number", 400, "InvalidArgument",
         "Provided max-keys not an integer or within integer range", "ListObjectsV2"),
    Rule("large head", "headers and query of more than 8 KB", 400, "RequestHeaderSectionTooLarge",
         "Your request header and query-string parameters used to make the request exceed the"
         " maximum allowed size.", "Errors"),
    Rule("transfer encoding", "a body whose length is not said (Transfer-Encoding: chunked)", 501,
         "NotImplemented",
         "A header you provided implies functionality that is not implemented", "Errors"),
    Rule("no length", "a PUT without Content-Length", 411, "MissingContentLength",
         "You must provide the Content-Length HTTP header.", "Errors"),
    # -- bodies
    Rule("malformed MD5", "a Content-MD5 that is no MD5 in base64", 400, "InvalidDigest",
         "The Content-MD5 you specified was invalid.", "Errors"),
    Rule("MD5", "a body of another MD5 than Content-MD5", 400, "BadDigest",
         "The Content-MD5 you specified did not match what we received.", "Errors"),
    Rule("malformed checksum", "a checksum header that is no checksum in base64", 400,
         "InvalidRequest", "Value for {header} header is invalid.", "Checking object integrity"),
    Rule("checksum", "a body of another checksum than its header or trailer says", 400,
         "BadDigest", "The {algorithm} you specified did not match the calculated checksum.",
         "Checking object integrity"),
    Rule("no checksum", "x-amz-sdk-checksum-algorithm without the checksum", 400, "InvalidRequest",
         "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or"
         " x-amz-trailer headers were found.", "versity/versitygw#1593, apache/hadoop#6467"),
    Rule("large body", "more than 5 GiB in one PUT", 400, "EntityTooLarge",
         "Your proposed upload exceeds the maximum allowed size", "Errors"),
    Rule("cut chunks", "a body in chunks (aws-chunked) that cannot be read", 400, "IncompleteBody",
         "The request body terminated unexpectedly", "Errors"),
    # -- conditions
    Rule("condition", "If-None-Match of a PUT where there is such an object", 412,
         "PreconditionFailed", "At least one of the pre-conditions you specified did not hold",
         "PutObject: If-None-Match"),
    Rule("conflict", "If-None-Match of a PUT while another one writes the same key", 409,
         "ConditionalRequestConflict",
         "The conditional request cannot succeed due to a conflicting operation against this"
         " resource.", "PutObject: If-None-Match"),
    Rule("other condition", "an If-None-Match of a PUT other than *", 501, "NotImplemented",
         "A header you provided implies functionality that is not implemented",
         "PutObject: If-None-Match"),
    # -- uploads in parts
    Rule("small part", "a part below 5 MiB that is not the last", 400, "EntityTooSmall",
         "Your proposed upload is smaller than the minimum allowed size",
         "CompleteMultipartUpload"),
    Rule("part order", "parts that are not named in ascending order", 400, "InvalidPartOrder",
         "The list of parts was not in ascending order. Parts must be ordered by part number.",
         "CompleteMultipartUpload"),
    Rule("part", "a part that was not sent, or has another ETag", 400, "InvalidPart",
         "One or more of the specified parts could not be found. The part may not have been"
         " uploaded, or the specified entity tag may not match the part's entity tag.",
         "CompleteMultipartUpload"),
    # -- DeleteObjects
    Rule("delete without digest", "a DeleteObjects without Content-MD5 or a checksum", 400,
         "InvalidRequest",
         "Missing required header for this request: Content-MD5 OR x-amz-checksum-*",
         "DeleteObjects, versity/versitygw#1040"),
    Rule("many deletes", "a DeleteObjects of more than 1,000 keys, or of an empty key", 400,
         "MalformedXML",
         "The XML you provided was not well-formed or did not validate against our published"
         " schema", "DeleteObjects"),
    # -- refusals that a test asks for
    Rule("slow down", "too much at once", 503, "SlowDown", "Please reduce your request rate.",
         "Errors"),
    Rule("internal error", "anything, now and then", 500, "InternalError",
         "We encountered an internal error. Please try again.", "Errors"),
    Rule("denied", "what a policy forbids", 403, "AccessDenied", "Access Denied", "Errors"),
    Rule("denied key", "what may not use the bucket's key of KMS", 403, "AccessDenied",
         "User: arn:aws:iam::111122223333:user/me is not authorized to perform: kms:GenerateDataKey"
         " on resource: arn:aws:kms:us-east-1:111122223333:key/k because no identity-based policy"
         " allows the kms:GenerateDataKey action", "aws/copilot-cli#5500"),
    Rule("invalid argument", "a value that S3 does not know", 400, "InvalidArgument",
         "Invalid Argument", "Errors"),
    Rule("bad request", "a request that is not understood, without a code (HEAD)", 400,
         "BadRequest", "Bad Request", "HeadObject: a HEAD has no body, so no reason"),
]  # fmt: skip
RULES = {rule.name: rule for rule in _TABLE}

# What is answered to a faulty signature: in a header, in the query.
FAULTS = {
    Fault.ANONYMOUS: ("anonymous", "anonymous"),
    Fault.MALFORMED: ("malformed header", "malformed query"),
    Fault.UNKNOWN_KEY: ("unknown key", "unknown key"),
    Fault.WRONG_SCOPE: ("malformed header", "malformed query"),
    Fault.SKEWED: ("skewed", "skewed"),
    Fault.NOT_YET_VALID: ("not yet valid", "not yet valid"),
    Fault.EXPIRED: ("expired", "expired"),
    Fault.TOO_LONG: ("too long", "too long"),
    Fault.INVALID_TOKEN: ("invalid token", "invalid token"),
    Fault.EXPIRED_TOKEN: ("expired token", "expired token"),
    Fault.UNSIGNED_HEADERS: ("headers not signed", "headers not signed"),
    Fault.MISMATCH: ("signature", "signature"),
}
