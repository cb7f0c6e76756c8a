package ohttp

import (
	"bufio"
	"bytes"
	"crypto/hpke"
	"errors"
	"io"
	"net/http"
	"time"
)

// The vectors fix what the package draws at random or keeps to itself: a private
// key, the nonce of an answer, the pieces of a binary message.

const (
	Whole   = whole
	Chunked = chunked

	MaxChunk  = maxChunk
	MaxWhole  = maxWhole
	MaxFields = maxFields

	ProblemKey       = problemKey
	ProblemDate      = problemDate
	ProblemReplay    = problemReplay
	ProblemMalformed = problemMalformed
	ProblemTooLarge  = problemTooLarge
	ProblemMedia     = problemMedia
)

type (
	Format = format
	Field  = field
)

// NewField is a field line.
func NewField(name, value string) Field { return field{name, value} }

// Strings returns name and value.
func (f Field) Strings() (name, value string) { return f.name, f.value }

// KeysOf is a key set with one given key under a given id.
func KeysOf(id uint8, kem KEM, private []byte) (*Keys, error) {
	k, err := NewKeys(KeysConfig{})
	if err != nil {
		return nil, err
	}
	k.Close()
	h, err := hpke.NewKEM(uint16(kem))
	if err != nil {
		return nil, err
	}
	key, err := h.NewPrivateKey(private)
	if err != nil {
		return nil, err
	}
	k.next = id
	p := k.add(key, time.Now().Add(time.Hour))
	k.sets = [][]*privateKey{{p}}
	k.public, err = MarshalKeyConfigs([]KeyConfig{p.config()})
	return k, err
}

// Opened is a request as the node opens it.
type Opened struct {
	o     *opened
	Plain io.Reader
}

// OpenRequest opens a sealed request as a Handler does.
func OpenRequest(keys *Keys, f Format, sealed []byte) (*Opened, error) {
	o := &opened{format: f}
	if err := (&Handler{Keys: keys}).doOpen(o, bytes.NewReader(sealed)); err != nil {
		return nil, err
	}
	return &Opened{o, o.src}, nil
}

// SealResponse seals an answer, one chunk for each piece, with a nonce of the
// caller's choice.
func (o *Opened) SealResponse(nonce []byte, pieces ...[]byte) ([]byte, error) {
	c, err := newChunkCipher(o.o.ctx, o.o.format, o.o.suite, o.o.enc, nonce)
	if err != nil {
		return nil, err
	}
	return sealPieces(c, o.o.format, nonce, pieces), nil
}

func sealPieces(c *chunkCipher, f format, nonce []byte, pieces [][]byte) []byte {
	b := bytes.Clone(nonce)
	for i, p := range pieces {
		final := i == len(pieces)-1
		if f == chunked {
			b = appendChunkHeader(b, len(p), final)
		}
		b = c.seal(b, p, final && f == chunked)
	}
	return b
}

// SealedRequest is a request sealed piece by piece.
type SealedRequest struct {
	s     *sealer
	Bytes []byte
}

// SealRequest seals raw plaintext, one chunk for each piece, the last one final.
func SealRequest(key *PublicKey, f Format, pieces ...[]byte) (*SealedRequest, error) {
	s, err := newSealer(key, f)
	if err != nil {
		return nil, err
	}
	b := s.appendPrefix(nil)
	for i, p := range pieces {
		if b, err = s.seal(b, p, i == len(pieces)-1); err != nil {
			return nil, err
		}
	}
	return &SealedRequest{s, b}, nil
}

// OpenResponse reads the plaintext of a sealed answer.
func (r *SealedRequest) OpenResponse(sealed []byte) ([]byte, error) {
	n := r.s.key.suite.secretSize()
	if len(sealed) < n {
		return nil, ErrTruncated
	}
	c, err := newChunkCipher(r.s.ctx, r.s.format, r.s.key.suite, r.s.enc, sealed[:n])
	if err != nil {
		return nil, err
	}
	return io.ReadAll(newSealedReader(bufio.NewReader(bytes.NewReader(sealed[n:])), c, r.s.format))
}

