"""A session's end while others still hear of it."""

from __future__ import annotations

import threading
from pathlib import Path

from doubles.source_here import SourceHere
from farshore.errors import FarshoreError, Retry
from farshore.transport.session import Session


def test_close_waits_for_what_an_abort_still_tells(tmp_path: Path) -> None:
    here = SourceHere(tmp_path)
    try:
        params = here.sites.params(here.sites.point())
        session = Session(here.links.to("127.0.0.1:1", here.sites.alpha_tls.peer), params.grant, 1, 4096)
        telling, go_on = threading.Event(), threading.Event()
        order: list[str] = []

        def on_error(_error: FarshoreError) -> None:
            telling.set()
            assert go_on.wait(60)
            order.append("told")

        def close() -> None:
            session.close()
            order.append("closed")

        session.read(0, [(0, 4096)], 4096, lambda *_: None, on_error)  # nobody answers
        aborting = threading.Thread(target=session.abort, args=(Retry("another disk failed"),))
        aborting.start()
        assert telling.wait(60)
        closing = threading.Thread(target=close)
        closing.start()
        closing.join(0.5)
        go_on.set()
        aborting.join()
        closing.join()
        assert order == ["told", "closed"]
    finally:
        here.close()
