package tunnel

import (
	"io"
	"net"
	"runtime"
	"sync"
	"time"
)

// maxQueued is how many bytes a conn accepts before they have left: a frame and
// about one TLS record (RFC 8446 §5.1). More would only queue in front of small
// answers on a slow uplink.
const maxQueued = frameSize + 512

// closeGrace is how long Close waits for bytes already accepted to leave.
const closeGrace = 250 * time.Millisecond

// conn gathers writes. HTTP/2 writes the HEADERS of a request and its DATA
// one after the other, and each write is a TLS record, a system call and a
// wake-up of the other end. conn hands what it is given to a goroutine that
// writes at once whatever there is by the time it runs: bytes never wait for
// more bytes, only for the write before them. An idle conn holds no buffer and
// no goroutine.
//
// It also hides the TLS state of the connection below from net/http, which
// would otherwise insist on the ALPN name h2, and its errors, which carry
// addresses: to HTTP/2 a connection is open or at its end.
type conn struct {
	net.Conn
	yields   bool          // see flush
	done     chan struct{} // closed by the first Close
	settings chan struct{} // closed by the second Write, see Open

	mu      sync.Mutex // guards the fields below
	changed sync.Cond  // queued, writing or err changed
	pending *[]byte    // accepted, to be written; nil when there is none
	queued  int        // bytes pending and being written
	writing bool       // a goroutine runs flush
	err     error      // what Write returns from now on
	writes  int
}

func newConn(nc net.Conn) *conn {
	c := &conn{Conn: nc, done: make(chan struct{}), settings: make(chan struct{})}
	c.changed.L = &c.mu
	return c
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, maxQueued); return &b }}

// Write accepts p; it waits only while there is no room for it.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && c.queued > 0 && c.queued+len(p) > maxQueued {
		c.changed.Wait()
	}
	if c.err != nil {
		return 0, c.err
	}
	if c.writes++; c.writes == 2 {
		close(c.settings)
	}
	if c.pending == nil {
		c.pending = buffers.Get().(*[]byte)
	}
	*c.pending = append(*c.pending, p...)
	c.queued += len(p)
	if !c.writing {
		c.writing = true
		go c.flush() // Close waits for it
	}
	return len(p), nil
}

// flush writes until nothing is pending. At the node it first lets others run
// that can: net/http's server has a handler wait until HEADERS are on their
// way before it takes the DATA. A busy relay would pay for that with its p99.
func (c *conn) flush() {
	if c.yields {
		runtime.Gosched()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for c.pending != nil && err == nil {
		b := c.pending
		c.pending = nil
		c.mu.Unlock()
		_, err = c.Conn.Write(*b)
		c.mu.Lock()
		c.queued -= len(*b)
		c.changed.Broadcast()
		if cap(*b) <= 2*maxQueued { // a node may ask for larger frames
			*b = (*b)[:0]
			buffers.Put(b)
		}
	}
	if err != nil {
		c.err, c.pending = io.ErrClosedPipe, nil
		c.abort() // the reader finds out and ends the connection
	}
	c.writing = false
	c.changed.Broadcast()
}

// Read reads from the connection; every error is io.EOF, which HTTP/2 turns
// into io.ErrUnexpectedEOF for the exchanges that are running.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		err = io.EOF
	}
	return n, err
}

// Close lets accepted bytes leave for closeGrace, closes the connection and
// returns when the goroutine that writes has ended.
func (c *conn) Close() error {
	hurry := time.AfterFunc(closeGrace, c.abort)
	defer hurry.Stop()
	c.mu.Lock()
	c.err = io.ErrClosedPipe
	select {
	case <-c.done:
	default:
		close(c.done)
	}
	c.changed.Broadcast()
	for c.writing {
		c.changed.Wait()
	}
	c.mu.Unlock()
	return c.Conn.Close()
}

// abort closes the connection below TLS: closing TLS writes an alert, and waits
// for seconds when the peer does not read.
func (c *conn) abort() { transport(c.Conn).Close() }

// transport is the connection at the bottom of nc, which encrypts or wraps it.
func transport(nc net.Conn) net.Conn {
	for {
		w, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return nc
		}
		nc = w.NetConn()
	}
}

// tune asks the kernel to find a vanished peer in about 4 s and to keep little
// unsent, so that what is small passes what is big (see unsent). It does what
// the platform can: heartbeats and flow control do not depend on it.
func tune(nc net.Conn) {
	tcp, ok := transport(nc).(*net.TCPConn)
	if !ok {
		return
	}
	tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 2})
	tuneTCP(tcp)
}
