package ohttp

import (
	"crypto/hpke"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// sealer is the client's end of one exchange.
type sealer struct {
	key    *PublicKey
	format format
	enc    []byte
	ctx    *hpke.Sender
}

// newSealer encapsulates a fresh secret to the key. Each exchange has its own, so
// no two requests share a key or can be told to come from one client.
func newSealer(key *PublicKey, f format) (*sealer, error) {
	kdf, aead := key.suite.hpke()
	enc, ctx, err := hpke.NewSender(key.key, kdf, aead, f.info(key.header()))
	if err != nil {
		return nil, err
	}
	return &sealer{key, f, enc, ctx}, nil
}

// appendPrefix appends what an encapsulated request starts with.
func (s *sealer) appendPrefix(b []byte) []byte {
	h := s.key.header()
	return append(append(b, h[:]...), s.enc...)
}

// seal appends one chunk with its length, or in the whole format the whole message.
func (s *sealer) seal(b, plaintext []byte, final bool) ([]byte, error) {
	if s.format == chunked {
		b = appendChunkHeader(b, len(plaintext), final)
	}
	ct, err := s.ctx.Seal(aad(final && s.format == chunked), plaintext)
	return append(b, ct...), err
}

// requestBody is the body of an outer request: it seals an inner request while it
// is read. All its chunks but the last have maxChunk octets of plaintext, whatever
// pieces the inner body comes in, so that their sizes say nothing about these.
type requestBody struct {
	sealer  *sealer
	padding Padding
	req     *http.Request

	head  []byte    // encoded message up to the content, not sealed yet
	body  io.Reader // the content; nil when it has ended
	known bool      // left says how much of it there is
	left  int64
	tail  []byte // what follows the content, not sealed yet
	pad   int64  // zeros that follow; -1 before the tail is known
	total int64  // octets of plaintext so far
	plain []byte // plaintext of the current chunk
	out   []byte // sealed, not read yet
	buf   []byte // out's memory
	err   error  // sticky; io.EOF after the last chunk
}

// newRequestBody encodes the head of req. It does not read req.Body.
func newRequestBody(s *sealer, req *http.Request, padding Padding) (*requestBody, error) {
	b := &requestBody{sealer: s, padding: padding, req: req, body: req.Body, pad: -1}
	framing := byte(streamedRequest)
	switch {
	case req.Body == nil || req.Body == http.NoBody:
		b.body, b.known, framing = nil, true, knownRequest
	case req.ContentLength > 0:
		b.known, b.left, framing = true, req.ContentLength, knownRequest
	}
	fields, err := headerFields(req.Header, false, "Host", "Content-Length", "Expect", "Date")
	if err != nil {
		return nil, err
	}
	fields = append(fields, field{"date", time.Now().UTC().Format(http.TimeFormat)})
	fields = append(fields, field{"accept-encoding", paddedCoding})
	c := control{method: req.Method, scheme: req.URL.Scheme, authority: req.Host, path: req.URL.RequestURI()}
	if c.method == "" {
		c.method = http.MethodGet
	}
	if c.authority == "" {
		c.authority = req.URL.Host
	}
	m := &message{control: c}
	if _, ok := m.target(); !ok || !validHost(c.authority) || c.authority == "" {
		return nil, errors.New("not a request that can be sealed: method, scheme, host or path")
	}
	cost := len(c.method) + len(c.scheme) + len(c.authority) + len(c.path)
	if sectionCost(fields)+cost > maxFields {
		return nil, fmt.Errorf("header: %w", errTooLarge)
	}
	b.head = appendHead(nil, framing, c, fields)
	if b.known {
		b.head = appendVarint(b.head, uint64(b.left))
	}
	size := int64(maxChunk)
	if b.known {
		size = min(size, padding.request(int64(len(b.head))+b.left))
	}
	b.plain = make([]byte, 0, size)
	b.buf = s.appendPrefix(nil)
	b.out = b.buf
	return b, nil
}

// length returns how many octets the sealed request has, or -1 if only reading it
// will tell.
func (b *requestBody) length() int64 {
	if !b.known || len(b.req.Trailer) > 0 {
		return -1
	}
	n := b.padding.request(int64(len(b.head)) + b.left + int64(len(appendSection(nil, knownRequest, nil))))
	prefix := int64(len(b.out))
	if b.sealer.format == whole {
		return prefix + n + tagSize
	}
	full := (n - 1) / maxChunk // chunks before the final one
	each := int64(len(appendChunkHeader(nil, maxChunk, false))) + maxChunk + tagSize
	return prefix + full*each + 1 + (n - full*maxChunk) + tagSize
}

func (b *requestBody) Read(p []byte) (int, error) {
	for len(b.out) == 0 {
		if b.err != nil {
			return 0, b.err
		}
		b.buf = b.buf[:0]
		if b.err = b.next(); b.err == nil || b.err == io.EOF {
			b.out = b.buf
		}
	}
	n := copy(p, b.out)
	b.out = b.out[n:]
	return n, nil
}

// Close closes the inner body.
func (b *requestBody) Close() error {
	if b.req.Body == nil {
		return nil
	}
	return b.req.Body.Close()
}

// next seals the next chunk, or the whole message. With the last one it returns
// io.EOF; after any other error there must be no further chunk.
func (b *requestBody) next() error {
	b.plain = b.plain[:0]
	for {
		final, err := b.collect()
		if err != nil {
			return err
		}
		if b.sealer.format == chunked || final {
			if b.buf, err = b.sealer.seal(b.buf, b.plain, final); err == nil && final {
				err = io.EOF
			}
			return err
		}
		if len(b.plain) > maxWhole {
			return errTooLarge
		}
	}
}

// collect appends at most maxChunk octets of the message to plain and reports
// whether they are its last.
func (b *requestBody) collect() (final bool, err error) {
	start := len(b.plain)
	room := func() int { return maxChunk - (len(b.plain) - start) }
	take := func(from *[]byte) {
		n := min(len(*from), room())
		b.plain = append(b.plain, (*from)[:n]...)
		*from = (*from)[n:]
		b.total += int64(n)
	}
	take(&b.head)
	// Streamed content needs two octets of the chunk for its length.
	for b.body != nil && (room() > 2 || b.known && room() > 0) {
		if err := b.readContent(room()); err != nil {
			return false, err
		}
	}
	if b.body != nil {
		return false, nil
	}
	if b.pad < 0 && len(b.head) == 0 {
		if err := b.end(); err != nil {
			return false, err
		}
	}
	take(&b.tail)
	if len(b.tail) > 0 || b.pad < 0 {
		return false, nil
	}
	n := int(min(b.pad, int64(room())))
	b.plain = appendZeros(b.plain, n)
	b.pad -= int64(n)
	return b.pad == 0, nil
}

// readContent appends up to room octets of content with what they need around them.
// It sets body to nil when it has ended.
func (b *requestBody) readContent(room int) error {
	start := len(b.plain)
	if b.known {
		n := int(min(int64(room), b.left))
		b.plain = slices.Grow(b.plain, n)[:start+n]
		if _, err := io.ReadFull(b.body, b.plain[start:]); err != nil {
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				err = errors.New("request body shorter than its Content-Length")
			}
			return err
		}
		b.total += int64(n)
		if b.left -= int64(n); b.left == 0 {
			if n, err := io.ReadFull(b.body, make([]byte, 1)); n > 0 {
				return errors.New("request body longer than its Content-Length")
			} else if err != io.EOF {
				return err
			}
			b.body = nil
		}
		return nil
	}
	b.plain = slices.Grow(b.plain, room)[:start+room]
	n, err := io.ReadFull(b.body, b.plain[start+2:])
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		b.body = nil
	} else if err != nil {
		return err
	}
	if n == 0 {
		b.plain = b.plain[:start]
		return nil
	}
	b.plain = b.plain[:start+2+n]
	appendLength(b.plain[:start], n)
	b.total += int64(2 + n)
	return nil
}

// end fixes what follows the content: its end, the trailer section, the padding.
func (b *requestBody) end() error {
	trailer, err := headerFields(b.req.Trailer, false, "Host", "Content-Length")
	if err != nil || sectionCost(trailer) > maxFields/2 {
		return fmt.Errorf("trailer: %w", errField)
	}
	if b.known {
		b.tail = appendSection(nil, knownRequest, trailer)
	} else {
		b.tail = appendSection([]byte{0}, streamedRequest, trailer)
	}
	total := b.total + int64(len(b.tail))
	b.pad = b.padding.request(total) - total
	return nil
}
