"""The stub VMM as a program: its command line, its start and its end."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys

from tests.fakes.firecracker.arguments import Argument, ArgumentError, Parsed, invalid_id, parse, parse_version
from tests.fakes.firecracker.machine import Refused
from tests.fakes.firecracker.process import Context, Log, Options, enter_chroot, reason
from tests.fakes.firecracker.server import Server
from tests.fakes.firecracker.settings import Fault, Settings, die

BAD_ARGUMENTS = 153
BAD_CONFIGURATION = 152
_LEVELS = ("off", "trace", "debug", "info", "warn", "warning", "error")
ARGUMENTS = {
    "api-sock": Argument(value=True, default="/run/firecracker.socket"),
    "id": Argument(value=True, default="anonymous-instance"),
    "seccomp-filter": Argument(value=True, forbids="no-seccomp"),
    "no-seccomp": Argument(forbids="seccomp-filter"),
    "start-time-us": Argument(value=True),
    "start-time-cpu-us": Argument(value=True),
    "parent-cpu-time-us": Argument(value=True),
    "config-file": Argument(value=True),
    "metadata": Argument(value=True),
    "no-api": Argument(requires="config-file"),
    "log-path": Argument(value=True),
    "level": Argument(value=True),
    "module": Argument(value=True),
    "show-level": Argument(),
    "show-log-origin": Argument(),
    "metrics-path": Argument(value=True),
    "boot-timer": Argument(),
    "version": Argument(),
    "snapshot-version": Argument(),
    "describe-snapshot": Argument(value=True),
    "http-api-max-payload-size": Argument(value=True, default="51200"),
    "mmds-size-limit": Argument(value=True),
    "enable-pci": Argument(since=(1, 13)),
}
_SIGNALS = {
    signal.SIGSYS: 2, signal.SIGBUS: 149, signal.SIGSEGV: 150, signal.SIGXFSZ: 151, signal.SIGXCPU: 154,
    signal.SIGHUP: 156, signal.SIGILL: 157,
}  # fmt: skip
"""The exit status after each signal that Firecracker handles. SIGSYS has another one if a seccomp filter sent it."""
_NUMBERS = ("start-time-us", "start-time-cpu-us", "parent-cpu-time-us", "http-api-max-payload-size", "mmds-size-limit")
_NOT_OF_THE_STUB = ("config-file", "metadata", "no-api", "describe-snapshot", "snapshot-version", "help")


class Failed(Exception):
    """The end of the program: the exit status, the error as Rust's ``{:?}`` prints it, and as the log has it."""

    def __init__(self, status: int, debug: str, message: str) -> None:
        super().__init__(message)
        self.status, self.debug = status, debug


