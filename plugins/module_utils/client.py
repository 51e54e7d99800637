# Copyright: Contributors to the Farshore project
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""The one client of the control plane's REST API.

Check mode is answered in the one place that writes: ``Client.write``. In check mode no request leaves this file but
``GET`` and the side-effect-free ``POST ...:preview`` and ``POST ...-preview``.
"""

from __future__ import annotations

import json
import os
import random
import socket
import ssl
import time
import uuid
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit

from ansible.module_utils.urls import ConnectionError as UrlsConnectionError
from ansible.module_utils.urls import Request, SSLValidationError, make_context
from ansible_collections.farshore.dr.plugins.module_utils.errors import (
    BadAnswer,
    BadParameter,
    Unavailable,
    from_response,
)

PREFIX = "/api/v1"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Five tries with pauses of 0.5 + 1 + 2 + 4 s: a control plane restarts in less than that.
TRIES = 5
FIRST_PAUSE_S = 0.5
# Nobody who waits on a playbook is helped by a longer pause that a server asks for.
LONGEST_PAUSE_S = 30.0


class Answer:
    """What a mutation did, or in check mode would do.

    ``changed`` is a bool, ``value`` the decoded JSON (in check mode the preview's ``after``), ``before`` and ``after``
    are the preview's, None where none was asked for; ``warnings`` is a list of sentences. ``preview`` is all that the
    preview said.
    """

    def __init__(self, changed, value, before=None, after=None, warnings=(), preview=None):
        self.changed = changed
        self.value = value
        self.before = before
        self.after = after
        self.warnings = list(warnings)
        self.preview = preview or {}


class Client:
    """Speaks to one control plane with one token.

    ``diff`` asks for the preview before a write that has one, so that the module can show what changes.
    ``sleep`` is replaced by tests.
    """

    def __init__(
        self,
        url,
        token,
        ca_path=None,
        validate_certs=True,
        timeout_s=30.0,
        check_mode=False,
        diff=False,
        sleep=time.sleep,
    ):
        self.check_mode = check_mode
        self.diff = diff
        self._sleep = sleep
        self._base = _checked_url(url)
        self.url = self._base
        if not token:
            raise BadParameter(
                "no token was given",
                field="token",
                hint="Set the parameter token or FARSHORE_TOKEN in the environment.",
            )
        if ca_path and not os.path.isfile(ca_path):
            raise BadParameter(
                f"{ca_path} does not exist on this host",
                field="ca_path",
                hint="Copy ca.pem of the control plane here, or leave ca_path out where the system trusts its authority.",
            )
        self._request = Request(
            headers={"Accept": "application/json"},
            # A recovery tool on the machine itself must not depend on somebody's proxy.
            use_proxy=urlsplit(self._base).hostname not in LOOPBACK,
            timeout=timeout_s,
            validate_certs=validate_certs,
            # Once for all requests: reading the authorities of a system takes longer than a request.
            context=_context(self._base, ca_path, validate_certs),
            http_agent="farshore.dr",
            # The token never follows a redirect to somewhere else.
            follow_redirects="none",
            use_netrc=False,
        )
        self._authorization = f"Bearer {token}"

    def get(self, path, query=None):
        """Return the decoded JSON at ``path``; ``query`` is a dict whose None values are left out."""
        pairs = sorted((key, value) for key, value in (query or {}).items() if value is not None)
        return self._send("GET", path + ("?" + urlencode(pairs) if pairs else ""))[0]

    def raw(self, path):
        """Return the bytes at ``path`` as they came: what is signed is not to be written anew."""
        return self._send("GET", path, raw=True)[0]

    def items(self, path, query=None):
        """Return the list that a collection answers with."""
        found = self.get(path, query)
        if not isinstance(found, dict) or not isinstance(found.get("items"), list):
            raise BadAnswer(f"{path} did not answer with a list", hint="Is the address that of a control plane?")
        return found["items"]

    def run(self, run_id):
        """Return one run, with whole addresses."""
        return self.located(self.get(f"/runs/{segment(run_id)}"))

    def located(self, run):
        """Return ``run`` with its addresses as a browser takes them, where the control plane gave only their path."""
        if not run:
            return run
        return dict(
            run,
            **{
                name: self.url + run[name]
                for name in ("url", "report_url")
                if isinstance(run.get(name), str) and run[name].startswith("/")
            },
        )

    def preview(self, path, body=None):
        """Return what ``POST path``, a side-effect-free twin, says: changed, before, after, warnings."""
        if not path.endswith((":preview", "-preview")):
            raise ValueError(f"not a preview: {path}")
        return self._send("POST", path, body if body is not None else {})[0]

    def write(self, method, path, body=None, preview=None, guess=None, idempotency_key=None):
        """Change something, unless in check mode; return an Answer.

        ``preview`` is the path of the mutation's side-effect-free twin. Where there is none, ``guess`` is the Answer
        that check mode gives, worked out by the caller from what it read.
        """
        seen = {}
        if preview and (self.check_mode or self.diff):
            seen = self.preview(preview, body)
        if self.check_mode:
            if preview:
                return Answer(
                    bool(seen.get("changed")),
                    seen.get("after"),
                    seen.get("before"),
                    seen.get("after"),
                    seen.get("warnings") or (),
                    seen,
                )
            if guess is None:
                raise ValueError(f"{method} {path} has neither a preview nor a guess for check mode")
            return guess
        value, headers = self._send(method, path, body, idempotency_key or str(uuid.uuid4()))
        changed = headers.get("x-farshore-changed")
        if changed is not None:
            changed = changed.strip().lower() == "true"
        elif isinstance(value, dict) and isinstance(value.get("changed"), bool):
            changed = value["changed"]
        elif guess is not None:
            changed = guess.changed
        else:
            changed = True
        before = seen.get("before") if preview else (guess.before if guess else None)
        after = seen.get("after") if preview else (guess.after if guess else None)
        warnings = list(seen.get("warnings") or ())
        if isinstance(value, dict):
            warnings += [text for text in value.get("warnings") or () if text not in warnings]
        return Answer(changed, value, before, after, warnings, seen)

    def _send(self, method, path, body=None, idempotency_key=None, raw=False):
        """Return (decoded JSON or None, headers with lower-case names). Retries what may be repeated without harm.

        That is reading, previews, and mutations under an idempotency key, which the control plane answers the same
        way however often they come.
        """
        headers = {"Authorization": self._authorization}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode("utf-8")
        if idempotency_key:
            headers["Idempotency-Key"] = idempotency_key
        pause_s = FIRST_PAUSE_S
        for left in reversed(range(TRIES)):
            try:
                return self._once(method, path, data, headers, raw)
            except Unavailable as error:
                if not left:
                    raise
                asked_s = error.evidence.get("retry_after_s")
                if asked_s is None:
                    # Jitter, so that many playbooks do not come back at the same instant.
                    asked_s = pause_s * (0.75 + random.random() / 2)
                self._sleep(min(asked_s, LONGEST_PAUSE_S))
                pause_s *= 2
        raise AssertionError("unreachable")

    def _once(self, method, path, data, headers, raw):
        url = self._base + PREFIX + path
        try:
            response = self._request.open(method, url, data=data, headers=headers)
            try:
                content = response.read()
                found = dict((k.lower(), v) for k, v in response.headers.items())
                return (content if raw else _decoded(content, url)), found
            finally:
                response.close()
        except HTTPError as refused:
            if 300 <= refused.code < 400:
                raise BadAnswer(
                    f"{url} redirects to somewhere else",
                    hint="Give the control plane's own address.",
                    status=refused.code,
                )
            error = from_response(refused.code, refused.read())
            if isinstance(error, Unavailable):
                asked_s = _retry_after(refused.headers.get("Retry-After"))
                if asked_s is not None:
                    error.evidence = dict(error.evidence, retry_after_s=asked_s)
            raise error from refused
        except SSLValidationError as refused:
            raise _bad_certificate(self._base, refused) from refused
        except (URLError, UrlsConnectionError, socket.timeout, OSError) as failed:
            if "CERTIFICATE_VERIFY_FAILED" in str(failed):
                raise _bad_certificate(self._base, failed) from failed
            raise Unavailable(
                "the control plane at {} cannot be reached: {}".format(
                    self._base, getattr(failed, "reason", None) or failed
                ),
                field="url",
                hint="Is it running (farshore status), and is the address right?",
            ) from failed


def segment(name):
    """Return ``name`` as one segment of a path, whatever it holds."""
    return quote(str(name), safe="")


def _checked_url(url):
    if not url:
        raise BadParameter(
            "no address of a control plane was given",
            field="url",
            hint="Set the parameter url or FARSHORE_URL in the environment, such as https://127.0.0.1:8443.",
        )
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise BadParameter(f"{url!r} is no address of a control plane", field="url", hint="Write https://HOST:8443.")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise BadParameter(
            f"{url} is not encrypted and would show the token to the network",
            field="url",
            hint="Write https://HOST:8443.",
        )
    if parts.username or parts.password:
        raise BadParameter("the address holds a password", field="url", hint="Use the parameter token.")
    return url.rstrip("/")


def _context(url, ca_path, validate_certs):
    if urlsplit(url).scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used, but keeps Request from making one each time
    try:
        return make_context(cafile=ca_path, validate_certs=validate_certs)
    except (ssl.SSLError, OSError) as error:
        raise BadParameter(
            f"{ca_path} holds no certificate that can be used: {error}",
            field="ca_path",
            hint="Give the control plane's ca.pem.",
        ) from error


def _decoded(body, url):
    if not body:
        return None
    try:
        return json.loads(body.decode("utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise BadAnswer(f"{url} did not answer with JSON", hint="Is the address that of a control plane?") from error


def _retry_after(text):
    """Return the seconds of a Retry-After header, None where it has none or a date."""
    try:
        return max(0.0, float(text))
    except (TypeError, ValueError):
        return None


def _bad_certificate(url, error):
    return BadParameter(
        f"the certificate of {url} is not to be trusted: {error}",
        code="certificate-untrusted",
        field="ca_path",
        hint="Set ca_path or FARSHORE_CA_PATH to the ca.pem of the control plane.",
    )
