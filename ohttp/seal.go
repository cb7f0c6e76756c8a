package ohttp

import (
	"bufio"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// format tells the whole and the chunked encapsulation apart.
type format bool

const (
	whole   format = false // RFC 9458
	chunked format = true  // draft-ietf-ohai-chunked-ohttp-08
)

// info is HPKE's info parameter. It binds the context to the format and to the
// request's header, so that neither can be changed on the way.
func (f format) info(h header) []byte {
	label := "message/bhttp request"
	if f == chunked {
		label = "message/bhttp chunked request"
	}
	return append(append([]byte(label), 0), h[:]...)
}

// responseLabel is the exporter context from which the answer's key is made.
func (f format) responseLabel() string {
	if f == chunked {
		return "message/bhttp chunked response"
	}
	return "message/bhttp response"
}

// A sealed message is one context with a counter: each chunk has the next nonce,
// which fixes their order, and the last one has other associated data, which fixes
// the end. The lengths in between are not authenticated and need not be.
var aadFinal = []byte("final")

func aad(final bool) []byte {
	if final {
		return aadFinal
	}
	return nil
}

// chunkOpener opens the chunks of one message in order. The result of open is valid
// until the next call and may share memory with ct.
type chunkOpener interface {
	open(ct []byte, final bool) ([]byte, error)
}

// requestOpener opens the chunks of a request; HPKE keeps the counter.
type requestOpener struct{ ctx *hpke.Recipient }

func (o requestOpener) open(ct []byte, final bool) ([]byte, error) {
	return o.ctx.Open(aad(final), ct)
}

// exporter is either end of an HPKE context.
type exporter interface {
	Export(context string, length int) ([]byte, error)
}

// chunkCipher seals or opens the chunks of an answer, without allocating.
type chunkCipher struct {
	aead  cipher.AEAD
	base  [nonceSize]byte
	nonce [nonceSize]byte
	seq   uint64
}

// newChunkCipher derives the key of the answer to the request with this context
// and enc (RFC 9458 section 4.4; the draft differs in the label). The key is fresh
// for every answer even if a request were opened twice: nonce is chosen at random
// by the node, and goes into the derivation. It has suite.secretSize octets.
func newChunkCipher(ctx exporter, f format, suite Suite, enc, nonce []byte) (*chunkCipher, error) {
	secret, err := ctx.Export(f.responseLabel(), suite.secretSize())
	if err != nil {
		return nil, err
	}
	prk, err := hkdf.Extract(sha256.New, secret, slices.Concat(enc, nonce))
	if err != nil {
		return nil, err
	}
	key, err := hkdf.Expand(sha256.New, prk, "key", suite.keySize())
	if err != nil {
		return nil, err
	}
	base, err := hkdf.Expand(sha256.New, prk, "nonce", nonceSize)
	if err != nil {
		return nil, err
	}
	aead, err := suite.aead(key)
	if err != nil {
		return nil, err
	}
	return &chunkCipher{aead: aead, base: [nonceSize]byte(base)}, nil
}

// next returns the next chunk's nonce: the base nonce XOR the chunk's number, so no
// nonce repeats under this key.
func (c *chunkCipher) next() []byte {
	c.nonce = c.base
	tail := c.nonce[nonceSize-8:]
	binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^c.seq)
	if c.seq++; c.seq == 0 {
		panic("ohttp: internal error: chunk counter wrapped")
	}
	return c.nonce[:]
}

// seal appends the ciphertext of one chunk to dst.
func (c *chunkCipher) seal(dst, plaintext []byte, final bool) []byte {
	return c.aead.Seal(dst, c.next(), plaintext, aad(final))
}

func (c *chunkCipher) open(ct []byte, final bool) ([]byte, error) {
	return c.aead.Open(ct[:0], c.next(), ct, aad(final))
}

