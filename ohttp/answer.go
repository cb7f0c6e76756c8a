package ohttp

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

var errAnswer = errors.New("sealed answer cannot be sent")

// answer is the http.ResponseWriter of Next. It collects what Next writes until a
// chunk is full or Next flushes, and seals that. Like any ResponseWriter it is for
// one goroutine.
type answer struct {
	out    http.ResponseWriter
	rc     *http.ResponseController
	cipher *chunkCipher
	format format
	limits Padding

	head   bool // the request was HEAD
	padded bool // the client asked for the padded coding

	header  http.Header
	status  int      // 0 until WriteHeader
	bodyOK  bool     // the status and method allow content
	coded   bool     // the content is in the padded coding
	want    int64    // octets that Content-Length declared; -1 if none
	wrote   int64    // octets that Next wrote
	declare []string // trailers announced in the header

	unit    int    // plaintext of a chunk is a multiple of it
	size    int    // most plaintext of a chunk, a multiple of unit
	pending []byte // encoded head that is not sealed yet
	data    []byte // content that is not sealed yet
	plain   []byte // plaintext of the chunk being sealed; all of it if whole
	sealed  []byte // what goes out next; starts as the nonce
	sent    bool   // the outer header is written
	err     error  // sticky: the answer is lost
}

func newAnswer(w http.ResponseWriter, o *opened, padding Padding) (*answer, error) {
	nonce := newNonce(o.suite)
	cipher, err := newChunkCipher(o.ctx, o.format, o.suite, o.enc, nonce)
	if err != nil {
		return nil, err
	}
	return &answer{
		out: w, rc: http.NewResponseController(w), cipher: cipher, format: o.format, limits: padding,
		header: make(http.Header), want: -1, unit: 1, size: maxChunk, sealed: nonce,
	}, nil
}

func (a *answer) Header() http.Header { return a.header }

