"""advbook.files: whole files or none, a full disk, damaged files."""

import os
from pathlib import Path

import pytest
from processes import FULL_DISK, script

from advbook import files


def test_a_file_is_written_into_new_folders_and_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    files.write(path, b"first")
    files.write(path, b"second")
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path):
    path = tmp_path / "row.json"
    path.write_bytes(b"old")
    run = script(f"""{FULL_DISK}
from pathlib import Path
from advbook import files
files.write(Path({str(path)!r}), b"x" * 100_000)
""")
    _, stderr = run.communicate()
    assert run.returncode != 0
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: row.json could not be written to ")
    assert "File too large" in last
    assert "run again" in last
    assert "During handling" not in stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "no half-written file stays behind"


def test_a_device_without_room_is_one_sentence(tmp_path, monkeypatch):
    """ENOSPC from the kernel itself."""
    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", lambda **options: Full(tmp_path / "x.part"))
    (tmp_path / "x.part").touch()
    with pytest.raises(OSError, match=r"^x could not be written to .*No space left on device.*kept\.$"):
        files.write(tmp_path / "x", b"content")
    assert not list(tmp_path.iterdir())


class Full:
    """/dev/full under the name of a temporary file."""

    def __init__(self, path):
        self.name, self.file = str(path), Path("/dev/full").open("wb")  # noqa: SIM115 - closed by __exit__

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_place_that_is_no_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"^row could not be written to .*file"):
        files.write(tmp_path / "file" / "row", b"content")


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "file", b"content")
    assert not list(tmp_path.iterdir())