// appendChunkHeader appends what precedes a chunk with n octets of plaintext: the
// length of its ciphertext, or 0 before the final one, which runs to the end.
func appendChunkHeader(b []byte, n int, final bool) []byte {
	if final {
		return append(b, 0)
	}
	return appendVarint(b, uint64(n+tagSize))
}

// sealedReader reads the plaintext of a sealed message. io.EOF comes only after the
// final chunk has opened; a message that ends earlier gives ErrTruncated.
type sealedReader struct {
	r      *bufio.Reader
	opener chunkOpener
	format format
	buf    []byte // ciphertext of the current chunk, reused
	plain  []byte // what is left of its plaintext; may share buf
	final  bool   // the final chunk is the current one
	err    error  // sticky
}

func newSealedReader(r *bufio.Reader, o chunkOpener, f format) *sealedReader {
	return &sealedReader{r: r, opener: o, format: f}
}

func (s *sealedReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.fill(); err != nil {
		return 0, err
	}
	n := copy(p, s.plain)
	s.plain = s.plain[n:]
	return n, nil
}

func (s *sealedReader) ReadByte() (byte, error) {
	if err := s.fill(); err != nil {
		return 0, err
	}
	c := s.plain[0]
	s.plain = s.plain[1:]
	return c, nil
}

// fill opens chunks until there is plaintext to read.
func (s *sealedReader) fill() error {
	for len(s.plain) == 0 && s.err == nil {
		if s.final {
			s.err = io.EOF
			break
		}
		s.plain, s.err = s.next()
	}
	if len(s.plain) > 0 {
		return nil
	}
	return s.err
}

// next reads and opens one chunk, or the whole message.
func (s *sealedReader) next() ([]byte, error) {
	if s.format == whole {
		return s.last(maxWhole, false)
	}
	n, err := readVarint(s.r)
	switch {
	case err != nil:
		return nil, truncated(err)
	case n == 0:
		return s.last(maxChunk, true)
	case n > maxChunk+tagSize:
		return nil, errOversized
	case n <= tagSize:
		return nil, errEmpty
	}
	s.grow(int(n))
	if _, err := io.ReadFull(s.r, s.buf[:n]); err != nil {
		return nil, truncated(err)
	}
	plain, err := s.opener.open(s.buf[:n], false)
	if err != nil {
		return nil, errOpen
	}
	return plain, nil
}

// last reads what is left of the message, at most limit octets of plaintext, and
// opens it as the last piece.
func (s *sealedReader) last(limit int, final bool) ([]byte, error) {
	n := 0
	for {
		if n > limit+tagSize {
			if s.format == whole {
				return nil, errTooLarge
			}
			return nil, errOversized
		}
		if n == cap(s.buf) {
			// 1 KiB, 5 KiB, all of a chunk: most messages are small. A whole message grows
			// by halves, so that memory is never far past what came.
			s.grow(min(n+max(min(4*n, n/2+maxChunk), 1024), limit+tagSize+1))
		}
		m, err := s.r.Read(s.buf[n:cap(s.buf)])
		if n += m; err == io.EOF {
			break
		} else if err != nil {
			return nil, truncated(err)
		}
	}
	plain, err := s.opener.open(s.buf[:n], final)
	if err != nil {
		// Altered or cut short: either way the message's end did not arrive.
		return nil, fmt.Errorf("%w: %w", errOpen, ErrTruncated)
	}
	s.final = true
	return plain, nil
}

// grow makes buf hold n octets, keeping what it holds.
func (s *sealedReader) grow(n int) {
	s.buf = slices.Grow(s.buf[:cap(s.buf)], max(n-cap(s.buf), 0))
	s.buf = s.buf[:cap(s.buf)]
}

// truncated says that a message broke off because of err. A clean end of the outer
// body is as little a reason to trust a short message as a broken connection.
func truncated(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrTruncated) {
		return ErrTruncated
	}
	return fmt.Errorf("%w: %w", ErrTruncated, err)
}
