// Package memnet is a network in memory, so that tests of connections need no
// port, no network and no real time.
//
// Its connections carry bytes through bounded buffers, honour deadlines and
// block only on channels, so they work inside a testing/synctest bubble.
package memnet

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// bufferSize is how many bytes a direction holds before a writer waits, about
// what a kernel gives a loopback socket.
const bufferSize = 256 << 10

// Pipe returns the two ends of a connection. What is written to one can be
// read from the other; closing an end lets the other read what was sent, then
// io.EOF, and fails its writes with io.ErrClosedPipe.
func Pipe() (a, b net.Conn) { return pipe("pipe-a", "pipe-b") }

func pipe(nameA, nameB string) (*conn, *conn) {
	ab, ba := newBuffer(), newBuffer()
	return &conn{in: ba, out: ab, local: addr(nameA), remote: addr(nameB)},
		&conn{in: ab, out: ba, local: addr(nameB), remote: addr(nameA)}
}

// Net is a set of listeners that know each other by address.
type Net struct {
	mu        sync.Mutex // guards the fields below
	listeners map[string]*listener
	dials     int
}

// New returns an empty network.
func New() *Net { return &Net{listeners: map[string]*listener{}} }

// Listen takes addr, any string with a port ("relay:443"), until the listener
// is closed. It is an error if the address is taken.
func (n *Net) Listen(address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, fmt.Errorf("listen on %s: address in use", address)
	}
	l := &listener{net: n, addr: addr(address), conns: make(chan net.Conn), done: make(chan struct{})}
	n.listeners[address] = l
	return l, nil
}

// Dial connects to the listener at address and returns once it accepts. It has
// the shape of net.Dialer.DialContext; network is not looked at.
func (n *Net) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.dials++
	from := fmt.Sprintf("dialer:%d", n.dials)
	n.mu.Unlock()
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: addr(address), Err: os.ErrNotExist}
	}
	a, b := pipe(from, address)
	select {
	case l.conns <- b:
		return a, nil
	case <-l.done:
		return nil, &net.OpError{Op: "dial", Net: network, Addr: addr(address), Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: network, Addr: addr(address), Err: ctx.Err()}
	}
}

type listener struct {
	net   *Net
	addr  addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.net.mu.Lock()
		delete(l.net.listeners, string(l.addr))
		l.net.mu.Unlock()
		close(l.done)
	})
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

type addr string

func (a addr) Network() string { return "mem" }
func (a addr) String() string  { return string(a) }

type conn struct {
	in, out       *buffer
	local, remote addr
}

func (c *conn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *conn) Write(p []byte) (int, error) { return c.out.write(p) }
func (c *conn) LocalAddr() net.Addr         { return c.local }
func (c *conn) RemoteAddr() net.Addr        { return c.remote }

func (c *conn) Close() error {
	c.in.close(net.ErrClosed, io.ErrClosedPipe)
	c.out.close(io.EOF, net.ErrClosed)
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	c.in.rd.set(t)
	c.out.wd.set(t)
	return nil
}
func (c *conn) SetReadDeadline(t time.Time) error  { c.in.rd.set(t); return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.out.wd.set(t); return nil }

// buffer is one direction of a connection.
type buffer struct {
	mu       sync.Mutex // guards the fields below
	data     []byte
	readErr  error // what a reader gets once data is empty; nil while open
	writeErr error // what a writer gets; nil while open
	changed  chan struct{}

	rd, wd deadline
}

func newBuffer() *buffer {
	return &buffer{changed: make(chan struct{}), rd: newDeadline(), wd: newDeadline()}
}

// wake tells everybody who waits to look again; mu is held.
func (b *buffer) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *buffer) read(p []byte) (int, error) {
	for {
		expired := b.rd.wait()
		if closed(expired) {
			return 0, os.ErrDeadlineExceeded
		}
		b.mu.Lock()
		// A reader that closed its own end gets ErrClosed even with bytes left.
		if len(b.data) > 0 && b.readErr != net.ErrClosed {
			n := copy(p, b.data)
			if b.data = b.data[n:]; len(b.data) == 0 {
				b.data = nil
			}
			b.wake()
			b.mu.Unlock()
			return n, nil
		}
		err, changed := b.readErr, b.changed
		b.mu.Unlock()
		if err != nil {
			return 0, err
		}
		if len(p) == 0 {
			return 0, nil
		}
		select {
		case <-changed:
		case <-expired:
		}
	}
}

func (b *buffer) write(p []byte) (n int, err error) {
	for {
		expired := b.wd.wait()
		if closed(expired) {
			return n, os.ErrDeadlineExceeded
		}
		b.mu.Lock()
		if b.writeErr != nil {
			defer b.mu.Unlock()
			return n, b.writeErr
		}
		if m := min(len(p), bufferSize-len(b.data)); m > 0 {
			b.data = append(b.data, p[:m]...)
			p, n = p[m:], n+m
			b.wake()
		}
		changed := b.changed
		b.mu.Unlock()
		if len(p) == 0 {
			return n, nil
		}
		select {
		case <-changed:
		case <-expired:
		}
	}
}

// close ends the direction; the first call on each side decides its error.
func (b *buffer) close(readErr, writeErr error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.readErr == nil || readErr == net.ErrClosed {
		b.readErr = readErr
	}
	if b.writeErr == nil || writeErr == net.ErrClosed {
		b.writeErr = writeErr
	}
	b.wake()
}

// deadline is a channel that closes at a time which can be moved.
type deadline struct {
	mu      *sync.Mutex // guards the fields below
	timer   *time.Timer
	expired chan struct{}
}

func newDeadline() deadline { return deadline{mu: new(sync.Mutex), expired: make(chan struct{})} }

func (d *deadline) wait() chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.expired
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.expired // the timer fired: wait until its function has closed the channel
	}
	d.timer = nil
	if closed(d.expired) {
		d.expired = make(chan struct{})
	}
	switch left := time.Until(t); {
	case t.IsZero():
	case left <= 0:
		close(d.expired)
	default:
		expired := d.expired
		d.timer = time.AfterFunc(left, func() { close(expired) })
	}
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
