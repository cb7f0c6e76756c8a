package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// passed are the request headers that reach the engine. Everything else, such
// as the name and version of the client's SDK, is not the engine's business.
var passed = []string{"Content-Type", "Accept", "Openai-Beta", "Anthropic-Version", "Anthropic-Beta"}

var (
	errSilent = errors.New("the engine was silent for too long")
	errClosed = errors.New("the exchange is over")
)

// forward is not httputil.ReverseProxy because that one ends a stream that
// broke like one that did not, unless a net/http server is found in the context,
// and because most of it is for headers that are not passed here.
func (e *Engine) forward(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(errClosed)
	out, body, err := e.request(ctx, r)
	if err != nil {
		e.fail(ctx, w, r, failureCode(err, body))
		return
	}
	defer body.Close()
	silence := time.AfterFunc(e.cfg.Timeout, func() { cancel(errSilent) })
	defer silence.Stop()
	heard := func() { silence.Reset(e.cfg.Timeout) }
	body.heard = heard
	res, err := e.transport.RoundTrip(out)
	if err != nil {
		e.fail(ctx, w, r, failureCode(err, body))
		return
	}
	defer res.Body.Close()
	heard()

	media, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if code := judge(r, res, media); code != "" {
		if v := res.Header.Get("Retry-After"); v != "" {
			w.Header().Set("Retry-After", v)
		}
		e.fail(ctx, w, r, code)
		return
	}
	h := w.Header()
	h.Set("Content-Type", res.Header.Get("Content-Type"))
	h.Set("Cache-Control", "no-store")
	if v := res.Header.Get("Retry-After"); v != "" {
		h.Set("Retry-After", v)
	}
	if v := res.Header.Get("Content-Length"); v != "" && res.ContentLength >= 0 {
		h.Set("Content-Length", v)
	}
	w.WriteHeader(res.StatusCode)
	if !copyAnswer(w, res, media, newWatch(r.URL.Path, media, res), heard) {
		panic(http.ErrAbortHandler)
	}
}

// request makes the request to the engine. The body that it returns is the
// client's, to be closed when the exchange is over.
func (e *Engine) request(ctx context.Context, r *http.Request) (*http.Request, *requestBody, error) {
	in := &requestBody{body: r.Body, heard: func() {}}
	u := *e.base
	u.Path += r.URL.Path
	out := (&http.Request{
		Method: r.Method, URL: &u, Host: u.Host, // Ollama answers 403 to a Host that is not its own
		Header:     http.Header{"User-Agent": nil},
		Proto:      "HTTP/1.1",
		ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	for _, name := range passed {
		if v := r.Header.Values(name); len(v) > 0 {
			out.Header[name] = v
		}
	}
	if e.cfg.Key != "" {
		out.Header.Set("Authorization", "Bearer "+e.cfg.Key)
	}
	if r.Body == nil || r.ContentLength == 0 || r.Method == http.MethodGet {
		return out, in, nil
	}
	// curl -d says that its JSON is a web form, which vLLM refuses.
	if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media != "multipart/form-data" {
		out.Header.Set("Content-Type", "application/json")
	}
	return out, in, in.sendWith(out, r.ContentLength)
}

// wholeBody is the size up to which a request is read before it is sent. An
// answer that comes before the request has ended is then no problem: HTTP/1.1
// servers drop the rest of a request when its answer begins, and with it, later,
// the end of the answer. It also gives the request a length, as small servers
// do not take chunks.
const wholeBody = 1 << 20

// sendWith makes b the body of out.
func (b *requestBody) sendWith(out *http.Request, length int64) error {
	var start bytes.Buffer
	start.Grow(int(min(max(length, 0), wholeBody)) + bytes.MinRead)
	n, err := start.ReadFrom(io.LimitReader(b, wholeBody+1))
	if err != nil {
		return err
	}
	if n <= wholeBody {
		whole := start.Bytes()
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(whole)), nil }
		out.Body, _ = out.GetBody()
		out.ContentLength = n
		// Not sent, this lets the transport try again when the engine closed a
		// connection that had been idle, at the moment it was used again.
		out.Header["Idempotency-Key"] = []string{}
		return nil
	}
	b.body = io.MultiReader(&start, b.body)
	out.Body, out.ContentLength = b, length
	return nil
}

// copyAnswer passes the answer's body on, each piece as it comes, and reports
// whether it was complete and was received.
func copyAnswer(w http.ResponseWriter, res *http.Response, media string, watch watch, heard func()) bool {
	rc := http.NewResponseController(w)
	flush := func() bool {
		err := rc.Flush()
		return err == nil || errors.Is(err, http.ErrNotSupported)
	}
	// Half of a JSON object helps nobody, so it need not be sent at once.
	streams := res.ContentLength < 0 && media != "application/json"
	if streams && !flush() {
		return false
	}
	p := pieces.Get().(*[]byte)
	defer pieces.Put(p)
	for {
		n, err := res.Body.Read(*p)
		if n > 0 {
			heard()
			watch.see((*p)[:n])
			if _, err := w.Write((*p)[:n]); err != nil {
				return false
			}
			if streams && !flush() {
				return false
			}
		}
		if err != nil {
			return err == io.EOF && watch.complete()
		}
	}
}

var pieces = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// requestBody is a request's body that can be left: after Close, which does not
// wait, nothing more is read from it. The transport may read until after the
// answer, when the body is no longer ours.
type requestBody struct {
	body   io.Reader
	heard  func()
	closed atomic.Bool
	err    atomic.Pointer[error] // what reading it gave, but for io.EOF
}

func (b *requestBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, errClosed
	}
	n, err := b.body.Read(p)
	if n > 0 {
		b.heard() // a slow upload is not a silent engine
	}
	if err != nil && err != io.EOF {
		err = &bodyError{err}
		b.err.Store(&err)
	}
	return n, err
}

func (b *requestBody) Close() error {
	b.closed.Store(true)
	return nil
}

// bodyError is what went wrong with the request, not with the engine.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "read request body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }
