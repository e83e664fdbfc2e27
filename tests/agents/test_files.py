"""Files of a run: each is whole for whoever reads it, wherever it is written to."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from reflux.agents.errors import from_os_error
from reflux.agents.files import replacing, write_once, write_whole
from reflux.finetune.data.export import export


def test_a_device_is_written_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    came: list[str] = []
    reader = threading.Thread(target=lambda: came.append(pipe.read_text()))
    reader.start()
    write_whole(pipe, "for whoever reads")
    reader.join(timeout=20)
    assert came == ["for whoever reads"]
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_rows_for_a_pipe_have_no_sidecar(tmp_path: Path) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    reader = threading.Thread(target=pipe.read_text)
    reader.start()
    assert export([], pipe, "messages").rows == 0
    reader.join(timeout=20)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_of_a_link_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")
    write_whole(link, "text")
    assert link.is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "text"


def test_two_who_write_one_file_at_once_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as mine:
        mine.write_text("mine")
        assert str(os.getpid()) in mine.name  # Another process has a file of its own.
    assert path.read_text() == "mine"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", [".", "/"])
def test_a_folder_is_no_file_to_write(name: str) -> None:
    with pytest.raises(IsADirectoryError):
        write_whole(Path(name), "text")


@pytest.mark.parametrize("write", [write_whole, write_once])
def test_a_failed_write_tells_of_the_file_and_not_of_the_temporary_one(
    write: Callable[[Path, str], object],
) -> None:
    with pytest.raises(OSError) as caught:
        write(Path("/proc/file"), "text")
    assert caught.value.filename == "/proc/file"


def test_a_full_disk_is_told_by_the_file_that_did_not_fit() -> None:
    with pytest.raises(OSError, match="No space left") as full:
        write_whole(Path("/dev/full"), "text")
    assert str(from_os_error(full.value)).startswith("/dev/full: No space left on device; ")
