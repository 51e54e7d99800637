# Copyright: Contributors to the Farshore project
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""What all modules have in common: their options, and the one edge where an error ends a module."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule, env_fallback
from ansible_collections.farshore.dr.plugins.module_utils.client import Client
from ansible_collections.farshore.dr.plugins.module_utils.errors import ApiError
from ansible_collections.farshore.dr.plugins.module_utils.waiting import Waiter, check_wait


def connection_argument_spec():
    """Return the options that say where the control plane is and who asks."""
    return dict(
        url=dict(type="str", fallback=(env_fallback, ["FARSHORE_URL"])),
        token=dict(type="str", no_log=True, fallback=(env_fallback, ["FARSHORE_TOKEN"])),
        ca_path=dict(type="path", fallback=(env_fallback, ["FARSHORE_CA_PATH"])),
        validate_certs=dict(type="bool", default=True, fallback=(env_fallback, ["FARSHORE_VALIDATE_CERTS"])),
        request_timeout=dict(type="int", default=60),
    )


def run(action, argument_spec, **kwargs):
    """Make the module, let ``action(module, client)`` do the work, end with what it returns or with its error.

    ``action`` returns the result as a dict; it raises ApiError and never ends the module itself.
    """
    spec = connection_argument_spec()
    spec.update(argument_spec)
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True, **kwargs)
    params = module.params
    try:
        check_wait(params)
        client = Client(
            params["url"],
            params["token"],
            ca_path=params["ca_path"],
            validate_certs=params["validate_certs"],
            timeout_s=params["request_timeout"],
            check_mode=module.check_mode,
            diff=bool(module._diff),
        )
        result = action(module, client)
    except ApiError as error:
        module.fail_json(**error.to_result())
    for text in result.pop("warnings", ()):
        module.warn(text)
    module.exit_json(**result)


def waiter(module, client):
    """Return the Waiter that the module's wait options describe."""
    params = module.params
    return Waiter(client, params["wait_timeout"], params["wait_interval"], params["on_cancel"])


def outcome(answer, **values):
    """Return the result of a module that ends with ``answer``: changed, diff where known, warnings and ``values``."""
    result = dict(values, changed=answer.changed, warnings=answer.warnings)
    if answer.before is not None or answer.after is not None:
        result["diff"] = dict(before=answer.before or {}, after=answer.after or {})
    return result


def given(params, *names):
    """Return those of ``names`` that have a value, as a dict for a request's body."""
    return dict((name, params[name]) for name in names if params[name] is not None)
