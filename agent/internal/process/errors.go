package process

import "errors"

// Code is an error code of protocol/agent.md.
type Code string

// Error codes of requests about commands.
const (
	BadRequest      Code = "bad_request"
	NoShell         Code = "no_shell"
	CommandNotFound Code = "command_not_found"
	NotExecutable   Code = "not_executable"
	ArgsTooLong     Code = "arguments_too_long"
	BadCwd          Code = "bad_cwd"
	NoSuchUser      Code = "no_such_user"
	NoSuchProcess   Code = "no_such_process"
	StdinClosed     Code = "stdin_closed"
	NoTerminal      Code = "no_terminal"
	PoweringOff     Code = "powering_off"
	NotSetUp        Code = "not_set_up"
	Internal        Code = "internal"
)

// Error is a failure with the error code that the host receives.
type Error struct {
	Code    Code
	Message string
}

func (e *Error) Error() string { return e.Message }

func fail(code Code, message string) error { return &Error{code, message} }

// CodeOf returns the error code for err. It is Internal unless err is an *Error.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}
