"""Front doors that start together on a fresh database."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from sqlalchemy import create_engine

from api.database import prepare


def test_front_doors_that_start_at_once_make_it_together(tmp_path: Path) -> None:
    """Each finds the tables there, or half there, and all read one pepper."""
    for number in range(8):
        url = f"sqlite:///{tmp_path}/{number}.db"
        together = Barrier(4)

        def start(_: int, url: str = url, together: Barrier = together) -> bytes:
            engine = create_engine(url)
            try:
                together.wait(10)
                return prepare(engine)
            finally:
                engine.dispose()

        with ThreadPoolExecutor(4) as threads:
            assert len(set(threads.map(start, range(4)))) == 1
