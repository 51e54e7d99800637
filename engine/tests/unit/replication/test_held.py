"""Who holds a checkpoint's journals holds them alone, also where whoever held them before has removed them."""

from __future__ import annotations

import threading
from pathlib import Path

from farshore.errors import Conflict
from farshore.replication.resume import forget, held

HOLDERS = 6
TURNS = 150


def test_a_folder_that_is_removed_by_its_holder_has_one_holder_at_a_time(tmp_path: Path) -> None:
    folder, inside = tmp_path / "cp-1", threading.Lock()
    wrong: list[str] = []
    turns = [0] * HOLDERS

    def work(number: int) -> None:
        while turns[number] < TURNS and not wrong:
            try:
                with held(folder):
                    if not inside.acquire(blocking=False):
                        wrong.append("two held it")
                        return
                    (folder / str(number)).write_bytes(b"")
                    inside.release()
                    forget(folder)
                    turns[number] += 1
            except Conflict as error:
                if error.code != "draft-busy":
                    wrong.append(str(error))
            except OSError as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(HOLDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert turns == [TURNS] * HOLDERS
