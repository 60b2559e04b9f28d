"""What EC2 refuses: a table of rules, each with EC2's own answer and where that was seen.

The next fact about EC2 is one more row here, one check in `ec2.Account`, and one case in
test_aws_ec2.py.
"""

from aws.rule import Rule

_ERRORS = "docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html"
_MODEL = "botocore/data/ec2/2016-11-15/service-2.json"

_ROWS = (
    # -- signatures ------------------------------------------------------------------------------
    Rule(
        "credentials",
        "a key id or session token that nobody has, or a clock that is off by more than 5 minutes",
        401,
        "AuthFailure",
        "AWS was not able to validate the provided access credentials",
        "hashicorp/packer#3140, aws/aws-sdk-java#519, hashicorp/terraform-provider-aws#1102",
    ),
    Rule(
        "signature",
        "a signature that is none of this request",
        403,
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided. Check your"
        " AWS Secret Access Key and signing method. Consult the service documentation for details.",
        _ERRORS,
    ),
    Rule(
        "anonymous",
        "a request without a signature that can be read",
        403,
        "MissingAuthenticationToken",
        "Request is missing Authentication Token",
        _ERRORS,
    ),
    Rule(
        "expired",
        "a session that is over, or a clock that is more than 15 minutes behind",
        400,
        "RequestExpired",
        "Request has expired.",
        "aws/aws-sdk-go-v2#1674, aws/aws-sdk-java#1443",
    ),
    Rule(
        "clock behind",
        "a request to STS by a clock that is more than 15 minutes behind",
        403,
        "SignatureDoesNotMatch",
        "Signature expired: {signed} is now earlier than {least} ({now} - 15 min.)",
        "EngineerBetter/control-tower#51",
    ),
    Rule(
        "clock ahead",
        "a request to STS by a clock that is more than 15 minutes ahead",
        403,
        "SignatureDoesNotMatch",
        "Signature not yet current: {signed} is still later than {least} ({now} + 15 min.)",
        "kubernetes-sigs/external-dns#1626",
    ),
    # -- shapes ----------------------------------------------------------------------------------
    Rule(
        "action",
        "an action that EC2 does not have",
        400,
        "InvalidAction",
        "The action {action} is not valid for this web service.",
        _ERRORS,
    ),
    Rule(
        "unknown parameter",
        "a parameter that the action does not have",
        400,
        "UnknownParameter",
        "The parameter {name} is not recognized",
        f"{_ERRORS}, {_MODEL}",
    ),
    Rule(
        "missing parameter",
        "an action without a parameter that it needs",
        400,
        "MissingParameter",
        "The request must contain the parameter {name}",
        f"{_ERRORS}, {_MODEL}",
    ),
    Rule(
        "value",
        "a value that is no word of the enumeration, no number, or does not fit the pattern",
        400,
        "InvalidParameterValue",
        "Value ({value}) for parameter {name} is invalid.",
        f"{_ERRORS}, {_MODEL}",
    ),
    Rule(
        "empty",
        "an empty text where one is needed",
        400,
        "InvalidParameterValue",
        "Value () for parameter {name} is invalid. The value cannot be empty",
        "ansible/ansible#29519",
    ),
    Rule(
        "length",
        "a text that is longer than the parameter takes",
        400,
        "InvalidParameterValue",
        "Value ({value}) for parameter {name} is invalid. It exceeds the maximum length of {most}.",
        f"{_MODEL} (the documentation of each member)",
    ),
    Rule(
        "filter",
        "a filter that the Describe action does not have",
        400,
        "InvalidParameterValue",
        "The filter '{name}' is invalid",
        f"{_MODEL} (the documentation of Filters)",
    ),
    Rule(
        "filter values",
        "more than 200 values of the filters of one call",
        400,
        "FilterLimitExceeded",
        "The maximum number of filter values specified on a single call is 200",
        "gjbae1212/gossm#47, convox/rack#2205",
    ),
    # -- tags ------------------------------------------------------------------------------------
    Rule(
        "tag key length",
        "a tag's key of more than 127 characters",
        400,
        "InvalidParameterValue",
        "Tag key exceeds the maximum length of 127 characters",
        f"{_MODEL} (Tag.Key), openstack/ec2-api ec2api/api/tag.py (not Amazon's own)",
    ),
    Rule(
        "tag value length",
        "a tag's value of more than 256 characters",
        400,
        "InvalidParameterValue",
        "Tag value exceeds the maximum length of 256 characters",
        f"{_MODEL} (Tag.Value)",
    ),
    Rule(
        "tag prefix",
        "a tag whose key begins with aws:",
        400,
        "InvalidParameterValue",
        "Tag keys starting with 'aws:' are reserved for internal use",
        f"{_MODEL} (Tag.Key), openstack/ec2-api ec2api/api/tag.py (not Amazon's own)",
    ),
    Rule(
        "tag count",
        "more than 50 tags of one resource",
        400,
        "TagLimitExceeded",
        "More than 50 tags specified",
        _ERRORS,
    ),
    Rule(
        "tag kind",
        "tags for another kind of resource than the action makes: CreateFleet takes fleet, instance"
        " and volume",
        400,
        "InvalidParameterValue",
        "'{kind}' is not a valid taggable resource type for this operation.",
        "aws/aws-sdk-ruby#1718, CreateFleet in the API reference",
    ),
    # -- texts -----------------------------------------------------------------------------------
    Rule(
        "group description",
        "a security group's description with other characters, or over 255",
        400,
        "InvalidParameterValue",
        "Invalid security group description. Valid descriptions are strings less than 256"
        " characters from the following set:  a-zA-Z0-9. _-:/()#,@[]+=&;{{}}!$*",
        f"{_MODEL} (CreateSecurityGroupRequest.Description), cds-snc/notification-terraform#561",
    ),
    Rule(
        "rule description",
        "a rule's description with other characters, or over 255",
        400,
        "InvalidParameterValue",
        "Invalid rule description. Valid descriptions are strings less than 256 characters from the"
        " following set:  a-zA-Z0-9. _-:/()#,@[]+=&;{{}}!$*",
        "agentic-community/mcp-gateway-registry#1728, aws-cloudformation/cfn-lint#173",
    ),
    Rule(
        "user data base64",
        "user data that is no base64",
        400,
        "InvalidUserData.Malformed",
        "Invalid BASE64 encoding of user data.",
        _ERRORS,
    ),
    Rule(
        "user data length",
        "user data of more than 16384 bytes",
        400,
        "InvalidParameterValue",
        "User data is limited to 16384 bytes",
        "kubermatic/kubermatic#144, supergiant/capacity#148",
    ),
    # -- what does not go together ---------------------------------------------------------------
    Rule(
        "groups beside interfaces",
        "security groups of the instance beside network interfaces",
        400,
        "InvalidParameterCombination",
        "Network interfaces and an instance-level security groups may not be specified on the same"
        " request",
        "aws/aws-sdk-ruby#662, hashicorp/terraform#1188",
    ),
    Rule(
        "subnet beside interfaces",
        "a subnet of the instance beside network interfaces",
        400,
        "InvalidParameterCombination",
        "Network interfaces and an instance-level subnet ID may not be specified on the same"
        " request",
        "aws/aws-sdk-php#231, aws/aws-cli#809",
    ),
    Rule(
        "overrides",
        "more than 300 overrides of one fleet",
        400,
        "InvalidParameterValue",
        "The number of launch template overrides {count} exceeds the maximum of 300.",
        "EC2 user guide, 'EC2 Fleet quotas': launch specifications per fleet",
    ),
    Rule(
        "duplicate pools",
        "a fleet in which two overrides are the same",
        400,
        "InvalidFleetConfig",
        "The fleet configuration contains duplicate instance pools.",
        "aws/aws-parallelcluster#4352, aws-samples/aws-plugin-for-slurm#19",
    ),
    Rule(
        "max price",
        "a maximum price below $0.001",
        400,
        "InvalidParameterValue",
        "Value ({value}) for parameter MaxPrice is invalid. It must be at least 0.001.",
        f"{_MODEL} (FleetLaunchTemplateOverridesRequest.MaxPrice)",
    ),
    Rule(
        "token",
        "a client token of before with other parameters",
        400,
        "IdempotentParameterMismatch",
        "Arguments on this idempotent request are inconsistent with arguments used in previous"
        " request(s).",
        "runs-on/runs-on#251",
    ),
    # -- what is not there, or not yet -----------------------------------------------------------
    Rule(
        "image",
        "an image that does not exist",
        400,
        "InvalidAMIID.NotFound",
        "The image id '[{name}]' does not exist",
        _ERRORS,
    ),
    Rule(
        "private image",
        "an image of another account that does not share it",
        401,
        "AuthFailure",
        "Not authorized for images: [{name}]",
        "StreisandEffect/streisand#82",
    ),
    Rule(
        "architecture",
        "an image of another architecture than the type",
        400,
        "InvalidParameterValue",
        "The architecture '{type}' of the specified instance type does not match the architecture"
        " '{image}' of the specified AMI. Specify an instance type and an AMI that have matching"
        " architectures, and try again.",
        "EC2 user guide, 'Troubleshoot instance launch issues'",
    ),
    Rule(
        "small disk",
        "a disk that is smaller than the image's snapshot",
        400,
        "InvalidBlockDeviceMapping",
        "Volume of size {size}GB is smaller than snapshot '{snapshot}', expect size >= {least}GB",
        "scylladb/scylladb#6999, aws/karpenter-provider-aws#3302",
    ),
    Rule(
        "new group",
        "a security group in the first moments after it was made",
        400,
        "InvalidGroup.NotFound",
        "The security group '{name}' does not exist",
        "hashicorp/packer#1322, EC2 'Ensuring idempotency and eventual consistency'",
    ),
    Rule(
        "new instance",
        "an instance in the first moments after its launch",
        400,
        "InvalidInstanceID.NotFound",
        "The instance ID '{name}' does not exist",
        "4dn-dcic/tibanna#383, aws/aws-sdk-ruby#1198",
    ),
    Rule(
        "new key pair",
        "a key pair in the first moments after it was imported",
        400,
        "InvalidKeyPair.NotFound",
        "The key pair '{name}' does not exist",
        "EC2 'Ensuring idempotency and eventual consistency'",
    ),
    Rule(
        "new template",
        "a launch template, by its name, in the first moments after it was made",
        400,
        "InvalidLaunchTemplateName.NotFoundException",
        "At least one of the launch templates specified in the request does not exist.",
        "EC2 'Ensuring idempotency and eventual consistency', boto3's own samples",
    ),
    Rule(
        "new template id",
        "a launch template, by its id, in the first moments after it was made",
        400,
        "InvalidLaunchTemplateId.NotFound",
        "The specified launch template, with template ID {name}, does not exist.",
        "EC2 'Ensuring idempotency and eventual consistency'",
    ),
    # -- what the account may ----------------------------------------------------------------------
    Rule(
        "spot quota",
        "more vCPUs of spot instances than the account's quota for their family",
        400,
        "MaxSpotInstanceCountExceeded",
        "Max spot instance count exceeded",
        "NixOS/nixops-aws#41, meadowdata/meadowrun#84",
    ),
    Rule(
        "on-demand quota",
        "more vCPUs of on-demand instances than the account's quota for their family",
        400,
        "VcpuLimitExceeded",
        "You have requested more vCPU capacity than your current vCPU limit of {limit} allows for"
        " the instance bucket that the specified instance type belongs to. Please visit"
        " http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit.",
        "EC2 'On-Demand Instance quotas'",
    ),
    Rule(
        "permission",
        "an action that the credentials may not do",
        403,
        "UnauthorizedOperation",
        "You are not authorized to perform this operation. Encoded authorization failure message:"
        " 4GIOHlTkIaWHQD0Q0m6XSnuUMCm",
        f"{_ERRORS}, CheckPointSW/Cuckoo-AWS#21",
    ),
    Rule(
        "dry run",
        "what would have been done, but DryRun was set",
        412,
        "DryRunOperation",
        "Request would have succeeded, but DryRun flag is set.",
        _ERRORS,
    ),
    Rule(
        "throttle",
        "more calls than the account's rate",
        503,
        "RequestLimitExceeded",
        "Request limit exceeded.",
        _ERRORS,
    ),
)
RULES = {row.name: row for row in _ROWS}
