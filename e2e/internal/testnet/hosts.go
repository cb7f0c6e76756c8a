package testnet

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"token.place/e2e/internal/debian"
)

// A Host is a network namespace: a machine of its own as far as addresses go.
type Host struct {
	tb   testing.TB
	name string
	file *os.File // the namespace
}

var hosts atomic.Int32

// NewHost makes a host with nothing but a loopback interface. It skips the test
// when that takes rights that the test does not have.
func NewHost(tb testing.TB) *Host {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("only root can make network namespaces")
	}
	if err := debian.Install(tb.Context(), "ip", "iproute2"); err != nil {
		tb.Fatal(err)
	}
	h := &Host{tb: tb, name: fmt.Sprintf("tokenplace-%d-%d", os.Getpid(), hosts.Add(1))}
	ip(tb, "netns", "add", h.name)
	tb.Cleanup(func() { ip(tb, "netns", "del", h.name) })
	var err error
	if h.file, err = os.Open("/run/netns/" + h.name); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { h.file.Close() })
	h.Run("ip", "link", "set", "lo", "up")
	return h
}

func ip(tb testing.TB, args ...string) {
	tb.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		tb.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// Connect lays a cable between two hosts; each address has its prefix length.
func Connect(a *Host, addrA string, b *Host, addrB string) {
	a.tb.Helper()
	n := hosts.Add(1)
	endA, endB := fmt.Sprintf("tp%da%d", os.Getpid()%100000, n), fmt.Sprintf("tp%db%d", os.Getpid()%100000, n)
	ip(a.tb, "link", "add", endA, "netns", a.name, "type", "veth", "peer", "name", endB, "netns", b.name)
	for _, end := range []struct {
		host       *Host
		name, addr string
	}{{a, endA, addrA}, {b, endB, addrB}} {
		end.host.Run("ip", "addr", "add", end.addr, "dev", end.name)
		end.host.Run("ip", "link", "set", end.name, "up")
	}
}

// Run runs a program on the host and returns what it printed.
func (h *Host) Run(program string, args ...string) string {
	h.tb.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", h.name, program}, args...)...).CombinedOutput()
	if err != nil {
		h.tb.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Dial connects from the host to a literal address.
func (h *Host) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	inside := h.inside(func() { conn, err = new(net.Dialer).DialContext(ctx, network, addr) })
	if inside != nil {
		return nil, inside
	}
	return conn, err
}

// Listener listens on the host at a literal address.
func (h *Host) Listener(addr string) net.Listener {
	h.tb.Helper()
	var ln net.Listener
	var err error
	if inside := h.inside(func() { ln, err = net.Listen("tcp", addr) }); inside != nil {
		err = inside
	}
	if err != nil {
		h.tb.Fatalf("listen on another host: %v", err)
	}
	return ln
}

// inside calls f on a thread that is on the host: the sockets it makes are.
func (h *Host) inside(f func()) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := setns(h.file); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	f()
	// A thread must not end here: the processes that it started would, too.
	if err := setns(home); err != nil {
		return err // still locked, so nobody else gets this thread
	}
	runtime.UnlockOSThread()
	return nil
}

func setns(ns *os.File) error {
	if _, _, e := syscall.RawSyscall(sysSetns, ns.Fd(), syscall.CLONE_NEWNET, 0); e != 0 {
		return fmt.Errorf("enter network namespace: %w", e)
	}
	return nil
}
