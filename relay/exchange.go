package relay

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"token.place/identity"
	"token.place/tunnel"
)

const (
	// bufferSize is that of the pieces exchanges are copied in: a frame of the
	// tunnel.
	bufferSize = 16 << 10

	// maxProblem bounds a node's error document.
	maxProblem = 64 << 10
)

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// The only headers that pass, written by us: what the other side sent is
// compared with them, never copied. They are shared and never changed. An empty
// User-Agent is how net/http sends none.
var (
	plainRequest   = http.Header{"Content-Type": {"message/ohttp-req"}, "User-Agent": {""}}
	chunkedRequest = http.Header{"Content-Type": {"message/ohttp-chunked-req"}, "User-Agent": {""}}

	plainAnswer   = []string{"message/ohttp-res"}
	chunkedAnswer = []string{"message/ohttp-chunked-res"}
)

// requestHeader is that of the request to the node, or nil if the client's
// request is not a sealed one. Incremental, which asks hops not to wait for the
// whole, stays here: the relay never does, and it would mark the client.
func requestHeader(h http.Header) http.Header {
	switch mediaType(h) {
	case plainRequest["Content-Type"][0]:
		return plainRequest
	case chunkedRequest["Content-Type"][0]:
		return chunkedRequest
	}
	return nil
}

// mediaType is the Content-Type without parameters, "" if there is not one.
func mediaType(h http.Header) string {
	v := h["Content-Type"]
	if len(v) != 1 {
		return ""
	}
	t, _, _ := strings.Cut(v[0], ";")
	return strings.ToLower(strings.TrimSpace(t))
}

// exchange is one that is running.
type exchange struct {
	relay  *Relay
	w      http.ResponseWriter
	req    *http.Request
	rc     http.ResponseController
	upload upload
	taking progress // of the client taking the answer
	cancel context.CancelFunc
	ends   time.Duration // when it must have ended, on the relay's clock

	mu     sync.Mutex // guards the fields below
	watch  *time.Timer
	ended  bool
	reason *problem // why check gave it up
}

// serveExchange is POST /v1/exchange/{node}.
func (r *Relay) serveExchange(w http.ResponseWriter, req *http.Request, node string) {
	header := requestHeader(req.Header)
	id, err := identity.ParseID(node)
	switch {
	case err != nil:
		r.refuse(w, req, notFound)
		return
	case header == nil:
		r.refuse(w, req, badMediaType)
		return
	case !req.ProtoAtLeast(1, 1):
		// Its end would be that of the connection, whole or not.
		r.refuse(w, req, oldVersion)
		return
	case req.ContentLength > r.cfg.MaxBody:
		r.refuse(w, req, tooLarge)
		return
	case r.hub.Conn(node) == nil:
		r.refuse(w, req, nodeUnavailable)
		return
	}
	if r.exchanges.Add(1) > int64(r.cfg.MaxExchanges) {
		r.exchanges.Add(-1)
		r.refuse(w, req, relayBusy)
		return
	}
	defer r.exchanges.Add(-1)
	ctx, cancel := context.WithCancel(req.Context())
	x := &exchange{relay: r, w: w, req: req, rc: *http.NewResponseController(w), cancel: cancel, ends: r.now() + r.cfg.MaxExchange}
	x.upload = upload{relay: r, body: req.Body, left: r.cfg.MaxBody}
	x.mu.Lock() // check may run at once
	x.watch = time.AfterFunc(x.pause(), x.check)
	x.mu.Unlock()
	defer x.end()
	if p := x.run(ctx, id, header); p != nil {
		x.end()
		r.refuse(w, req, *p)
	}
}

// run carries the exchange. If it fails before any of the answer was sent it
// returns the problem; after that it breaks the answer off.
func (x *exchange) run(ctx context.Context, id identity.ID, header http.Header) *problem {
	if p := x.prefetch(); p != nil {
		return p
	}
	out := http.Request{
		Method: http.MethodPost, URL: &url.URL{Scheme: "http", Host: string(id), Path: "/exchange"},
		Header: header, Body: &x.upload, ContentLength: x.req.ContentLength,
	}
	res, err := x.relay.hub.RoundTrip(out.WithContext(ctx))
	if err != nil {
		return x.failed(err, id)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return x.pass(res, id)
	}
	var contentType []string
	switch mediaType(res.Header) {
	case chunkedAnswer[0]:
		contentType = chunkedAnswer
	case plainAnswer[0]:
		contentType = plainAnswer
	default:
		return &nodeFailed
	}
	// HTTP/1.1 answers only when the request is over: net/http would take the
	// rest of the body from under the tunnel.
	if x.upload.done != nil {
		select {
		case <-x.upload.done:
		case <-ctx.Done():
		}
	}
	return x.copy(res, contentType, id)
}

