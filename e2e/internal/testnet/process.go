// Package testnet runs the real tokenplace program, as the processes that a
// network is made of, and looks at them from outside: their lines, their
// signals, their CPU, their memory.
package testnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"token.place/e2e/internal/debian"
)

// Patience is how long a test waits for what should take far less.
const Patience = 30 * time.Second

// Root is the folder of the main module.
func Root(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	for err == nil {
		raw, e := os.ReadFile(filepath.Join(dir, "go.mod"))
		if e == nil && bytes.HasPrefix(raw, []byte("module token.place\n")) {
			return dir
		}
		if dir == filepath.Dir(dir) {
			err = errors.New("no folder above has it")
		}
		dir = filepath.Dir(dir)
	}
	tb.Fatalf("find the main module: %v", err)
	return ""
}

// Cache is a folder for what tests fetch and build, kept from run to run.
func Cache(tb testing.TB, name string) string {
	return filepath.Join(Root(tb), "e2e", ".cache", name)
}

var built sync.Once

// Binary builds cmd/tokenplace, once, and returns its path.
func Binary(tb testing.TB) string {
	tb.Helper()
	path := Cache(tb, "bin/tokenplace")
	built.Do(func() {
		unlock, err := debian.Lock(path)
		if err != nil {
			tb.Fatal(err)
		}
		defer unlock()
		// No version control stamp: it would make every commit a new build.
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, "./cmd/tokenplace")
		cmd.Dir = Root(tb)
		if out, err := cmd.CombinedOutput(); err != nil {
			tb.Fatalf("build tokenplace: %v\n%s", err, out)
		}
	})
	return path
}

// A Command is what to run. Everything but Name has a default.
type Command struct {
	Name string   // for messages
	Path string   // Binary
	Args []string // none
	Env  []string // besides PATH, HOME and TMPDIR; nothing else is inherited
	Dir  string   // the process's HOME: a folder of its own
	Work string   // the working directory: Dir
	Host *Host    // the machine's own network
}

// A Process is a running Command. It is killed when the test ends.
type Process struct {
	Command
	tb       testing.TB
	cmd      *exec.Cmd
	out, err output
	done     chan struct{} // closed when it has ended
	status   error         // set by then
}

// Start starts a process.
func Start(tb testing.TB, c Command) *Process {
	tb.Helper()
	if c.Path == "" {
		c.Path = Binary(tb)
	}
	if c.Dir == "" {
		c.Dir = filepath.Join(tb.TempDir(), c.Name)
	}
	if c.Work == "" {
		c.Work = c.Dir
	}
	if err := os.MkdirAll(filepath.Join(c.Dir, "tmp"), 0o755); err != nil {
		tb.Fatal(err)
	}
	p := &Process{Command: c, tb: tb, done: make(chan struct{})}
	p.out.line, p.err.line = make(chan struct{}), make(chan struct{})
	path, args := c.Path, c.Args
	if c.Host != nil {
		// ip becomes the program: the process id stays the same.
		path, args = "ip", append([]string{"netns", "exec", c.Host.name, path}, args...)
	}
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir = c.Work
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.Dir, "TMPDIR=" + filepath.Join(c.Dir, "tmp")}, c.Env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // not to outlive a test that was killed
	p.cmd.WaitDelay = time.Second                                        // for output that a child of its own holds open
	if err := p.cmd.Start(); err != nil {
		tb.Fatalf("start %s: %v", c.Name, err)
	}
	go func() {
		p.status = p.cmd.Wait()
		close(p.done)
	}()
	tb.Cleanup(func() {
		p.Kill()
		if tb.Failed() {
			tb.Logf("%s stdout:\n%s\n%s stderr:\n%s", c.Name, tail(p.Stdout()), c.Name, tail(p.Stderr()))
		}
	})
	return p
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// Line waits for the first line of standard output and decodes it into v.
func (p *Process) Line(v any) {
	p.tb.Helper()
	select {
	case <-p.out.line:
	case <-p.done:
	case <-time.After(Patience):
	}
	line, _, ok := strings.Cut(p.Stdout(), "\n")
	if !ok {
		p.tb.Fatalf("%s printed no line; stderr:\n%s", p.Name, tail(p.Stderr()))
	}
	if err := json.Unmarshal([]byte(line), v); err != nil {
		p.tb.Fatalf("%s printed %q: %v", p.Name, line, err)
	}
}

// Stdout and Stderr are what the process has written so far.
func (p *Process) Stdout() string { return p.out.String() }
func (p *Process) Stderr() string { return p.err.String() }

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process as kill -9 does, and waits until it is gone.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// Interrupt sends what Ctrl-C sends.
func (p *Process) Interrupt() {
	p.tb.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		p.tb.Errorf("interrupt %s: %v", p.Name, err)
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the process to end by itself and returns its exit status.
func (p *Process) Wait() int {
	p.tb.Helper()
	select {
	case <-p.done:
	case <-time.After(Patience):
		p.tb.Fatalf("%s has not ended after %v", p.Name, Patience)
	}
	return p.cmd.ProcessState.ExitCode()
}

// output collects what a process writes.
type output struct {
	line chan struct{} // closed at the first line's end

	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	had := bytes.IndexByte(o.buf.Bytes(), '\n') >= 0
	o.buf.Write(b)
	if !had && bytes.IndexByte(b, '\n') >= 0 {
		close(o.line)
	}
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// CPU is the processor time that the processes have used, all threads, user and
// system, in steps of 10 ms.
func CPU(tb testing.TB, pids ...int) time.Duration {
	tb.Helper()
	var ticks int64
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			tb.Fatal(err)
		}
		// The second field, the name in brackets, may have blanks.
		f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		var user, system int64
		if _, err := fmt.Sscan(f[11]+" "+f[12], &user, &system); err != nil {
			tb.Fatal(err)
		}
		ticks += user + system
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100 everywhere
}

// RSS is the memory that a process holds, in bytes.
func RSS(tb testing.TB, pid int) int64 {
	tb.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		tb.Fatal(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(raw), &size, &resident); err != nil {
		tb.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}
