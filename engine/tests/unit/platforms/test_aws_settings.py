"""The settings of a site in AWS, and what errors of the service mean."""

from __future__ import annotations

from typing import Any

import pytest
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
from farshore.platforms.aws import tags
from farshore.platforms.aws.errors import translate
from farshore.platforms.aws.prices import LIST, prices
from farshore.platforms.aws.settings import read

GOOD = {
    "type": "aws",
    "region": "eu-central-1",
    "zone": "eu-central-1a",
    "bucket": "my-farshore",
    "scratch": "/var/lib/farshore/aws",
}
ROLE = "arn:aws:iam::123456789012:role/farshore"


def test_good_settings_have_defaults() -> None:
    settings = read({**GOOD, "endpoint": "http://127.0.0.1:1", "endpoints": {"ebs": "https://vpce.example"}})
    assert settings.prefix == "farshore"
    assert settings.endpoint_of("ebs") == "https://vpce.example"
    assert settings.endpoint_of("ec2") == "http://127.0.0.1:1"
    assert read(GOOD).endpoint_of("ec2") is None


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("region", {"region": "Frankfurt"}),
        ("zone", {"zone": "us-east-1a"}),
        ("zone", {"zone": "eu-central-1"}),
        ("bucket", {"bucket": "My_Bucket"}),
        ("prefix", {"prefix": "a/../b"}),
        ("scratch", {"scratch": "relative"}),
        ("endpoint", {"endpoint": "http://key:secret@host"}),
        ("endpoints", {"endpoints": {"dynamodb": "http://host"}}),
        ("kms_key", {"kms_key": "alias/mine"}),
        ("kms_key", {"kms_key": "arn:aws:kms:us-east-1:123456789012:key/1"}),
        ("role.arn", {"role": {"arn": "farshore"}}),
        ("role", {"role": {"arn": ROLE, "external_id": "abc", "web_identity_token_file": "/token"}}),
        ("instance_families", {"instance_families": []}),
        ("aws_secret_access_key", {"aws_secret_access_key": "x"}),
        ("prices", {"prices": {"store_gib_month": 0.054}}),
        ("prices.sent_gib", {"prices": {"sent_gib": -1}}),
        ("regoin", {"regoin": "eu-central-1"}),
    ],
)
def test_what_is_wrong_is_named(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as caught:
        read({**GOOD, **changes})
    assert caught.value.field == f"platform.{field}"
    assert "secret@" not in str(caught.value)


def test_prices_of_the_settings_stand_before_those_of_the_list() -> None:
    found = prices(read({**GOOD, "prices": {"stored_gib_month": 0.054}}).prices)
    assert (found.stored_gib_month, found.write_calls) == (0.054, LIST.write_calls)
    assert found.source.endswith("but for platform.prices: stored_gib_month")
    assert prices({}) == LIST


def test_a_missing_setting_is_named() -> None:
    for field in ("region", "zone", "bucket", "scratch"):
        with pytest.raises(Invalid) as caught:
            read({key: value for key, value in GOOD.items() if key != field})
        assert caught.value.field == f"platform.{field}"


@pytest.mark.parametrize(
    ("service", "code", "kind", "ours"),
    [
        ("ebs", "RequestThrottledException", Retry, "throttled"),
        ("ec2", "RequestLimitExceeded", Retry, "throttled"),
        ("ec2", "SnapshotCreationPerVolumeRateExceeded", Retry, "throttled"),
        ("s3", "SlowDown", Retry, "throttled"),
        ("ebs", "ConcurrentLimitExceededException", Retry, "provider-busy"),
        ("ebs", "ServiceQuotaExceededException", Retry, "provider-busy"),
        ("ec2", "SnapshotLimitExceeded", NoSpace, "quota"),
        ("ec2", "VcpuLimitExceeded", NoSpace, "quota"),
        ("ec2", "InsufficientInstanceCapacity", Retry, "no-capacity"),
        ("ebs", "AccessDeniedException", Forbidden, "permission"),
        ("ec2", "UnauthorizedOperation", Forbidden, "permission"),
        ("ec2", "InvalidKMSKey.InvalidState", Permanent, "kms-key"),
        ("ec2", "ExpiredToken", Retry, "credentials-expired"),
        ("sts", "InvalidClientTokenId", Unauthenticated, "credentials-refused"),
        ("s3", "PermanentRedirect", Invalid, "wrong-region"),
        ("ec2", "InvalidSnapshot.NotFound", NotFound, "provider-not-found"),
        ("ebs", "ResourceNotFoundException", NotFound, "provider-not-found"),
        ("ec2", "InvalidSnapshot.InUse", Conflict, "provider-conflict"),
        ("s3", "PreconditionFailed", Conflict, "provider-conflict"),
        ("ebs", "InternalServerException", Retry, "provider-error"),
        ("ebs", "ValidationException", Permanent, "provider-refusal"),
    ],
)
def test_errors_of_the_service_say_whose_turn_it_is(
    service: str, code: str, kind: type[FarshoreError], ours: str
) -> None:
    error = boto.ClientError({"Error": {"Code": code, "Message": "as it says"}}, "PutSnapshotBlock")
    found = translate(error, service, "PutSnapshotBlock", "eu-central-1")
    assert type(found) is kind
    assert found.code == ours
    assert found.evidence["aws_code"] == code


def test_a_permission_is_named_by_its_action_and_the_line_that_is_missing() -> None:
    error = boto.ClientError({"Error": {"Code": "AccessDenied", "Message": ""}}, "ListObjectsV2")
    found = translate(error, "s3", "ListObjectsV2", "eu-central-1")
    assert found.evidence["action"] == "s3:ListBucket"
    assert 'Add "s3:ListBucket"' in found.hint
    assert "the statement FarshoreListManifests of `farshore aws policy`" in found.hint


def test_a_key_that_cannot_be_used_is_told_from_a_permission() -> None:
    told = {"Code": "AccessDeniedException", "Message": "The ciphertext refers to a KMS key that is not there"}
    found = translate(boto.ClientError({"Error": told}, "GetSnapshotBlock"), "ebs", "GetSnapshotBlock", "eu-central-1")
    assert found.code == "kms-key"
    assert "kms:Decrypt" in found.hint


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (boto.ReadTimeoutError(endpoint_url="x"), Retry, "reply-lost"),
        (boto.ConnectionClosedError(endpoint_url="x"), Retry, "reply-lost"),
        (boto.EndpointConnectionError(endpoint_url="x"), Unavailable, "provider-unreachable"),
        (boto.ConnectTimeoutError(endpoint_url="x"), Unavailable, "provider-unreachable"),
        (boto.NoCredentialsError(), Unauthenticated, "credentials-missing"),
        (boto.ProfileNotFound(profile="x"), Unauthenticated, "credentials-missing"),
    ],
)
def test_errors_before_a_reply(error: Exception, kind: type[FarshoreError], code: str) -> None:
    found = translate(error, "ec2", "DescribeSnapshots", "eu-central-1")
    assert type(found) is kind
    assert found.code == code


def test_tags_fit_whatever_they_hold() -> None:
    assert len(tags.value("x" * 400)) <= 256
    assert tags.value("x" * 400) != tags.value("x" * 401)
    assert len(tags.lease("run-" + "x" * 400)) <= 128
    assert tags.token("a", "b") == tags.token("a", "b") != tags.token("ab")