// copy sends the answer as it comes, a flush for each piece. The status waits
// for the first piece: until then the client can be told to go elsewhere.
func (x *exchange) copy(res *http.Response, contentType []string, id identity.ID) *problem {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	flusher, _ := x.w.(interface{ FlushError() error })
	began, left := false, res.ContentLength
	for {
		n, err := res.Body.Read(buf[:])
		if n == 0 && err == nil {
			continue
		}
		if n == 0 && !began {
			return x.failed(err, id) // io.EOF too: no sealed answer is empty
		}
		if !began {
			x.begin(res.StatusCode, contentType, res.ContentLength)
			began = true
		}
		if n > 0 {
			left -= int64(n)
			x.taking.begin(x.relay.now())
			_, werr := x.w.Write(buf[:n])
			if werr == nil && left != 0 && flusher != nil {
				werr = flusher.FlushError()
			}
			x.taking.end(x.relay.now(), n)
			if werr != nil {
				panic(http.ErrAbortHandler)
			}
		}
		switch err {
		case nil:
		case io.EOF:
			if left == 0 || x.req.ProtoMajor == 1 {
				// net/http holds bytes that leave after we return.
				x.rc.SetWriteDeadline(time.Now().Add(x.relay.cfg.StallTimeout))
			}
			return nil
		default:
			// Never a clean end: what came is not the whole answer.
			panic(http.ErrAbortHandler)
		}
	}
}

// begin writes the header of an answer: all of it.
func (x *exchange) begin(status int, contentType []string, length int64) {
	if !x.upload.over() {
		endAfterAnswer(x.w, x.req)
	}
	h := x.w.Header()
	h["Content-Type"], h["Cache-Control"] = contentType, noStore
	if length >= 0 {
		h["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	}
	x.w.WriteHeader(status)
}

// pass hands on what a node says instead of a sealed answer.
func (x *exchange) pass(res *http.Response, id identity.ID) *problem {
	if res.StatusCode < 400 || res.StatusCode > 599 || mediaType(res.Header) != problemType[0] {
		return &nodeFailed
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxProblem+1))
	if err != nil {
		return x.failed(err, id)
	}
	if len(body) > maxProblem {
		return &nodeFailed
	}
	x.rc.SetWriteDeadline(time.Now().Add(x.relay.cfg.StallTimeout))
	x.begin(res.StatusCode, problemType, int64(len(body)))
	x.w.Write(body)
	return nil
}

// failed says why the exchange ended before its answer began.
func (x *exchange) failed(err error, id identity.ID) *problem {
	x.mu.Lock()
	reason := x.reason
	x.mu.Unlock()
	if reason != nil {
		return reason
	}
	if p := x.upload.problem(x.req.Context().Err() != nil); p != nil {
		return p
	}
	switch {
	case !errors.Is(err, tunnel.ErrUnavailable):
		return &nodeFailed
	case x.relay.hub.Conn(string(id)) == nil:
		return &nodeUnavailable
	}
	return &nodeBusy
}

// end lets go of all that runs for the exchange.
func (x *exchange) end() {
	x.mu.Lock()
	ended, reason := x.ended, x.reason
	x.ended = true
	x.watch.Stop()
	x.mu.Unlock()
	if ended {
		return
	}
	x.cancel()
	if !x.upload.over() || reason != nil {
		// The tunnel may be waiting in Read for a client that does not send.
		endAfterAnswer(x.w, x.req)
		x.rc.SetReadDeadline(time.Unix(1, 0))
	}
	x.upload.end()
}

// pause is how long the next check can wait.
func (x *exchange) pause() time.Duration {
	return min(x.relay.cfg.StallTimeout/2, max(0, x.ends-x.relay.now()))
}

// check gives up an exchange that takes too long or whose client stalls. It is
// one timer for all three, which most exchanges stop before it fires.
func (x *exchange) check() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ended {
		return
	}
	now, stall := x.relay.now(), x.relay.cfg.StallTimeout
	switch {
	case now >= x.ends:
		x.reason = &exchangeTimeout
	case x.upload.progress.wait(now) >= stall:
		x.reason = &slowBody
	case x.taking.wait(now) >= stall:
	default:
		x.watch.Reset(x.pause())
		return
	}
	x.cancel()
	x.upload.givenUp.Store(true)
	if x.upload.progress.waiting() {
		x.rc.SetReadDeadline(time.Unix(1, 0))
	}
	if x.taking.waiting() {
		x.rc.SetWriteDeadline(time.Unix(1, 0))
	}
}

// now is the relay's clock, which does not jump.
func (r *Relay) now() time.Duration { return time.Since(r.epoch) }
