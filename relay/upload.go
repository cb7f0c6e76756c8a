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
// piece of one direction. One goroutine moves bytes, another may ask.
type progress struct {
	mu     sync.Mutex // guards the fields below
	piece  int        // how many bytes are one; 0 means bufferSize
	bytes  int
	since  time.Duration // when the wait in progress began, 0 if none
	waited time.Duration // before it
}

func (p *progress) begin(now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = now
}

func (p *progress) end(now time.Duration, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waited += now - p.since
	p.since = 0
	if p.bytes += n; p.bytes >= max(p.piece, bufferSize) {
		p.bytes, p.waited = 0, 0
	}
}

func (p *progress) wait(now time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since == 0 {
		return 0
	}
	return now - p.since + p.waited
}

func (p *progress) waiting() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.since != 0
}

// larger makes pieces larger.
func (p *progress) larger(piece int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.piece = piece
}

// upload is a client's body on its way to the node.
type upload struct {
	relay    *Relay
	body     io.Reader
	progress progress
	done     chan struct{} // unless nil, closed when nobody reads it any more
	givenUp  atomic.Bool   // see exchange.check

	mu     sync.Mutex // held while reading; guards the fields below
	buffer *[bufferSize]byte
	large  *[largeSize]byte // unless nil, in the place of buffer
	head   []byte           // read ahead, in one of them
	left   int64            // how many bytes it may still have
	err    error            // io.EOF at the end
	closed bool

	once sync.Once // done
}

var (
	errTooLarge = errors.New("request body too large")
	errEnded    = errors.New("exchange ended")
)

const (
	// largeSize is that of the largest requests that are received whole before
	// the node is asked: what nearly all chats are padded to, sealed.
	largeSize = 68 << 10

	// maxLarge is how many of them there are at once; the others pass as they come.
	maxLarge = 1024

	// uploadPiece is how much of a larger request has to come in StallTimeout. It
	// is more than while nothing is held: the request has a place at the node.
	uploadPiece = 64 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeSize]byte) }}

// prefetch reads a small body whole before it asks for a place at the node, so
// that a client who sends slowly holds no place.
func (x *exchange) prefetch() *problem {
	u := &x.upload
	u.mu.Lock()
	buffer := u.room(x.req.ContentLength)
	if buffer == nil {
		u.mu.Unlock()
		u.progress.larger(uploadPiece)
		if x.req.ProtoMajor == 1 {
			u.done = make(chan struct{})
		}
		return nil
	}
	n := 0
	for u.err == nil {
		var m int
		m, _ = u.read(buffer[n:])
		n += m
	}
	u.head = buffer[:n]
	u.mu.Unlock()
	if u.err != io.EOF {
		return x.failed(u.err, "")
	}
	return nil
}

// room returns a buffer for a body of n bytes, or nil; u.mu is held.
func (u *upload) room(n int64) []byte {
	switch {
	case n < 0 || n > largeSize:
		return nil
	case n <= bufferSize:
		u.buffer = buffers.Get().(*[bufferSize]byte)
		return u.buffer[:]
	case u.relay.large.Add(1) > maxLarge:
		u.relay.large.Add(-1)
		return nil
	}
	u.large = largeBuffers.Get().(*[largeSize]byte)
	return u.large[:]
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
	n, err := 0, os.ErrDeadlineExceeded
	// Looked at while progress is waiting: check either finds that and ends the
	// Read, or was before it and is found here.
	if !u.givenUp.Load() {
		n, err = u.body.Read(p)
	}
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
	}
	if u.large != nil {
		largeBuffers.Put(u.large)
		u.relay.large.Add(-1)
	}
	u.buffer, u.large, u.head = nil, nil, nil
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
