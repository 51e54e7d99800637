"""Insert rows into the database as fast as it takes them, until it answers no more: last_words.py URL WORD

Prints ``{"acknowledged": N, "first": VALUE, "last": VALUE, "at": SECONDS}`` as JSON; a row counts once the database has
said that it is on disk. Plain Python 3.9, since it runs where the machines run.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request

PAUSE_S = 0.1
ANSWER_S = 5.0
# As long as this the database may be away, before it counts as stopped.
PATIENCE_S = 15.0
LONGEST_S = 900.0


def main(url: str, word: str) -> None:
    """Write until nobody answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    begun = time.monotonic()
    heard = begun
    said = {"acknowledged": 0, "first": None, "last": None, "at": None}
    number = 0
    while time.monotonic() - heard < PATIENCE_S and time.monotonic() - begun < LONGEST_S:
        number += 1
        value = f"{word}-{number}"
        try:
            with opener.open(f"{url}/cgi-bin/insert?value={value}", timeout=ANSWER_S) as answer:
                stored = json.load(answer).get("value") == value
        except (OSError, ValueError):  # refused while stopping, or gone
            stored = False
        if stored:
            heard = time.monotonic()
            said.update(acknowledged=said["acknowledged"] + 1, first=said["first"] or value, last=value, at=time.time())
        time.sleep(PAUSE_S)
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