// WriteHeader fixes status and header. Informational responses are left out: a
// client of ours would skip them.
func (a *answer) WriteHeader(status int) {
	if a.status != 0 || status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		return
	}
	if status < 200 || status > 599 {
		status = http.StatusBadGateway // nothing that RFC 9292 could carry
	}
	a.status = status
	a.bodyOK = status != http.StatusNoContent && status != http.StatusNotModified
	skip := []string(nil)
	if lengths := a.header["Content-Length"]; len(lengths) > 0 {
		n, err := strconv.ParseInt(lengths[0], 10, 64)
		if err != nil || n < 0 || len(lengths) > 1 {
			skip = append(skip, "Content-Length")
		} else if a.bodyOK && !a.head {
			a.want = n
		}
	}
	a.bodyOK = a.bodyOK && !a.head
	for _, line := range a.header["Trailer"] {
		for _, name := range strings.Split(line, ",") {
			a.declare = append(a.declare, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	if a.padded && a.format == chunked {
		a.unit = a.limits.frame()
		a.size = maxChunk / a.unit * a.unit
		a.coded = a.bodyOK
	}
	a.encodeHead(append(skip, a.declare...))
}

// encodeHead writes the binary message up to its content into pending.
func (a *answer) encodeHead(skip []string) {
	h := make(http.Header, len(a.header)+1)
	for k, v := range a.header {
		if !strings.HasPrefix(k, http.TrailerPrefix) {
			h[k] = v
		}
	}
	if a.coded {
		// Content-Length would have to be that of the coded content, which is not
		// known; that the content is whole shows the final chunk.
		delete(h, "Content-Length")
		h["Content-Encoding"] = slices.Concat(h["Content-Encoding"], []string{paddedCoding})
	}
	fields, err := headerFields(h, true, skip...)
	if err != nil || sectionCost(fields) > maxFields {
		a.fail(errAnswer)
		return
	}
	a.pending = appendHead(a.pending, streamedAnswer, control{status: a.status}, fields)
}

// sectionCost is what fields cost the reader's budget.
func sectionCost(fields []field) int {
	n := 0
	for _, f := range fields {
		n += len(f.name) + len(f.value) + fieldCost
	}
	return n
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if !a.bodyOK {
		if a.head {
			return len(p), nil
		}
		return 0, http.ErrBodyNotAllowed
	}
	if a.wrote += int64(len(p)); a.want >= 0 && a.wrote > a.want {
		a.fail(http.ErrContentLength)
		return 0, http.ErrContentLength
	}
	total := len(p)
	for a.err == nil {
		n := min(len(p), a.room())
		a.data = append(a.data, p[:n]...)
		if p = p[n:]; len(p) == 0 {
			return total, nil
		}
		a.emit()
	}
	return 0, a.err
}

// chunkOverhead is what surrounds data in a chunk: the length of a chunk of binary
// content and the header of a frame.
const chunkOverhead = 2 + frameHeader

// room returns how much data still fits the next chunk.
func (a *answer) room() int {
	a.splitHead(chunkOverhead + 1)
	return a.size - chunkOverhead - len(a.pending) - len(a.data)
}

// splitHead seals the start of a head that does not leave so much room in its chunk,
// at most half of one.
func (a *answer) splitHead(room int) {
	for len(a.pending)+room > a.size && a.err == nil {
		n := a.size / 2 / a.unit * a.unit
		a.plain = append(a.plain, a.pending[:n]...)
		a.pending = a.pending[n:]
		a.seal(false)
	}
}

// Flush is FlushError without the error, for http.Flusher.
func (a *answer) Flush() { _ = a.FlushError() }

// FlushError seals what was written so far and sends it.
func (a *answer) FlushError() error {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if !a.bodyOK {
		return a.err // there is no content to pad a chunk with before the final one
	}
	if a.splitHead(chunkOverhead); len(a.pending)+len(a.data) > 0 {
		a.emit()
	}
	if a.err == nil && a.format == chunked {
		if err := a.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			a.fail(err)
		}
	}
	return a.err
}

// emit makes one chunk of what is pending, which fits.
func (a *answer) emit() {
	a.takePending()
	if a.coded {
		n := len(a.plain) + chunkOverhead + len(a.data)
		padding := roundUp(n, a.unit) - n
		a.plain = appendLength(a.plain, frameHeader+len(a.data)+padding)
		a.plain = appendFrame(a.plain, a.data, padding)
		a.data = a.data[:0]
	} else {
		a.takeData()
	}
	a.seal(false)
}

func (a *answer) takePending() {
	a.plain, a.pending = append(a.plain, a.pending...), a.pending[:0]
}

// takeData moves the data into the chunk, without padding.
func (a *answer) takeData() {
	if len(a.data) == 0 {
		return
	}
	if a.coded {
		a.plain = appendLength(a.plain, frameHeader+len(a.data))
		a.plain = appendFrame(a.plain, a.data, 0)
	} else {
		a.plain = appendLength(a.plain, len(a.data))
		a.plain = append(a.plain, a.data...)
	}
	a.data = a.data[:0]
}

// appendLength appends the length of a chunk of content in two octets, whatever it
// is, so that the padding does not depend on it.
func appendLength(b []byte, n int) []byte {
	return append(b, byte(n>>8)|0x40, byte(n))
}

// seal seals the plaintext of a chunk and writes it out. In the whole format it
// waits for the end.
func (a *answer) seal(final bool) {
	if a.format == whole && !final {
		if len(a.plain) > maxWhole {
			a.fail(errTooLarge)
		}
		return
	}
	if a.err != nil {
		return
	}
	if a.format == chunked {
		a.sealed = appendChunkHeader(a.sealed, len(a.plain), final)
	}
	// In the whole format nothing is marked as final: there is but one piece.
	a.sealed = a.cipher.seal(a.sealed, a.plain, final && a.format == chunked)
	a.plain = a.plain[:0]
	a.send()
}

// send writes what is sealed to the outer response.
func (a *answer) send() {
	if !a.sent {
		a.sent = true
		h := a.out.Header()
		h.Set("Cache-Control", "no-store")
		if a.format == chunked {
			h.Set("Content-Type", mediaChunkedRes)
			h.Set("Incremental", "?1")
		} else {
			h.Set("Content-Type", mediaResponse)
			h.Set("Content-Length", strconv.Itoa(len(a.sealed)))
		}
	}
	if _, err := a.out.Write(a.sealed); err != nil {
		a.fail(err)
	}
	a.sealed = a.sealed[:0]
}

func (a *answer) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

// finish seals what is left, with the trailers and the final chunk. After an error
// there must not be one.
func (a *answer) finish() error {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if a.want >= 0 && a.wrote != a.want {
		a.fail(http.ErrContentLength)
	}
	tail := []byte{0} // ends the content
	tail = appendSection(tail, streamedAnswer, a.trailers())
	if len(tail)+chunkOverhead > a.size/2 {
		a.fail(errAnswer)
	}
	a.splitHead(chunkOverhead + len(tail))
	if len(a.pending)+chunkOverhead+len(a.data)+len(tail) > a.size {
		a.emit()
	}
	if a.err != nil {
		return a.err
	}
	a.takePending()
	a.takeData()
	a.plain = append(a.plain, tail...)
	n := roundUp(len(a.plain), a.unit)
	if a.format == whole && a.padded {
		n = int(a.limits.request(int64(n)))
	}
	for len(a.plain) < n {
		a.plain = appendZeros(a.plain, min(n-len(a.plain), len(zeros)))
	}
	a.seal(true)
	return a.err
}

// trailers collects the trailers as net/http defines them: announced in Trailer, or
// named with http.TrailerPrefix.
func (a *answer) trailers() []field {
	h := make(http.Header)
	for _, name := range a.declare {
		if v, ok := a.header[name]; ok {
			h[name] = v
		}
	}
	for k, v := range a.header {
		if name, ok := strings.CutPrefix(k, http.TrailerPrefix); ok {
			h[http.CanonicalHeaderKey(name)] = v
		}
	}
	fields, _ := headerFields(h, true, "Content-Length", "Content-Encoding", "Host")
	return fields
}
