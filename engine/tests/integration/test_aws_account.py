"""How a node gets its credentials: from its surroundings, a profile, a role, or a token of a web identity."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles import aws_site
from doubles.aws import AwsDouble
from farshore.errors import Unauthenticated
from farshore.platforms.aws.account import Account

ROLE = "arn:aws:iam::123456789012:role/farshore"


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsDouble]:
    with AwsDouble(tmp_path_factory.mktemp("aws")) as double:
        yield double


@pytest.fixture(autouse=True)
def surroundings(aws: AwsDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.clear()
    aws.forget_calls()
    for name, value in aws.environment().items():
        monkeypatch.setenv(name, value)


def use(account: Account) -> None:
    """Make a call that needs credentials."""
    assert account.call("ec2", "describe_snapshots", OwnerIds=["self"])["Snapshots"] == []


def test_from_the_surroundings(aws: AwsDouble, tmp_path: Path) -> None:
    use(aws_site.account(aws_site.config(aws, tmp_path)))
    assert [call.operation for call in aws.calls()] == ["DescribeSnapshots"]


def test_from_a_profile(aws: AwsDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = aws.environment()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    shared = tmp_path / "credentials"
    shared.write_text(
        f"[backup]\naws_access_key_id={known['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key={known['AWS_SECRET_ACCESS_KEY']}\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    use(aws_site.account(aws_site.config(aws, tmp_path, profile="backup")))
    with pytest.raises(Unauthenticated) as caught:
        use(aws_site.account(aws_site.config(aws, tmp_path, profile="missing")))
    assert caught.value.code == "credentials-missing"
    with pytest.raises(Unauthenticated):
        use(aws_site.account(aws_site.config(aws, tmp_path)))


def test_from_a_role_with_an_external_id(aws: AwsDouble, tmp_path: Path) -> None:
    use(aws_site.account(aws_site.config(aws, tmp_path, role={"arn": ROLE, "external_id": "customer-1"})))
    assert [call.operation for call in aws.calls()] == ["AssumeRole", "DescribeSnapshots"]


def test_from_a_web_identity(aws: AwsDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    token = tmp_path / "token"
    token.write_text("eyJhbGciOiJub25lIn0.e30.", encoding="utf-8")
    role = {"arn": ROLE, "web_identity_token_file": str(token)}
    use(aws_site.account(aws_site.config(aws, tmp_path, role=role)))
    assert [call.operation for call in aws.calls()] == ["AssumeRoleWithWebIdentity", "DescribeSnapshots"]


def test_credentials_that_have_expired_are_had_anew(aws: AwsDouble, tmp_path: Path) -> None:
    account = aws_site.account(aws_site.config(aws, tmp_path, role={"arn": ROLE}))
    use(account)
    aws.fault("DescribeSnapshots", "expired-credentials")
    assert account.patiently("ec2", "describe_snapshots", OwnerIds=["self"])["Snapshots"] == []
    assert len(aws.calls("AssumeRole")) == 2
