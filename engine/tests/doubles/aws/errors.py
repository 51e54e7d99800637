"""Errors in the words and shapes of each service."""

from __future__ import annotations

import json
import uuid
from typing import Final
from xml.sax.saxutils import escape

#: The services by the protocol that they speak.
_JSON: Final = dict.fromkeys(("kms", "ssm", "servicequotas"), "application/x-amz-json-1.1")
#: HTTP status per code, as botocore's models and the vendor's error pages give them; 400 where nothing is said.
STATUS: Final = {
    "AccessDenied": 403,
    "AccessDeniedException": 403,
    "ConflictException": 409,
    "DryRunOperation": 412,
    "ExpiredTokenException": 403,
    "InternalError": 500,
    "InternalServerException": 500,
    "InsufficientInstanceCapacity": 500,
    "MissingAuthenticationTokenException": 403,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "RequestLimitExceeded": 503,
    "ResourceNotFoundException": 404,
    "ServiceQuotaExceededException": 402,
    "ServiceUnavailable": 503,
    "SlowDown": 503,
    "UnauthorizedOperation": 403,
    "Unavailable": 503,
}


class ApiError(Exception):
    """What a service answers instead of a result."""

    def __init__(self, code: str, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason

    def reply(self, service: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body as ``service`` puts them."""
        status = STATUS.get(self.code, 400)
        request = str(uuid.uuid4())
        text = str(self)
        if service == "ebs":
            document = {"Message": text} | ({"Reason": self.reason} if self.reason else {})
            headers = {
                "Content-Type": "application/json",
                "x-amzn-ErrorType": self.code,
                "x-amzn-RequestId": request,
            }
            return status, headers, json.dumps(document).encode()
        if service in _JSON:
            body = json.dumps({"__type": self.code, "message": text}).encode()
            return status, {"Content-Type": _JSON[service], "x-amzn-RequestId": request}, body
        code, message = escape(self.code), escape(text)
        if service == "ec2":
            body = (
                f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
                f"<RequestID>{request}</RequestID></Response>"
            )
        elif service == "s3":
            body = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>{request}</RequestId></Error>"
        else:
            kind = "Sender" if status < 500 else "Receiver"
            body = (
                f"<ErrorResponse><Error><Type>{kind}</Type><Code>{code}</Code><Message>{message}</Message></Error>"
                f"<RequestId>{request}</RequestId></ErrorResponse>"
            )
        head = '<?xml version="1.0" encoding="UTF-8"?>\n'
        return status, {"Content-Type": "text/xml", "x-amzn-RequestId": request}, (head + body).encode()


def throttled(service: str) -> ApiError:
    """Return what a service says to callers that are too quick."""
    if service == "ebs":
        return ApiError("RequestThrottledException", "Rate exceeded", "ACCOUNT_THROTTLED")
    code = {"ec2": "RequestLimitExceeded", "s3": "SlowDown"}.get(service, "ThrottlingException")
    return ApiError(code, "Request limit exceeded.")


def broken(service: str) -> ApiError:
    """Return what a service says when it is not well."""
    if service == "ebs":
        return ApiError("InternalServerException", "An internal error has occurred")
    return ApiError(
        {"ec2": "InternalError", "s3": "InternalError"}.get(service, "ServiceUnavailable"),
        "An internal error has occurred",
    )


def expired_credentials(service: str) -> ApiError:
    """Return what a service says to temporary credentials that are out of date."""
    code = {"ec2": "RequestExpired", "s3": "ExpiredToken", "sts": "ExpiredToken", "iam": "ExpiredToken"}
    return ApiError(code.get(service, "ExpiredTokenException"), "The security token included in the request is expired")


def denied(service: str, action: str) -> ApiError:
    """Return what a service says to whom a policy does not allow ``action``."""
    who = "arn:aws:iam::123456789012:user/farshore"
    text = f"User: {who} is not authorized to perform: {action} because no identity-based policy allows it"
    code = {"ec2": "UnauthorizedOperation", "s3": "AccessDenied", "sts": "AccessDenied", "iam": "AccessDenied"}
    if service == "ec2":
        text = f"You are not authorized to perform this operation. {text}"
    return ApiError(code.get(service, "AccessDeniedException"), text)
