"""WinRM: green when a command ends with the status, and its output holds the text."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Final

import requests
from pypsrp.exceptions import AuthenticationError, WinRMError, WinRMTransportError, WSManFaultError
from pypsrp.shell import Process, SignalCode, WinRS
from pypsrp.wsman import WSMan
from urllib3.exceptions import HTTPError, InsecureRequestWarning, NewConnectionError

from farshore.errors import FarshoreError
from farshore.model.probe import WinRmProbe
from farshore.recovery.probes.sight import (
    CANNOT_TRY,
    NO_ANSWER,
    NOT_ALLOWED,
    READ_LIMIT_BYTES,
    REFUSED,
    UNREACHABLE,
    WRONG_ANSWER,
    WRONG_HOST_KEY,
    Sight,
    decode,
    red,
)
from farshore.recovery.probes.ssh import judged

_CONNECT_S: Final = 3
#: A service answers a receive after this long with nothing, so that we see that it still lives.
_OPERATION_S: Final = 5


def look(
    probe: WinRmProbe, address: str, deadline: float, clock: Callable[[], float], secret: Callable[[str], str]
) -> Sight:
    """Make a shell, run the command, judge it, all before ``deadline``."""
    try:
        password = secret(probe.password or "")
    except FarshoreError as error:
        return red(CANNOT_TRY, error.message, final=True)
    wait_s = max(1, min(_OPERATION_S, int(deadline - clock())))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureRequestWarning)  # the plan has said so
            service = WSMan(
                address,
                port=probe.port,
                username=probe.user,
                password=password,
                ssl=probe.tls,
                auth=probe.auth,
                cert_validation=probe.validate_certs,
                connection_timeout=_CONNECT_S,
                operation_timeout=wait_s,
                read_timeout=wait_s + 2,
                no_proxy=True,
            )
            with service, WinRS(service) as shell:
                return _run(probe, shell, deadline, clock)
    except AuthenticationError as error:
        return red(NOT_ALLOWED, f"{probe.user} is not let in: {error}")
    except WinRMTransportError as error:
        code = NOT_ALLOWED if error.code == 401 else WRONG_ANSWER
        return red(code, f"no WinRM: HTTP status {error.code}", str(error.response_text)[:READ_LIMIT_BYTES])
    except WSManFaultError as error:
        return red(WRONG_ANSWER, f"WinRM refuses: {error}")
    except (WinRMError, ValueError) as error:
        return red(WRONG_ANSWER, f"no WinRM: {type(error).__name__}: {error}")
    except requests.exceptions.SSLError as error:
        return red(WRONG_HOST_KEY, f"its certificate is not accepted (validate_certs): {_reason(error)}")
    except requests.exceptions.Timeout:
        return red(NO_ANSWER, "no answer in time")
    except requests.exceptions.ConnectionError as error:
        return _connection(error)
    except requests.exceptions.RequestException as error:
        return red(WRONG_ANSWER, f"no WinRM: {type(error).__name__}")


def _run(probe: WinRmProbe, shell: WinRS, deadline: float, clock: Callable[[], float]) -> Sight:
    process = Process(shell, probe.command)
    process.begin_invoke()
    while process.rc is None:
        if clock() >= deadline or len(process.stdout) > READ_LIMIT_BYTES:
            process.signal(SignalCode.TERMINATE)
            seen = decode(process.stdout[:READ_LIMIT_BYTES])
            return red(NO_ANSWER, "the command did not end in time", f"> {probe.command}\n{seen}")
        process.poll_invoke(timeout=max(1, min(_OPERATION_S, int(deadline - clock()))))
    process.signal(SignalCode.CTRL_C)
    text = decode(process.stdout[:READ_LIMIT_BYTES]) + decode(process.stderr[:READ_LIMIT_BYTES])
    return judged(process.rc, probe.exit, text, probe.contains, f"> {probe.command}\n{text}\nexit status {process.rc}")


def _connection(error: requests.exceptions.ConnectionError) -> Sight:
    text = _reason(error)
    if "refused" in text:
        return red(REFUSED, "Connection refused")
    if "No route" in text or "unreachable" in text:
        return red(UNREACHABLE, "No route to host")
    return red(WRONG_ANSWER, f"no WinRM: {text}")


def _reason(error: Exception) -> str:
    cause = error.args[0] if error.args else error
    found = getattr(cause, "reason", cause)
    if isinstance(found, NewConnectionError | HTTPError | Exception):
        return str(found).rpartition(": ")[2]
    return type(error).__name__
