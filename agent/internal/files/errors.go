// Package files serves the host's requests for the guest's filesystem; see protocol/agent.md,
// section "Files". It acts with the identity of the calling thread on paths of arbitrary bytes.
// Nothing that the guest places at a path may block the agent or fill its memory.
package files

import (
	"strconv"
	"syscall"
	"unicode"
	"unicode/utf8"

	"squib/agent/internal/process"
)

// Error codes of file requests.
const (
	NoSuchFile        process.Code = "no_such_file"
	FileExists        process.Code = "file_exists"
	NotAFile          process.Code = "not_a_file"
	IsADirectory      process.Code = "is_a_directory"
	NotADirectory     process.Code = "not_a_directory"
	DirectoryNotEmpty process.Code = "directory_not_empty"
	PermissionDenied  process.Code = "permission_denied"
	GuestDiskFull     process.Code = "guest_disk_full"
)

var codes = map[syscall.Errno]process.Code{
	syscall.ENOENT:       NoSuchFile,
	syscall.EEXIST:       FileExists,
	syscall.EISDIR:       IsADirectory,
	syscall.ENOTDIR:      NotADirectory,
	syscall.ENOTEMPTY:    DirectoryNotEmpty,
	syscall.EACCES:       PermissionDenied,
	syscall.EPERM:        PermissionDenied,
	syscall.EROFS:        PermissionDenied,
	syscall.ENOSPC:       GuestDiskFull,
	syscall.EDQUOT:       GuestDiskFull,
	syscall.EINVAL:       process.BadRequest,
	syscall.ENAMETOOLONG: process.BadRequest,
	syscall.ELOOP:        process.BadRequest,
	syscall.EBUSY:        process.BadRequest,
	syscall.ETXTBSY:      process.BadRequest,
	syscall.EXDEV:        process.BadRequest,
	syscall.EMLINK:       process.BadRequest,
	syscall.EFBIG:        process.BadRequest,
}

// fail turns an error number of the operating system into an error about path. It returns any other
// error unchanged.
func fail(path string, err error) error {
	errno, ok := err.(syscall.Errno)
	if !ok {
		return err
	}
	code, known := codes[errno]
	if !known {
		code = process.Internal
	}
	return newError(code, path, errno.Error())
}

func newError(code process.Code, path, problem string) error {
	return &process.Error{Code: code, Message: quote(path) + ": " + problem}
}

// quote returns a path for display: unchanged if all its characters are printable, otherwise
// quoted.
func quote(path string) string {
	for _, r := range path {
		if !unicode.IsPrint(r) {
			return strconv.Quote(path)
		}
	}
	if !utf8.ValidString(path) {
		return strconv.Quote(path)
	}
	return path
}
