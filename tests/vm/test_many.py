"""Many VMs at once: from many threads of one program and from many programs."""

import concurrent.futures
import subprocess
import sys

from squib import VM
from squib.paths import Home

COUNT = 20


def test_twenty_vms_from_twenty_threads(home: Home) -> None:
    def live(number: int) -> tuple[str, str]:
        with VM() as vm:
            return vm.vm_id, vm.run(["sh", "-c", f"echo {number} > /x; cat /x"], check=True).stdout

    with concurrent.futures.ThreadPoolExecutor(COUNT) as pool:
        results = list(pool.map(live, range(COUNT)))
    assert len({vm_id for vm_id, _ in results}) == COUNT
    assert [output for _, output in results] == [f"{number}\n" for number in range(COUNT)]
    assert VM.list() == []


def test_twenty_vms_from_five_programs(home: Home) -> None:
    code = f"""
from squib import VM
vms = [VM().start() for _ in range({COUNT // 5})]
for vm in vms:
    print(vm.vm_id, vm.run("echo $((6*7))", check=True).stdout, end="")
for vm in vms:
    vm.delete()
"""
    programs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE)
        for _ in range(5)
    ]
    lines = []
    for program in programs:
        output, errors = program.communicate(timeout=300)
        assert program.returncode == 0, errors
        lines += output.splitlines()
    ids, answers = zip(*(line.split() for line in lines), strict=True)
    assert len(set(ids)) == COUNT
    assert set(answers) == {"42"}
    assert VM.list() == []
