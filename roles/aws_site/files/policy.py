"""Print what the nodes of a site have to be allowed, as JSON: reads the scope of their policy as JSON from its input.

The policy is the engine's own, out of this collection; only the standard library is needed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "engine" / "src"))

from farshore.errors import Invalid
from farshore.platforms.aws import policy


def main() -> None:
    """Print the document, the operations that it allows with the key, and the value of the site's tag."""
    try:
        scope = policy.Scope(**json.load(sys.stdin))
    except Invalid as error:
        sys.exit(f"{error.field}: {error}")
    operations = [action.removeprefix("kms:") for action in (*policy.KEY.actions, *policy.GRANT.actions)]
    print(json.dumps({"document": policy.document(scope), "key_operations": operations, "site": scope.site}))


if __name__ == "__main__":
    main()
