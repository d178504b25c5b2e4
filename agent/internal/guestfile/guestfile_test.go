package guestfile

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(path, []byte("root:x:0:0"), 0o644); err != nil {
		t.Fatal(err)
	}
	content, err := Read(path)
	if err != nil || string(content) != "root:x:0:0" {
		t.Fatalf("%q, %v", content, err)
	}
}

func TestReadDoesNotWaitForAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passwd")
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if content, err := Read(path); err == nil {
		t.Fatalf("read %q from a pipe", content)
	}
}

func TestReadIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<40); err != nil {
		t.Fatal(err)
	}
	content, err := Read(path)
	if err != nil || len(content) != MaxBytes {
		t.Fatalf("%d bytes, %v", len(content), err)
	}
}
