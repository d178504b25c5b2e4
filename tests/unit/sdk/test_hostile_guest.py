"""A guest that sends hostile archives, through the engine and the SDK: nothing lands outside the target."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from squib.errors import ArchiveRefused, DiskFull, SquibError, TransferFailed
from squib.sdk.syncfiles import Files
from squib.sdk.vm import VM
from tests.fakes.files import FakeFiles
from tests.fakes.served import Served
from tests.fakes.trees import archive, damaged, header, records, snapshot
from tests.unit.sdk.transfer.test_unpack import HOSTILE

pytestmark = pytest.mark.slow  # through everything; test_unpack has the same in short


@pytest.fixture
def files(served: Served) -> Files:
    return VM.from_id("web").files


@pytest.fixture
def guest(served: Served, tmp_path: Path) -> FakeFiles:
    """It sends the value of ``answers["/d/."]`` instead of its directory ``/d``."""
    served.agent.files = FakeFiles(tmp_path / "guest")
    (tmp_path / "guest" / "d").mkdir(parents=True)
    return served.agent.files


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory that holds a target, with links in it, and files that are none of the guest's business."""
    here = tmp_path / "here"
    (here / "target" / "d" / "own-dir").mkdir(parents=True)
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "file").write_text("mine")
    (here / "target" / "secret").write_text("mine")
    (here / "target" / "d" / "own-link").symlink_to("../../elsewhere")
    (here / "target" / "d" / "own-file").write_text("own")
    return here


def _download(files: Files, target: Path) -> SquibError:
    with pytest.raises(SquibError) as caught:
        files.download("/d", target)
    return caught.value


@pytest.mark.parametrize("case", HOSTILE)
def test_no_archive_gets_out_of_a_directory_that_is_there(
    files: Files, guest: FakeFiles, here: Path, case: str
) -> None:
    """It is merged with ``target/d``."""
    data, message = HOSTILE[case]
    guest.answers["/d/."] = (200, archive(data).getvalue())
    before = snapshot(here, without=here / "target" / "d")
    error = _download(files, here / "target")
    assert isinstance(error, ArchiveRefused) and message in error.message
    assert snapshot(here, without=here / "target" / "d") == before
    assert not list(here.rglob(".squib-*"))


# Only what is in the target makes these hostile.
_NEED_A_TARGET = (
    "that is there",
    "to below a link",
    "what was there",
    "hard link through a link",
    "link through a link",
)


@pytest.mark.parametrize("case", [case for case in HOSTILE if not case.endswith(_NEED_A_TARGET)])
def test_no_archive_leaves_anything_of_a_new_directory(files: Files, guest: FakeFiles, here: Path, case: str) -> None:
    guest.answers["/d/."] = (200, archive(HOSTILE[case][0]).getvalue())
    before = snapshot(here, times=False)
    assert isinstance(_download(files, here / "new"), ArchiveRefused)
    assert snapshot(here, times=False) == before


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (archive(damaged(header("bomb"), 124, b"\x80" + (1 << 50).to_bytes(11, "big"))), DiskFull),
        (archive(records(b"g", SQUIB_error=b"/srv/x: input/output error")), TransferFailed),
        (io.BytesIO(), ArchiveRefused),
        (io.BytesIO(b"\0" * (8 << 20)), ArchiveRefused),
    ],
    ids=["bomb", "the guest's own error", "nothing", "zeros"],
)
def test_a_bomb_and_what_is_no_archive_leave_nothing(
    files: Files, guest: FakeFiles, here: Path, data: io.BytesIO, kind: type[SquibError]
) -> None:
    guest.answers["/d/."] = (200, data.getvalue())
    before = snapshot(here, times=False)
    assert isinstance(_download(files, here / "new"), kind)
    assert snapshot(here, times=False) == before
