"""The VM-wide environment of a real VM."""

from squib import VM
from squib.paths import Home
from tests.vm.conftest import end_engine


def test_the_environment_changes_and_survives_restarts(home: Home) -> None:
    with VM(env_vars={"FIRST": "1"}) as vm:
        vm.env.set({"GREETING": "good morning", "RAW": "\udcff"}, FIRST="2")
        assert vm.run('echo "$FIRST $GREETING $RAW"').stdout_bytes == b"2 good morning \xff\n"
        vm.stop().start()
        vm.env.unset("RAW")
        end_engine(home)
        assert vm.run('echo "$FIRST $GREETING ${RAW-unset}"').stdout == "2 good morning unset\n"
        vm.pause()
        vm.env.set(FIRST="3")
        vm.resume()
        assert vm.run("echo $FIRST").stdout == "3\n"
