package tunnel

import (
	"io"
	"net/http"
	"sync"
	"time"
)

const (
	// paceSize is how much of a request's body has to come within paceTime of
	// waiting for it, so that nobody holds a stream by sending next to nothing.
	// A relay asks its clients for the same in half the time, and tells them: it
	// should be the one that gives up.
	paceSize = 64 << 10
	paceTime = time.Minute
)

// pacedBody is a request's body whose Read fails with os.ErrDeadlineExceeded when
// it comes too slowly. The time in which nobody reads does not count.
type pacedBody struct {
	io.ReadCloser
	late *time.Timer
	left time.Duration // to wait until paceSize is full
	got  int

	mu sync.Mutex          // guards the field below
	w  http.ResponseWriter // nil when the handler has returned: then it is not ours
}

// pace makes r's body fail when it does not come. The function it returns is for
// when the handler has returned.
func pace(w http.ResponseWriter, r *http.Request) (end func()) {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return func() {}
	}
	b := &pacedBody{ReadCloser: r.Body, left: paceTime, w: w}
	b.late = time.AfterFunc(time.Hour, b.fail)
	b.late.Stop()
	r.Body = b
	return b.end
}

func (b *pacedBody) fail() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.w != nil {
		http.NewResponseController(b.w).SetReadDeadline(time.Unix(1, 0))
	}
}

func (b *pacedBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.w = nil
	b.late.Stop()
}

func (b *pacedBody) Read(p []byte) (int, error) {
	began := time.Now()
	b.late.Reset(b.left)
	n, err := b.ReadCloser.Read(p)
	b.late.Stop()
	b.left -= time.Since(began)
	if b.got += n; b.got >= paceSize {
		b.got, b.left = 0, paceTime
	}
	return n, err
}
