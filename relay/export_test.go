package relay

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"
)

// Strict reads HTTP/1 from c strictly and calls head for each head it approves.
func Strict(c net.Conn, head func(length int64, chunked bool)) net.Conn {
	return &strictConn{Conn: c, testingOnlyHead: func(f framing) { head(f.length, f.chunked) }}
}

// ParseStatus tells whether line would be taken from a node.
func ParseStatus(line []byte) error {
	_, err := parseStatus(line)
	return err
}

// Copy copies body to w as an exchange's answer.
func (r *Relay) Copy(w http.ResponseWriter, body io.ReadCloser) {
	x := &exchange{relay: r, w: w, req: httptest.NewRequest("POST", "/", nil), rc: *http.NewResponseController(w)}
	x.upload.err = io.EOF
	res := http.Response{StatusCode: http.StatusOK, ContentLength: -1, Body: body}
	if p := x.copy(&res, chunkedAnswer, ""); p != nil {
		panic(p.title)
	}
}

// ModelList is what GET /v1/models answers.
func (r *Relay) ModelList() []byte { return r.models.get(&r.directory) }

// Progress counts n waits of a nanosecond, two for each piece, while others ask, and returns the
// longest that they were told.
func Progress(n int) (longest time.Duration) {
	var p progress
	var clock atomic.Int64
	clock.Store(1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range n {
			p.begin(time.Duration(clock.Load()))
			p.end(time.Duration(clock.Add(1)), bufferSize/2)
		}
	}()
	for {
		longest = max(longest, p.wait(time.Duration(clock.Load())))
		select {
		case <-done:
			return longest
		default:
		}
	}
}
