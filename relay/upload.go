package relay

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// progress adds up how long the relay has waited for a client since the last
// 16 KiB of one direction. One goroutine moves bytes, another may ask.
type progress struct {
	since  atomic.Int64 // when the wait in progress began, 0 if none
	waited atomic.Int64 // before it
	bytes  int
}

func (p *progress) begin(now time.Duration) { p.since.Store(int64(now)) }

func (p *progress) end(now time.Duration, n int) {
	since := p.since.Swap(0)
	if p.bytes += n; p.bytes >= bufferSize {
		p.bytes = 0
		p.waited.Store(0)
		return
	}
	p.waited.Add(int64(now) - since)
}

func (p *progress) wait(now time.Duration) time.Duration {
	since := p.since.Load()
	if since == 0 {
		return 0
	}
	return now - time.Duration(since-p.waited.Load())
}

func (p *progress) waiting() bool { return p.since.Load() != 0 }

// upload is a client's body on its way to the node.
type upload struct {
	relay    *Relay
	body     io.Reader
	progress progress
	done     chan struct{} // unless nil, closed when nobody reads it any more

	mu     sync.Mutex // held while reading; guards the fields below
	buffer *[bufferSize]byte
	head   []byte // read ahead, in buffer
	left   int64  // how many bytes it may still have
	err    error  // io.EOF at the end
	closed bool

	once sync.Once // done
}

var (
	errTooLarge = errors.New("request body too large")
	errEnded    = errors.New("exchange ended")
)

// prefetch reads a small body whole before it asks for a place at the node, so
// that a client who sends slowly holds no place.
func (x *exchange) prefetch() *problem {
	u := &x.upload
	if n := x.req.ContentLength; n < 0 || n > bufferSize {
		if x.req.ProtoMajor == 1 {
			u.done = make(chan struct{})
		}
		return nil
	}
	u.mu.Lock()
	u.buffer = buffers.Get().(*[bufferSize]byte)
	n := 0
	for u.err == nil {
		var m int
		m, _ = u.read(u.buffer[n:])
		n += m
	}
	u.head = u.buffer[:n]
	u.mu.Unlock()
	if u.err != io.EOF {
		return x.failed(u.err, "")
	}
	return nil
}

// Read reads the body, for the tunnel.
func (u *upload) Read(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.closed:
		return 0, errEnded
	case len(u.head) > 0:
		n := copy(p, u.head)
		if u.head = u.head[n:]; len(u.head) > 0 {
			return n, nil
		}
		u.free() // the answer may be long in coming
		return n, u.err
	case u.err != nil:
		return 0, u.err
	}
	return u.read(p)
}

// read reads from the client; u.mu is held.
func (u *upload) read(p []byte) (int, error) {
	u.progress.begin(u.relay.now())
	n, err := u.body.Read(p)
	u.progress.end(u.relay.now(), n)
	if u.left -= int64(n); u.left < 0 {
		n, err = 0, errTooLarge
	}
	if err != nil {
		u.err = err
		u.finish()
	}
	return n, err
}

// Close is the tunnel's, which wants no more. The body stays net/http's: to
// close it would be to read on.
func (u *upload) Close() error {
	u.finish()
	return nil
}

func (u *upload) finish() {
	if u.done != nil {
		u.once.Do(func() { close(u.done) })
	}
}

// over tells whether the client's body has been read to its end.
func (u *upload) over() bool {
	if !u.mu.TryLock() {
		return false // the tunnel is reading
	}
	defer u.mu.Unlock()
	return u.err == io.EOF
}

// end waits for a Read in progress and lets no other begin.
func (u *upload) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	u.free()
}

// free gives the buffer back; u.mu is held.
func (u *upload) free() {
	if u.buffer != nil {
		buffers.Put(u.buffer)
		u.buffer, u.head = nil, nil
	}
}

// problem says what was wrong with the body, if that is why it ended. gone says
// that the client's request is over: net/http tells that a moment before the
// Read that found out returns.
func (u *upload) problem(gone bool) *problem {
	if gone {
		u.mu.Lock()
	} else if !u.mu.TryLock() {
		return nil // the tunnel is reading: it is not the body
	}
	defer u.mu.Unlock()
	switch {
	case u.err == nil || u.err == io.EOF:
		return nil
	case u.err == errTooLarge:
		return &tooLarge
	case errors.Is(u.err, os.ErrDeadlineExceeded):
		return &slowBody
	}
	return &badBody
}
