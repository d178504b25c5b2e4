package process

import (
	"path"
	"strings"
	"syscall"
)

// resolve returns the files that name may refer to for account, best first, as execvp(3) does. A
// name with a slash is relative to cwd; any other is searched in PATH. Each returned file exists
// and is executable by account.
func resolve(account Account, name, cwd, searchPath string) (paths []string, err error) {
	account.As(func() {
		if err = checkWorkingDirectory(cwd); err != nil {
			return
		}
		if strings.Contains(name, "/") {
			file := absolute(cwd, name)
			if err = executable(file); err == nil {
				paths = []string{file}
			}
			return
		}
		err = fail(CommandNotFound, name+": not found in PATH")
		if name == "" {
			return
		}
		for _, dir := range strings.Split(searchPath, ":") {
			file := absolute(cwd, path.Join(dir, name))
			problem := executable(file)
			if problem == nil {
				paths = append(paths, file)
			} else if CodeOf(problem) == NotExecutable {
				err = problem
			}
		}
	})
	if len(paths) > 0 {
		return paths, nil
	}
	return nil, err
}

// checkWorkingDirectory checks that the working directory exists and can be entered.
func checkWorkingDirectory(cwd string) error {
	var st syscall.Stat_t
	err := stat(cwd, &st)
	if err == nil && st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		err = syscall.ENOTDIR
	}
	if err == nil {
		err = canExecute(cwd)
	}
	if err != nil {
		return fail(BadCwd, cwd+": "+err.Error())
	}
	return nil
}

// executable checks that file exists and has execute permission. Only exec can tell whether its
// format is valid.
func executable(file string) error {
	var st syscall.Stat_t
	switch err := stat(file, &st); {
	case err == syscall.ENOENT || err == syscall.ENOTDIR:
		return fail(CommandNotFound, file+": no such file")
	case err != nil:
		return fail(NotExecutable, file+": "+err.Error())
	case st.Mode&syscall.S_IFMT == syscall.S_IFDIR:
		return fail(NotExecutable, file+": is a directory")
	case st.Mode&syscall.S_IFMT != syscall.S_IFREG:
		return fail(NotExecutable, file+": not a regular file")
	}
	if err := canExecute(file); err != nil {
		return fail(NotExecutable, file+": "+err.Error())
	}
	return nil
}

// execError returns the error for a failed exec of an existing file.
func execError(file string, err error) error {
	switch err {
	case syscall.ENOENT:
		return fail(NotExecutable, file+": interpreter not found")
	case syscall.ENOEXEC:
		return fail(NotExecutable, file+": exec format error: not a program for this machine, and not a script with #!")
	case syscall.EACCES, syscall.EPERM, syscall.ELOOP, syscall.ETXTBSY, syscall.ELIBBAD, syscall.EINVAL, syscall.EISDIR,
		syscall.ENAMETOOLONG, syscall.ENOTDIR:
		return fail(NotExecutable, file+": "+err.Error())
	}
	if err == syscall.E2BIG {
		return fail(ArgsTooLong, "the arguments and the environment are too long: Linux allows 131071 bytes for each string and usually 2 MiB in total")
	}
	return fail(Internal, file+": "+err.Error())
}

func absolute(cwd, name string) string {
	if path.IsAbs(name) {
		return name
	}
	return path.Join(cwd, name)
}

func stat(file string, st *syscall.Stat_t) error {
	for {
		if err := syscall.Stat(file, st); err != syscall.EINTR {
			return err
		}
	}
}
