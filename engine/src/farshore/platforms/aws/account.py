"""An account in one region: boto3's clients, made once, and one place from which everything is called."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TypeVar

import boto3
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    AssumeRoleWithWebIdentityCredentialFetcher,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session as BotocoreSession
from botocore.utils import FileWebIdentityTokenLoader

from farshore.errors import FarshoreError, Retry
from farshore.platforms.aws.errors import translate
from farshore.platforms.aws.pacing import RATES, Pacing
from farshore.platforms.aws.settings import AwsSettings

T = TypeVar("T")

#: Calls to EBS are not repeated by the SDK: the engine repeats them, and lowers its window. Nor are those to Systems
#: Manager, where a second call is a second command.
_ATTEMPTS: Final = {"ebs": 1, "ssm": 1}
_ATTEMPTS_ELSE: Final = 4
#: Connections of one client; more threads than that wait for each other.
_CONNECTIONS: Final = 160
#: Pauses of :meth:`Account.patiently`.
PAUSE_FIRST_S: Final = 0.2
PAUSE_MAX_S: Final = 30.0
PATIENCE_S: Final = 180.0


class Account:
    """An account as one node sees it. Safe from several threads."""

    def __init__(self, settings: AwsSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._session: boto3.Session | None = None
        self._clients: dict[str, Any] = {}
        self.pacing = Pacing({**RATES, **settings.api_rates})

    def client(self, service: str) -> Any:
        """Return boto3's client of ``service``."""
        found = self._clients.get(service)
        if found is None:
            with self._lock:
                found = self._clients.get(service)
                if found is None:
                    found = self._clients[service] = self._make(service)
        return found

    def call(self, service: str, operation: str, **params: Any) -> dict[str, Any]:
        """Call ``operation`` (boto3's name, ``start_snapshot``) once and return the reply.

        Raises:
            FarshoreError: by duty; see :mod:`farshore.platforms.aws.errors`.
        """
        name = _api_name(operation)
        self.pacing.wait(name)
        try:
            reply: dict[str, Any] = getattr(self.client(service), operation)(**params)
        except (BotoCoreError, ClientError) as error:
            failure = translate(error, service, name, self.settings.region)
            if failure.code == "throttled":
                self.pacing.slow(name)
            if failure.code == "credentials-expired":
                self._forget()
            raise failure from error
        return reply

    def body(self, stream: Any, service: str, operation: str) -> bytes:
        """Read the body of a reply to the end.

        Raises:
            Retry: it broke off.
        """
        try:
            data: bytes = stream.read()
        except BotoCoreError as error:
            raise translate(error, service, _api_name(operation), self.settings.region) from error
        return data

    def patiently(self, service: str, operation: str, **params: Any) -> dict[str, Any]:
        """Like :meth:`call`, repeated for some minutes where the error may pass. For calls that may be repeated."""
        return patiently(partial(self.call, service, operation, **params))

    def pages(self, service: str, operation: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Yield all pages of a listing, however many of them are empty."""
        token: dict[str, str] = {}
        while True:
            reply = self.patiently(service, operation, **params, **token)
            yield reply
            following = reply.get("NextToken") or reply.get("NextContinuationToken")
            if not following:
                return
            token = {"ContinuationToken" if "NextContinuationToken" in reply else "NextToken": following}

    def _make(self, service: str) -> Any:
        """Make a client; the lock is held."""
        settings = self.settings
        endpoint = settings.endpoint_of(service)
        try:
            if self._session is None:
                self._session = _session(settings)
            return self._session.client(
                service,
                endpoint_url=endpoint,
                config=Config(
                    retries={"mode": "standard", "total_max_attempts": _ATTEMPTS.get(service, _ATTEMPTS_ELSE)},
                    max_pool_connections=_CONNECTIONS,
                    connect_timeout=5,
                    read_timeout=60,
                    tcp_keepalive=True,
                    # A host name for each bucket is the provider's own way.
                    s3={"addressing_style": "path"} if endpoint else None,
                ),
            )
        except BotoCoreError as error:
            raise translate(error, service, "client", settings.region) from error

    def _forget(self) -> None:
        """Make the next call look for credentials anew."""
        with self._lock:
            self._session = None
            self._clients.clear()


def patiently(call: Callable[[], T], within_s: float = PATIENCE_S) -> T:
    """Repeat ``call`` while its errors may pass, with pauses that grow and are jittered.

    Raises:
        FarshoreError: one that does not pass, or the last one when ``within_s`` are over.
    """
    until = time.monotonic() + within_s
    pause = PAUSE_FIRST_S
    while True:
        try:
            return call()
        except Retry:
            now = time.monotonic()
            if now >= until:
                raise
            # Full jitter: whoever was throttled together does not come back together.
            time.sleep(min(random.uniform(0.1, 1.0) * pause, until - now))  # noqa: S311
            pause = min(pause * 2, PAUSE_MAX_S)


def wait_for(look: Callable[[], T | None], poll_s: float, within_s: float, error: Callable[[], FarshoreError]) -> T:
    """Call ``look`` until it returns something; ``error()`` is raised when ``within_s`` are over."""
    until = time.monotonic() + within_s
    pace = min(poll_s, 0.2)  # most of what is waited for is quick
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() >= until:
            raise error()
        time.sleep(pace)
        pace = min(pace * 1.5, poll_s)


def _api_name(operation: str) -> str:
    """Return the API's own name of an operation: ``put_snapshot_block`` is ``PutSnapshotBlock``."""
    return "".join(part[:1].upper() + part[1:] for part in operation.split("_"))


def _session(settings: AwsSettings) -> boto3.Session:
    """Return the session that the settings describe."""
    plain = boto3.Session(profile_name=settings.profile, region_name=settings.region)
    role = settings.role
    if role is None:
        return plain
    inner: BotocoreSession = plain._session  # noqa: SLF001  the fetchers take botocore's own session
    create = partial(inner.create_client, endpoint_url=settings.endpoint_of("sts"), region_name=settings.region)

    def client(service: str, **given: Any) -> Any:
        return create(service, **{key: value for key, value in given.items() if key != "region_name"})

    extra: dict[str, str] = {"RoleSessionName": role.session_name}
    fetcher: AssumeRoleCredentialFetcher | AssumeRoleWithWebIdentityCredentialFetcher
    if role.web_identity_token_file is not None:
        fetcher = AssumeRoleWithWebIdentityCredentialFetcher(
            client_creator=client,
            web_identity_token_loader=FileWebIdentityTokenLoader(role.web_identity_token_file),
            role_arn=role.arn,
            extra_args=extra,
        )
    else:
        if role.external_id is not None:
            extra["ExternalId"] = role.external_id
        fetcher = AssumeRoleCredentialFetcher(
            client_creator=client,
            source_credentials=inner.get_credentials(),
            role_arn=role.arn,
            extra_args=extra,
        )
    assumed = BotocoreSession()
    assumed._credentials = DeferredRefreshableCredentials(  # noqa: SLF001  there is no public way to give a session these
        method="assume-role", refresh_using=fetcher.fetch_credentials
    )
    return boto3.Session(botocore_session=assumed, region_name=settings.region)