def main(settings_path: str) -> None:
    """Run the stub VMM; never return."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    settings, log = Settings(settings_path), Log()
    signal.alarm(settings.values["lifetime_s"])
    enter_chroot(settings)
    _handle_signals(log)
    status = 0
    try:
        status = _run(settings, log)
        if status:
            stopped = "RunWithApiError error: MicroVM stopped with an error: GenericError"
            raise Failed(status, "RunWithApi(MicroVMStoppedWithError(GenericError))", stopped)
        log.write("Firecracker exiting successfully. exit_code=0")
    except Failed as error:
        log.write(str(error), "error")
        print(f"Error: {error.debug}", file=sys.stderr, flush=True)
        status = error.status
        log.write(f"Firecracker exiting with error. exit_code={status}", "error")
    os._exit(status)


def _handle_signals(log: Log) -> None:
    def end(number: int, _: object) -> None:
        log.write(f"Shutting down VM after intercepting signal {number}, code 0.", "error")
        os._exit(_SIGNALS[signal.Signals(number)])

    for number in _SIGNALS:
        signal.signal(number, end)


def _run(settings: Settings, log: Log) -> int:
    version = settings.values["version"]
    try:
        parsed = parse(sys.argv[1:], ARGUMENTS, parse_version(version))
    except ArgumentError as error:
        message = f"Arguments parsing error: {error} \\n\\nFor more information try --help."
        raise Failed(BAD_ARGUMENTS, f"ParseArguments({error.debug()})", message) from None
    if "version" in parsed.values:
        print(f"Firecracker v{version}\n", flush=True)
        return 0
    for name in _NOT_OF_THE_STUB:
        if name in parsed.values:
            raise Failed(1, f"Stub({name!r})", f"the stub has no --{name}")
    _check_values(parsed)
    _obey(settings.fault("before", "launch"))
    context = _prepare(settings, log, parsed)
    server = Server(context)
    if metrics := parsed.single("metrics-path"):
        try:
            server.machine.open_metrics(metrics)
        except Refused as error:
            raise Failed(1, "MetricsInitialization", str(error)) from None
    _bind(server, context)
    log.write(f'Listening on API socket ("{context.options.api_socket}").')
    log.write("API server started.", thread="fc_api")
    _obey(settings.fault("after", "launch"))
    return server.run()


def _check_values(parsed: Parsed) -> None:
    """Check what the real program panics about."""
    if wrong := invalid_id(parsed.single("id") or ""):
        _panic(f"Invalid instance ID: {wrong}")
    for name in _NUMBERS:
        value = parsed.single(name)
        if value is not None and not value.isdigit():
            _panic(f"'{name}' parameter expected to be of 'u64' type.: ParseIntError {{ kind: InvalidDigit }}")


def _panic(message: str) -> None:
    """End as Rust does: by SIGABRT, here without a core file."""
    print(f"thread 'main' panicked at stub.rs:1:\n{message}", file=sys.stderr, flush=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


def _prepare(settings: Settings, log: Log, parsed: Parsed) -> Context:
    instance_id = parsed.single("id") or ""
    log.instance_id = instance_id
    level = (parsed.single("level") or "info").lower()
    if level not in _LEVELS:
        wrong = f"Failed to parse string to level filter: {level}"
        message = f"Invalid value for logger level: {wrong}.Possible values: [Error, Warning, Info, Debug]"
        raise Failed(BAD_CONFIGURATION, f'InvalidLogLevel(LevelFilterFromStrError("{level}"))', message)
    log.level = level.replace("warning", "warn")
    log.show_level, log.show_origin = "show-level" in parsed.values, "show-log-origin" in parsed.values
    if path := parsed.single("log-path"):
        try:
            log.open(path)
        except OSError as error:
            raise Failed(
                1, "LoggerInitialization", f"Could not initialize logger: Failed to open target file: {reason(error)}"
            ) from None
    log.write(f"Running Firecracker v{settings.values['version']}")
    options = Options(
        instance_id,
        parsed.single("api-sock") or "",
        int(parsed.single("http-api-max-payload-size") or "0"),
        "enable-pci" in parsed.values,
    )
    return Context(settings, options, log)


def _bind(server: Server, context: Context) -> None:
    try:
        server.bind()
    except OSError as error:
        path = context.options.api_socket
        if error.errno == errno.EADDRINUSE:
            failed = f"Failed to open the API socket at: {path}. Check that it is not already used."
            raise Failed(1, f'RunWithApi(FailedToBindSocket("{path}"))', f"RunWithApiError error: {failed}") from None
        failed = f"Failed to bind and run the HTTP server: IO error: {reason(error)}"
        raise Failed(1, "RunWithApi(FailedToBindAndRunHttpServer)", f"RunWithApiError error: {failed}") from None


def _obey(fault: Fault | None) -> None:
    """Misbehave at the launch."""
    if fault is None:
        return
    while fault.do == "hang":
        signal.pause()
    if fault.do == "die":
        die(fault)
    raise Failed(fault.status or 1, f"RunWithApi({fault.message})", f"RunWithApiError error: {fault.message}")
