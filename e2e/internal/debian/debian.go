// Package debian gets the programs that the tests run against, nginx and
// llama-server, as Debian packages: unpacked into a folder of the test's own,
// so that no package of the machine changes and nothing starts by itself.
package debian

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Codename is the machine's own Debian suite, such as "bookworm".
func Codename() (string, error) {
	raw, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", fmt.Errorf("which Debian is this: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(name, `"`), nil
		}
	}
	return "", errors.New("which Debian is this: os-release does not say")
}

// Fetch unpacks a package of a suite, and all that it depends on, into dir,
// unless an earlier call did. It takes the mirror from the machine's own apt
// sources and may run in several processes at once.
func Fetch(ctx context.Context, suite, dir, name string) error {
	unlock, err := Lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	done := filepath.Join(dir, ".unpacked")
	if raw, err := os.ReadFile(done); err == nil && string(raw) == suite+" "+name {
		return nil
	}
	fmt.Fprintf(os.Stderr, "e2e: fetching %s from Debian %s\n", name, suite)
	began := time.Now()
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := fetch(ctx, suite, dir, name); err != nil {
		return fmt.Errorf("fetch %s from Debian %s: %w", name, suite, err)
	}
	fmt.Fprintf(os.Stderr, "e2e: %s is there after %v\n", name, time.Since(began).Round(time.Second))
	return os.WriteFile(done, []byte(suite+" "+name), 0o644)
}

func fetch(ctx context.Context, suite, dir, name string) error {
	mirror, err := mirror()
	if err != nil {
		return err
	}
	state := dir + ".apt"
	defer os.RemoveAll(state)
	for _, sub := range []string{"lists/partial", "archives/partial", "etc"} {
		if err := os.MkdirAll(filepath.Join(state, sub), 0o755); err != nil {
			return err
		}
	}
	source := fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, mirror, suite)
	if err := os.WriteFile(filepath.Join(state, "etc/sources.list"), []byte(source), 0o644); err != nil {
		return err
	}
	// An empty status file: to apt nothing is installed, so it brings all of it,
	// libc included, and what is on the machine does not matter.
	if err := os.WriteFile(filepath.Join(state, "status"), nil, 0o644); err != nil {
		return err
	}
	options := []string{
		"-q", "-y",
		"-o", "Dir::State=" + state, "-o", "Dir::State::lists=lists", "-o", "Dir::State::status=" + state + "/status",
		"-o", "Dir::Cache=" + state, "-o", "Dir::Cache::archives=archives",
		"-o", "Dir::Etc::sourcelist=" + state + "/etc/sources.list", "-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::Etc::preferences=/dev/null", "-o", "Dir::Etc::preferencesparts=/dev/null",
		"-o", "APT::Sandbox::User=root", "-o", "APT::Install-Recommends=false",
		"-o", "Acquire::Languages=none", "-o", "Acquire::Retries=2",
		"-o", "DPkg::Post-Invoke::=", "-o", "APT::Update::Post-Invoke::=",
	}
	if err := run(ctx, "apt-get", append(options, "update")...); err != nil {
		return err
	}
	if err := run(ctx, "apt-get", append(options, "install", "--download-only", name)...); err != nil {
		return err
	}
	packages, err := filepath.Glob(filepath.Join(state, "archives/*.deb"))
	if err != nil {
		return err
	}
	for _, p := range packages {
		if err := run(ctx, "dpkg", "-x", p, dir); err != nil {
			return err
		}
	}
	return nil
}

// Install makes sure that a program is on the machine, from the package of that
// name if it is not.
func Install(ctx context.Context, program, pkg string) error {
	if _, err := exec.LookPath(program); err == nil {
		return nil
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("%s is missing, and only root can install %s", program, pkg)
	}
	unlock, err := Lock(filepath.Join(os.TempDir(), "tokenplace-e2e-apt"))
	if err != nil {
		return err
	}
	defer unlock()
	fmt.Fprintf(os.Stderr, "e2e: installing %s\n", pkg)
	install := []string{"install", "-q", "-y", "--no-install-recommends", pkg}
	if run(ctx, "apt-get", install...) == nil {
		return nil
	}
	if err := run(ctx, "apt-get", "update", "-q"); err != nil {
		return err
	}
	return run(ctx, "apt-get", install...)
}

func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%s: %w: %s", name, err, strings.Join(lines[max(0, len(lines)-3):], " / "))
	}
	return nil
}

// mirror finds where the machine takes its own Debian from.
func mirror() (string, error) {
	suite, err := Codename()
	if err != nil {
		return "", err
	}
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	for _, name := range append(files, "/etc/apt/sources.list") {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		find := oneLine
		if strings.HasSuffix(name, ".sources") {
			find = stanza
		}
		if uri := find(string(raw), suite); uri != "" {
			return uri, nil
		}
	}
	return "", fmt.Errorf("no apt source of this machine offers Debian %s", suite)
}

// oneLine finds the mirror of suite in "deb [options] URI suite components".
func oneLine(text, suite string) string {
	for line := range strings.Lines(text) {
		if _, rest, ok := strings.Cut(line, "]"); ok {
			line = "deb " + rest
		}
		f := strings.Fields(line)
		if len(f) > 3 && f[0] == "deb" && f[2] == suite {
			return f[1]
		}
	}
	return ""
}

// stanza finds the mirror of suite in deb822 form.
func stanza(text, suite string) string {
	for part := range strings.SplitSeq(text, "\n\n") {
		fields := map[string][]string{}
		for s := bufio.NewScanner(strings.NewReader(part)); s.Scan(); {
			if key, value, ok := strings.Cut(s.Text(), ":"); ok && !strings.HasPrefix(key, "#") {
				fields[key] = strings.Fields(value)
			}
		}
		if slices.Contains(fields["Suites"], suite) && len(fields["URIs"]) > 0 {
			return fields["URIs"][0]
		}
	}
	return ""
}

// Lock keeps other processes of the tests out of what is made at path.
func Lock(path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	// Closing the file gives the lock back, also when the process dies.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// Command is how to run a program that Fetch unpacked into dir: through its own
// loader, so that the machine's libraries do not matter.
func Command(dir, program string) (name string, args []string, err error) {
	for _, pattern := range []string{"lib/*-linux-gnu/ld-linux*.so.*", "usr/lib*/ld-linux*.so.*", "usr/lib/*-linux-gnu/ld-linux*.so.*"} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, f := range found {
			// A link here points at the machine's own loader.
			if info, err := os.Lstat(f); err == nil && info.Mode().IsRegular() {
				name = f
			}
		}
	}
	if name == "" {
		return "", nil, fmt.Errorf("no loader among the packages of %s", program)
	}
	var libs []string
	for _, pattern := range []string{"lib/*-linux-gnu", "usr/lib/*-linux-gnu", "usr/lib/*-linux-gnu/*"} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern))
		libs = append(libs, found...)
	}
	return name, []string{"--library-path", strings.Join(libs, ":"), filepath.Join(dir, program)}, nil
}
