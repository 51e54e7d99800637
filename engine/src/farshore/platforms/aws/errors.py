"""From an error of boto3 to one by the duty of who catches it, with what to do next."""

from __future__ import annotations

from typing import Any, Final

from botocore import exceptions as boto

from farshore.errors import (
    Conflict,
    FarshoreError,
    Forbidden,
    Invalid,
    NoSpace,
    NotFound,
    Permanent,
    Retry,
    Unauthenticated,
    Unavailable,
)
from farshore.platforms.aws import policy

THROTTLES: Final = frozenset(
    {
        "BandwidthLimitExceeded",
        "ConcurrentSnapshotLimitExceeded",
        "EC2ThrottledException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "SnapshotCreationPerVolumeRateExceeded",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
#: Limits on what goes on at once: they pass when others have ended.
BUSY: Final = frozenset(
    {"ConcurrentLimitExceededException", "PendingSnapshotLimitExceeded", "ServiceQuotaExceededException"}
)
#: Limits on what there is: somebody has to remove something or ask for more.
QUOTAS: Final = frozenset(
    {
        "AddressLimitExceeded",
        "InstanceLimitExceeded",
        "MaxIOPSLimitExceeded",
        "NetworkInterfaceLimitExceeded",
        "ResourceLimitExceeded",
        "SecurityGroupLimitExceeded",
        "SnapshotLimitExceeded",
        "TagLimitExceeded",
        "VcpuLimitExceeded",
        "VolumeLimitExceeded",
    }
)
CAPACITY: Final = frozenset(
    {"InsufficientCapacity", "InsufficientHostCapacity", "InsufficientInstanceCapacity", "InsufficientVolumeCapacity"}
)
DENIED: Final = frozenset({"403", "AccessDenied", "AccessDeniedException", "Forbidden", "UnauthorizedOperation"})
EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
UNKNOWN_CALLER: Final = frozenset(
    {
        "AuthFailure",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidIdentityToken",
        "MissingAuthenticationToken",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
ELSEWHERE: Final = frozenset(
    {"301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}
)
ABSENT: Final = frozenset(
    {
        "404",
        "InvalidAMIID.Unavailable",
        "NoSuchBucket",
        "NoSuchEntity",
        "NoSuchKey",
        "NotFound",
        "NotFoundException",
        "ResourceNotFoundException",
    }
)
STATES: Final = frozenset(
    {
        "409",
        "412",
        "ConditionalRequestConflict",
        "ConflictException",
        "DependencyViolation",
        "IdempotentParameterMismatch",
        "IncorrectInstanceState",
        "IncorrectState",
        "InvalidAMIName.Duplicate",
        "InvalidGroup.Duplicate",
        "InvalidNetworkInterface.InUse",
        "InvalidPermission.Duplicate",
        "InvalidSnapshot.InUse",
        "InvalidSubnet.Conflict",
        "OperationAborted",
        "PreconditionFailed",
        "ResourceInUse",
        "VolumeInUse",
    }
)
#: Operations whose permission has another name than theirs.
_ACTIONS: Final = {
    "s3:HeadBucket": "s3:ListBucket",
    "s3:HeadObject": "s3:GetObject",
    "s3:ListObjectsV2": "s3:ListBucket",
    "ec2:CreateSnapshots": "ec2:CreateSnapshots",
}
_KMS_ACTIONS: Final = (
    "kms:CreateGrant, kms:Decrypt, kms:DescribeKey, kms:GenerateDataKeyWithoutPlaintext, "
    "kms:ReEncryptFrom and kms:ReEncryptTo"
)


def translate(error: Exception, service: str, operation: str, region: str) -> FarshoreError:
    """Return what ``error`` of an API's ``operation`` (``PutSnapshotBlock``) means."""
    what = f"{service}:{operation}"
    if isinstance(error, boto.ClientError):
        return _of_reply(error, service, operation, region)
    if isinstance(error, (boto.ReadTimeoutError, boto.ConnectionClosedError, boto.ResponseStreamingError)):
        return Retry(f"the answer to {what} did not come", code="reply-lost", operation=what)
    if isinstance(error, (boto.IncompleteReadError, boto.ChecksumError, boto.FlexibleChecksumError)):
        return Retry(f"the answer to {what} came in part: {error}", code="reply-lost", operation=what)
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)):
        return Unauthenticated(
            f"there are no credentials for {what}: {error}",
            code="credentials-missing",
            hint="Name a profile or role in the node's platform settings, or give its machine an instance profile.",
            field="platform.profile",
        )
    if isinstance(error, (boto.CredentialRetrievalError, boto.TokenRetrievalError, boto.MetadataRetrievalError)):
        return Retry(f"credentials could not be had: {error}", code="credentials-unavailable", operation=what)
    if isinstance(error, (boto.HTTPClientError, boto.ConnectionError)):
        return Unavailable(
            f"{service} in {region} cannot be reached: {error}",
            code="provider-unreachable",
            hint="Check the node's way out, or platform.endpoints if the site has VPC endpoints.",
            operation=what,
        )
    return Permanent(f"{what} failed: {error}", code="provider-call", operation=what, kind=type(error).__name__)


def _of_reply(error: boto.ClientError, service: str, operation: str, region: str) -> FarshoreError:
    reply: dict[str, Any] = error.response
    told = reply.get("Error") or {}
    code, text = str(told.get("Code", "")), str(told.get("Message", ""))
    plain = code.removeprefix("Client.").removeprefix("Server.")
    meta = reply.get("ResponseMetadata") or {}
    status = int(meta.get("HTTPStatusCode") or 0)
    reason = str(reply.get("Reason") or "")
    what = f"{service}:{operation}"
    evidence = {
        "operation": what,
        "aws_code": code,
        **({"reason": reason} if reason else {}),
        **({"request_id": meta["RequestId"]} if meta.get("RequestId") else {}),
    }
    said = f"{what}: {text or code}"
    if plain in THROTTLES:
        return Retry(f"{what} is throttled", code="throttled", **evidence)
    if plain in BUSY:
        hint = "Fewer disks at once, or wait: an account may have 100 snapshots that are being written."
        return Retry(f"{said}: too much goes on at once", code="provider-busy", hint=hint, **evidence)
    if plain in QUOTAS or plain.endswith("LimitExceeded"):
        hint = f"Remove what is not needed in {region}, lower the retention, or ask for a higher quota ({plain})."
        return NoSpace(f"a quota of the account is reached: {said}", code="quota", hint=hint, **evidence)
    if plain in CAPACITY:
        hint = "Name another zone or more instance_families in the node's platform settings, or try again later."
        return Retry(f"the zone has no room for this now: {said}", code="no-capacity", hint=hint, **evidence)
    if _is_about_key(plain, text, service):
        hint = f"The key has to be enabled, in {region}, and its policy has to allow the node's role {_KMS_ACTIONS}."
        return Permanent(
            f"the KMS key cannot be used: {said}", code="kms-key", hint=hint, field="platform.kms_key", **evidence
        )
    if plain in EXPIRED:
        return Retry(f"the credentials for {what} have expired", code="credentials-expired", **evidence)
    if plain in UNKNOWN_CALLER:
        hint = "Check the profile or role of the node, and its machine's clock."
        return Unauthenticated(
            f"the credentials are refused: {said}", code="credentials-refused", hint=hint, **evidence
        )
    if plain in ELSEWHERE:
        hint = "platform.region has to be the bucket's and the machines' region."
        return Invalid(
            f"this is in another region than {region}: {said}",
            code="wrong-region",
            field="platform.region",
            hint=hint,
            **evidence,
        )
    if plain in DENIED:
        action = _ACTIONS.get(what, what)
        return Forbidden(
            f"the node's role may not call {action}",
            code="permission",
            hint=_allowing(action),
            action=action,
            **evidence,
        )
    if plain in ABSENT or plain.endswith((".NotFound", ".Unknown")) or status == 404:
        field = "platform.bucket" if plain == "NoSuchBucket" else None
        return NotFound(said, code="provider-not-found", field=field, **evidence)
    if plain in STATES or status in {409, 412}:
        return Conflict(said, code="provider-conflict", **evidence)
    if status >= 500 or plain in {"InternalError", "InternalFailure", "InternalServerException", "ServiceUnavailable"}:
        return Retry(f"{what} failed at the provider: {code}", code="provider-error", **evidence)
    return Permanent(f"{said} ({code})", code="provider-refusal", **evidence)


def _allowing(action: str) -> str:
    """Return what to do where an action is not allowed: which line of the policy is missing."""
    statement = policy.statement_of(action)
    if statement is None:
        return f'Add "{action}" to the policy of the node\'s role.'
    own = " It allows what carries the site's tag only." if statement is policy.REMOVE else ""
    return (
        f'Add "{action}" to the policy of the node\'s role: it is in the statement {statement.sid} of'
        f" `{policy.command(statement)}`.{own}"
    )


def _is_about_key(code: str, text: str, service: str) -> bool:
    """Say whether a refusal is because of an encryption key."""
    if code.startswith(("KMS.", "InvalidKMSKey", "KMSKeyNotAccessible", "InvalidKmsKey")):
        return True
    lowered = text.lower()
    return service in {"ebs", "ec2", "s3"} and (code in DENIED or code == "ValidationException") and "kms" in lowered
