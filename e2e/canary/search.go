// Package canary sends an exchange whose every part is an unmistakable string
// through a network of real processes, and then looks for these strings in all
// that the relay has: its logs, its files, its answers, its memory.
package canary

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A Secret is something to look for.
type Secret struct {
	Name string
	Raw  []byte
}

// forms are the ways in which a secret may be written, by name.
func (s Secret) forms() map[string][]byte {
	all := map[string][]byte{
		s.Name:             s.Raw,
		s.Name + " in hex": []byte(hex.EncodeToString(s.Raw)),
		s.Name + " in HEX": []byte(strings.ToUpper(hex.EncodeToString(s.Raw))),
	}
	// Within a longer text base64 takes one of three shapes, and its ends depend
	// on what stands beside.
	for shift := range 3 {
		padded := append(make([]byte, shift), s.Raw...)
		from, to := (shift*8+5)/6, len(padded)*8/6
		all[fmt.Sprintf("%s in base64 (%d)", s.Name, shift)] = []byte(base64.RawStdEncoding.EncodeToString(padded)[from:to])
		all[fmt.Sprintf("%s in base64url (%d)", s.Name, shift)] = []byte(base64.RawURLEncoding.EncodeToString(padded)[from:to])
	}
	return all
}

// Find names the forms of secrets that are in text.
func Find(text []byte, secrets ...Secret) (found []string) {
	for _, s := range secrets {
		for name, form := range s.forms() {
			if bytes.Contains(text, form) {
				found = append(found, name)
			}
		}
	}
	slices.Sort(found)
	return found
}

// FindFiles looks into every file below dir, and at its name.
func FindFiles(dir string, secrets ...Secret) (found []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, name := range Find(append(raw, path...), secrets...) {
			found = append(found, name+" in "+path)
		}
		return nil
	})
	return found, err
}

// FindMemory looks into everything that a process has mapped and could read
// itself: heap, stacks, environment, what it freed and did not overwrite. The
// process stands still meanwhile. It also returns how many bytes that were.
func FindMemory(pid int, secrets ...Secret) (found []string, size int64, err error) {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return nil, 0, err
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	if err := stopped(pid); err != nil {
		return nil, 0, err
	}
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, 0, err
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, 0, err
	}
	defer mem.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var rights string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); err != nil {
			continue // vsyscall, whose address is no int64
		}
		if rights[0] != 'r' || strings.Contains(lines.Text(), "[v") {
			continue // reserved, or the kernel's
		}
		here, err := findRange(mem, from, to, secrets)
		if err != nil {
			return nil, 0, fmt.Errorf("read memory: %s: %w", lines.Text(), err)
		}
		found = append(found, here...)
		size += to - from
	}
	slices.Sort(found)
	return slices.Compact(found), size, nil
}

// findRange reads in pieces that overlap by more than any form is long.
func findRange(mem *os.File, from, to int64, secrets []Secret) (found []string, err error) {
	const piece, overlap = 4 << 20, 4 << 10
	buf := make([]byte, min(to-from, piece))
	for at := from; at < to; at += piece - overlap {
		b := buf[:min(to-at, int64(len(buf)))]
		if _, err := mem.ReadAt(b, at); err != nil {
			return nil, err
		}
		found = append(found, Find(b, secrets...)...)
	}
	return found, nil
}

// stopped waits until a process that was sent SIGSTOP stands still.
func stopped(pid int) error {
	for range 500 {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return err
		}
		if f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:])); f[0] == "T" {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("process %d does not stop", pid)
}