// FixedCipher is a chunk cipher under a fixed key, for tests of streams without the
// work of an exchange.
func FixedCipher() *chunkCipher {
	s := suites[0]
	aead, err := s.aead(make([]byte, s.keySize()))
	if err != nil {
		panic(err)
	}
	return &chunkCipher{aead: aead}
}

// SealPieces seals pieces under FixedCipher, without a nonce before them.
func SealPieces(f Format, pieces ...[]byte) []byte { return sealPieces(FixedCipher(), f, nil, pieces) }

// NewSealedReader opens what SealPieces sealed.
func NewSealedReader(r io.Reader, f Format) io.Reader {
	return newSealedReader(bufio.NewReader(r), FixedCipher(), f)
}

// AppendChunk seals one chunk.
func AppendChunk(dst []byte, c *chunkCipher, p []byte, final bool) []byte {
	return c.seal(appendChunkHeader(dst, len(p), final), p, final)
}

// WithSuite is the key with another suite.
func (k *PublicKey) WithSuite(s Suite) *PublicKey {
	c := *k
	c.suite = s
	return &c
}

// Suites is what we support.
func Suites() []Suite { return suites }

// Message is a binary message in full.
type Message struct {
	Request                         bool
	Known                           bool
	Method, Scheme, Authority, Path string
	Status                          int
	Fields                          []Field
	Content                         []byte
	Trailer                         []Field
}

// ReadMessage decodes a binary message to its end.
func ReadMessage(b []byte, request bool) (*Message, error) {
	m, err := readMessage(bytes.NewReader(b), request)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(m)
	if err != nil {
		return nil, err
	}
	if m.length >= 0 && m.length != int64(len(content)) {
		return nil, errors.New("internal error: length")
	}
	return &Message{
		request, m.known, m.method, m.scheme, m.authority, m.path, m.status, m.fields, content, m.trailer,
	}, nil
}

// Append encodes m with its content in one chunk.
func (m *Message) Append(b []byte) []byte {
	framing := byte(knownRequest)
	if !m.Known {
		framing = streamedRequest
	}
	if !m.Request {
		framing++
	}
	b = appendHead(b, framing, control{m.Method, m.Scheme, m.Authority, m.Path, m.Status}, m.Fields)
	if m.Known || len(m.Content) > 0 {
		b = append(appendVarint(b, uint64(len(m.Content))), m.Content...)
	}
	if !m.Known {
		b = append(b, 0)
	}
	return appendSection(b, framing, m.Trailer)
}

// AppendFrame and Unpad are the padded coding.
func AppendFrame(b, data []byte, padding int) []byte { return appendFrame(b, data, padding) }

// Unpad reads r through the padded coding.
func Unpad(r io.Reader) io.Reader { return &unpadder{r: r} }

// TakePadded and StripPadded are what the coding does to headers.
func TakePadded(h http.Header) bool { return takePadded(h) }

// StripPadded removes the coding from a response's header.
func StripPadded(h http.Header) bool { return stripPadded(h) }

// PadRequest is the size that a request of n octets is padded to.
func (p Padding) PadRequest(n int64) int64 { return p.request(n) }

// Seen is how many requests the live keys remember.
func (k *Keys) Seen() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.live {
		n += len(p.seen)
	}
	return n
}

// Live is how many keys would open a request.
func (k *Keys) Live() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.live)
}

// NewAnswer is the ResponseWriter that Next gets, under a fixed key.
func NewAnswer(w http.ResponseWriter, padded bool) http.ResponseWriter {
	return &answer{
		out: w, rc: http.NewResponseController(w), cipher: FixedCipher(), format: chunked,
		header: make(http.Header), want: -1, unit: 1, size: maxChunk, padded: padded,
	}
}
