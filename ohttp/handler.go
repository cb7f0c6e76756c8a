package ohttp

import (
	"bufio"
	"context"
	"crypto/hpke"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// Handler opens sealed requests, has Next serve what is in them, and seals its
// answer while it streams: the node's side of an exchange, an Oblivious Gateway
// and Target Resource in RFC 9458's terms. It takes both formats; chunked requests
// get chunked answers.
//
// Next gets a request as if from nowhere: inner header fields only, no RemoteAddr,
// no TLS state. Its context ends with the outer request's. Each Flush of Next
// sends what it wrote so far as one sealed chunk, or several if it is more than
// 16 KiB. Trailers work as in net/http. If Next panics, the sealed answer ends
// without its final chunk and the outer one is aborted, so that it cannot pass
// for whole; the panic's value, which may quote a prompt, goes nowhere.
type Handler struct {
	Keys *Keys        // required
	Next http.Handler // required

	// Padding of the answers to clients that ask for it. The zero value means
	// DefaultPadding.
	Padding Padding
	// MaxRequest is the most octets of a sealed request. Default 65 MiB. Requests
	// in the format that has to be held in memory end at 8 MiB in any case.
	MaxRequest int64
	// BodyTimeout bounds how long a sealed request may take to arrive, where the
	// server supports read deadlines. Default 5 minutes.
	BodyTimeout time.Duration
	// OnPanic, if set, is called with the stack of a panic in Next other than
	// http.ErrAbortHandler. It may be called concurrently.
	OnPanic func(stack []byte)
}

// dateWindow is how far the Date of a request may be from the node's clock.
const dateWindow = 10 * time.Minute

// problem is an RFC 9457 answer. It never quotes what was received.
type problem struct {
	status int
	Type   string `json:"type"`
	Title  string `json:"title"`
}

var (
	probMethod    = &problem{405, problemMethod, "sealed requests are sent with POST"}
	probMedia     = &problem{415, problemMedia, "expected message/ohttp-chunked-req or message/ohttp-req"}
	probKey       = &problem{400, problemKey, "the request does not open with any key of this node"}
	probReplay    = &problem{400, problemReplay, "this request was seen before"}
	probTooLarge  = &problem{413, problemTooLarge, "the request is too large"}
	probTimeout   = &problem{408, problemMalformed, "the request did not arrive in time"}
	probMalformed = &problem{400, problemMalformed, "the message is malformed"}
	probInternal  = &problem{500, problemInternal, "internal error"}
	probDate      = &problem{400, problemDate, "the Date of the request is more than ten minutes off"}
	probExpect    = &problem{417, problemMalformed, "a sealed request cannot expect 100-continue"}
)

// write sends p as the whole answer, inside or outside the seal.
func (p *problem) write(w http.ResponseWriter) {
	body, _ := json.Marshal(p)
	w.Header().Set("Content-Type", mediaProblem)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-store")
	if p == probMethod {
		w.Header().Set("Allow", http.MethodPost)
	}
	w.WriteHeader(p.status)
	w.Write(body)
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	timeout := h.BodyTimeout
	if timeout <= 0 {
		timeout = 5 * time.Minute
	}
	// Go's servers take no notice of this any more once the body has ended, so a long
	// answer is not affected.
	_ = rc.SetReadDeadline(time.Now().Add(timeout))

	o, p := h.open(w, r)
	if p != nil {
		p.write(w)
		return
	}
	// An answer may begin before the request has ended. On HTTP/1.1 this has to be
	// asked for; elsewhere it is not supported because it is always so. A problem,
	// above, is better sent without: the client might be busy sending.
	_ = rc.EnableFullDuplex()
	a, err := newAnswer(w, o, h.Padding)
	if err != nil {
		probInternal.write(w)
		return
	}
	h.serve(a, o, r)
}

// opened is a request whose first chunk, or whole, has opened.
type opened struct {
	format format
	suite  Suite
	enc    []byte
	ctx    *hpke.Recipient
	src    *sealedReader
}

// open reads a sealed request up to and with its first chunk. What goes wrong here
// is answered outside the seal.
func (h *Handler) open(w http.ResponseWriter, r *http.Request) (*opened, *problem) {
	if r.Method != http.MethodPost {
		return nil, probMethod
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || r.Header.Get("Content-Encoding") != "" {
		return nil, probMedia
	}
	o := &opened{}
	switch media {
	case mediaRequest:
		o.format = whole
	case mediaChunkedReq:
		o.format = chunked
	default:
		return nil, probMedia
	}
	limit := h.MaxRequest
	if limit <= 0 {
		limit = 65 << 20
	}
	if r.ContentLength > limit {
		return nil, probTooLarge
	}
	if err := h.doOpen(o, http.MaxBytesReader(w, r.Body, limit)); err != nil {
		return nil, openProblem(err)
	}
	return o, nil
}

func (h *Handler) doOpen(o *opened, body io.Reader) error {
	r := bufio.NewReader(body)
	var hdr header
	if _, err := io.ReadFull(r, hdr[:]); err != nil {
		return truncated(err)
	}
	_, nenc, ok := hdr.kem().sizes()
	if !ok {
		return errUnknownKey
	}
	o.suite, o.enc = hdr.suite(), make([]byte, nenc)
	if _, err := io.ReadFull(r, o.enc); err != nil {
		return truncated(err)
	}
	key, err := h.Keys.find(hdr, o.enc, time.Now())
	if err != nil {
		return err
	}
	kdf, aead := o.suite.hpke()
	if o.ctx, err = hpke.NewRecipient(o.enc, key, kdf, aead, o.format.info(hdr)); err != nil {
		return errOpen
	}
	o.src = newSealedReader(r, requestOpener{o.ctx}, o.format)
	if o.src.plain, err = o.src.next(); err != nil {
		return err
	}
	return h.Keys.remember(hdr, key, o.enc)
}

// openProblem maps an error of doOpen to its problem.
func openProblem(err error) *problem {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, errUnknownKey), errors.Is(err, errOpen):
		return probKey
	case errors.Is(err, errReplay):
		return probReplay
	case errors.As(err, &tooLarge), errors.Is(err, errTooLarge):
		return probTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return probTimeout
	}
	return probMalformed
}

