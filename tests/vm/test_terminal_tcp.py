"""A terminal over TCP, by a script that uses nothing of squib but what docs/api.md says."""

import json
import subprocess
import sys

from squib import VM
from squib.paths import Home
from tests.vm.conftest import end_engine

CLIENT = """
import asyncio, json, sys
from websockets.asyncio.client import connect

async def main(url, token, vm):
    headers = {"Authorization": f"Bearer {token}"}
    async with connect(f"{url}/v1/vms/{vm}/pty", additional_headers=headers) as socket:
        await socket.send(json.dumps({"type": "start", "argv": ["sh"], "rows": 24, "cols": 80}))
        await socket.send(b"echo $((6*7)); exit 4\\r")
        output = b""
        async for message in socket:
            if isinstance(message, bytes):
                output += message
            else:
                print(message)
        print(output)

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_plain_script_with_the_websockets_library(home: Home) -> None:
    vm = VM().start()
    end_engine(home)
    command = [sys.executable, "-m", "squib", "--json", "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            ready = json.loads(server.stdout.readline())
            script = [sys.executable, "-c", CLIENT, ready["url"].replace("http", "ws"), ready["token"], vm.vm_id]
            done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            first, *_, end, output = done.stdout.splitlines()
            assert json.loads(first)["type"] == "started"
            assert "42\\r\\n" in output and json.loads(end)["exit_code"] == 4
        finally:
            server.terminate()
            server.wait()
            vm.delete()
