"""Write the stub's programs into a folder, and tell them how to behave."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

from tests.fakes.firecracker.settings import DEFAULTS, Fault

_REPOSITORY = Path(__file__).parents[3]
_PROGRAM = """#!{python} -IS
import sys
sys.path.insert(0, {repository!r})
from tests.fakes.firecracker.{module} import main
main({settings!r})
"""


class Stub:
    """The programs ``firecracker`` and ``jailer`` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.firecracker, self.jailer = folder / "firecracker", folder / "jailer"
        self._settings = folder / "stub.settings.json"

    def configure(self, **changes: Any) -> None:
        """Change settings (`settings.DEFAULTS`): faults of programs that run, everything of those that start later."""
        if unknown := changes.keys() - DEFAULTS.keys():
            raise ValueError(f"unknown settings: {unknown}")
        self._settings.touch()
        with self._settings.open("r+b", buffering=0) as file:  # in place: programs that run have it open
            old = file.read()
            new = json.dumps(json.loads(old or "{}") | changes).encode()
            os.pwrite(file.fileno(), new.ljust(len(old)), 0)

    def fail(self, call: str, do: str, **details: Any) -> None:
        """Add a fault (`settings.Fault`)."""
        faults = json.loads(self._settings.read_text()).get("faults", [])
        self.configure(faults=[*faults, Fault(call, do, **details)._asdict()])

    def recover(self) -> None:
        """Remove all faults."""
        self.configure(faults=[])


def install(folder: Path, **settings: Any) -> Stub:
    """Write both programs into ``folder``. They work wherever they are copied to, outside a real chroot."""
    stub = Stub(folder)
    stub.configure(python_path=[sysconfig.get_path("purelib"), str(_REPOSITORY / "src")], **settings)
    for path, module in ((stub.firecracker, "program"), (stub.jailer, "jailer")):
        path.write_text(
            _PROGRAM.format(
                python=sys.executable,
                repository=str(_REPOSITORY),
                module=module,
                settings=str(stub.folder / "stub.settings.json"),
            )
        )
        path.chmod(0o755)
    return stub


def requests(api_socket: Path) -> list[dict[str, Any]]:
    """Return the requests that a stub has received on this socket, if its settings say ``record``."""
    return read_record(api_socket.with_name(api_socket.name + ".requests.jsonl"))


def read_record(path: Path) -> list[dict[str, Any]]:
    """Return the requests in a file that the settings name as the ``record``."""
    return [json.loads(line) for line in path.read_text().splitlines()]