// serve has Next answer an opened request. What goes wrong from here on is answered
// inside the seal, or ends the answer without its final chunk.
func (h *Handler) serve(a *answer, o *opened, outer *http.Request) {
	ctx, cancel := context.WithCancel(outer.Context())
	defer cancel()
	req, p := innerRequest(ctx, o.src)
	if req != nil {
		a.head = req.Method == http.MethodHead
		a.padded = takePadded(req.Header)
	}
	if p != nil {
		if p == probDate {
			a.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
		}
		p.write(a)
	} else if !h.next(a, req) {
		panic(http.ErrAbortHandler)
	}
	if err := a.finish(); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// next runs Next and reports whether it returned.
func (h *Handler) next(a *answer, req *http.Request) (ok bool) {
	defer func() {
		if v := recover(); v != nil {
			if err, is := v.(error); h.OnPanic != nil && !(is && errors.Is(err, http.ErrAbortHandler)) {
				h.OnPanic(debug.Stack())
			}
		}
	}()
	h.Next.ServeHTTP(a, req)
	return true
}

// innerRequest reads the request that was sealed, up to its content, and makes of it
// what a server would hand to its handler. With a problem the request, if not nil,
// is good only for finding out how to answer.
func innerRequest(ctx context.Context, src source) (*http.Request, *problem) {
	m, err := readMessage(src, true)
	if errors.Is(err, errOpen) {
		return nil, probMalformed // it is not the key that is wrong
	} else if err != nil {
		return nil, openProblem(err)
	}
	u, ok := m.target()
	if !ok {
		return nil, probMalformed
	}
	req := (&http.Request{
		Method: m.method, URL: u, RequestURI: m.path,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: fieldsHeader(m.fields), Host: m.authority, ContentLength: m.length,
		Trailer: make(http.Header),
	}).WithContext(ctx)
	body := &content{r: m, message: m, trailer: req.Trailer, want: -1}
	req.Body = body
	if p := checkRequest(req, body); p != nil || req.ContentLength != 0 {
		return req, p
	}
	// Next has no reason to read a body that is empty, so nobody else would find out
	// that the message is cut short.
	if _, err := body.Read(make([]byte, 1)); err != io.EOF {
		return req, probMalformed
	}
	return req, nil
}

// target validates control data as RFC 9113 section 8.3.1 says for an ordinary
// request and returns the target.
func (m *message) target() (*url.URL, bool) {
	if !validName(m.method) || m.method == http.MethodConnect {
		return nil, false
	}
	if m.scheme != "https" && m.scheme != "http" {
		return nil, false
	}
	if m.path == "*" {
		return &url.URL{Path: "*"}, m.method == http.MethodOptions
	}
	if !strings.HasPrefix(m.path, "/") || strings.ContainsFunc(m.path, notPath) {
		return nil, false
	}
	u, err := url.ParseRequestURI(m.path)
	// A path such as //host/x parses as an authority; it is one only to a careless
	// reader, so it is refused rather than passed on to find out.
	return u, err == nil && u.Host == "" && !strings.HasPrefix(m.path, "//")
}

// notPath reports whether c cannot be in a path with query, nor in a host.
func notPath(c rune) bool { return c <= ' ' || c >= 0x7f || c == '#' || c == '\\' }

// checkRequest applies the rules for the header fields of a sealed request, and
// takes those out that say what the request says elsewhere.
func checkRequest(req *http.Request, body *content) *problem {
	if hosts, ok := req.Header["Host"]; ok {
		if len(hosts) > 1 || req.Host != "" && !strings.EqualFold(req.Host, hosts[0]) {
			return probMalformed
		}
		req.Host = hosts[0]
		delete(req.Header, "Host")
	}
	if req.Host != "" && !validHost(req.Host) {
		return probMalformed
	}
	if lengths, ok := req.Header["Content-Length"]; ok {
		n, err := strconv.ParseUint(lengths[0], 10, 63)
		if err != nil || len(lengths) > 1 || req.ContentLength >= 0 && req.ContentLength != int64(n) {
			return probMalformed
		}
		req.ContentLength, body.want = int64(n), int64(n)
		delete(req.Header, "Content-Length")
	}
	if _, ok := req.Header["Expect"]; ok {
		return probExpect
	}
	if dates, ok := req.Header["Date"]; ok {
		t, err := http.ParseTime(dates[0])
		if err != nil || len(dates) > 1 || time.Since(t).Abs() > dateWindow {
			return probDate
		}
	}
	return nil
}

// validHost reports whether s can be the authority of an http URI: a host with
// perhaps a port, and no user.
func validHost(s string) bool {
	u, err := url.Parse("//" + s)
	return err == nil && u.Host == s && u.User == nil && u.Path == "" && !strings.ContainsFunc(s, notPath)
}

// content is the body of an inner message: it hands over the trailer section and
// checks the declared length when it comes to the end.
type content struct {
	r       io.Reader // the message, or an unpadder of it
	message *message
	trailer http.Header // filled at the end
	want    int64       // octets that must still come; -1 if any number may
	err     error       // sticky
}

func (c *content) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.r.Read(p)
	if c.want >= 0 {
		if c.want -= int64(n); c.want < 0 {
			n, err = 0, malformed("content longer than declared")
		} else if err == io.EOF && c.want > 0 {
			err = malformed("content shorter than declared")
		}
	}
	if err == io.EOF {
		for k, v := range fieldsHeader(c.message.trailer) {
			c.trailer[k] = v
		}
	}
	c.err = err
	return n, err
}

// Close does nothing: the outer body belongs to the server.
func (c *content) Close() error { return nil }

// newNonce returns the random nonce that starts an answer.
func newNonce(s Suite) []byte {
	nonce := make([]byte, s.secretSize())
	rand.Read(nonce)
	return nonce
}
