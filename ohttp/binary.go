package ohttp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// Binary HTTP, RFC 9292. The four framing indicators of its section 3.3.
const (
	knownRequest    = 0
	knownResponse   = 1
	streamedRequest = 2
	streamedAnswer  = 3
)

// maxFields bounds what is before and after the content of one message: control
// data, informational responses, header and trailer section together. A field
// counts as its octets and 32 more, as in RFC 9113 section 6.5.2, so that very many
// tiny ones are bounded too.
const (
	maxFields = 64 << 10
	fieldCost = 32
)

var errMalformed = errors.New("malformed binary HTTP message")

func malformed(what string) error { return fmt.Errorf("%w: %s", errMalformed, what) }

// appendVarint appends v in the variable-length encoding of RFC 9000 section 16.
func appendVarint(b []byte, v uint64) []byte {
	switch {
	case v < 1<<6:
		return append(b, byte(v))
	case v < 1<<14:
		return binary.BigEndian.AppendUint16(b, uint16(v)|1<<14)
	case v < 1<<30:
		return binary.BigEndian.AppendUint32(b, uint32(v)|2<<30)
	}
	return binary.BigEndian.AppendUint64(b, v|3<<62)
}

// readVarint reads an integer that appendVarint wrote, or a longer encoding of it,
// which the RFCs allow. io.EOF means that not one octet was there.
func readVarint(r io.ByteReader) (uint64, error) {
	c, err := r.ReadByte()
	if err != nil {
		return 0, err
	}
	v := uint64(c & 0x3f)
	for range 1<<(c>>6) - 1 {
		if c, err = r.ReadByte(); err != nil {
			return 0, noEOF(err)
		}
		v = v<<8 | uint64(c)
	}
	return v, nil
}

// noEOF makes an end of the message that must not be there an error that says so.
func noEOF(err error) error {
	if err == io.EOF {
		return malformed("truncated")
	}
	return err
}

// field is one field line. The name is as it was received, or lower case.
type field struct{ name, value string }

func appendString(b []byte, s string) []byte {
	return append(appendVarint(b, uint64(len(s))), s...)
}

// appendFields appends field lines without what delimits them.
func appendFields(b []byte, fields []field) []byte {
	for _, f := range fields {
		b = appendString(appendString(b, f.name), f.value)
	}
	return b
}

// appendSection appends a field section in the given framing.
func appendSection(b []byte, framing byte, fields []field) []byte {
	if framing >= streamedRequest {
		return append(appendFields(b, fields), 0)
	}
	n := 0
	for _, f := range fields {
		n += varintLen(len(f.name)) + len(f.name) + varintLen(len(f.value)) + len(f.value)
	}
	return appendFields(appendVarint(b, uint64(n)), fields)
}

func varintLen(n int) int {
	switch {
	case n < 1<<6:
		return 1
	case n < 1<<14:
		return 2
	}
	return 4
}

// control is the control data of a request, or the final status of a response.
type control struct {
	method, scheme, authority, path string
	status                          int
}

// appendHead appends what comes before the content: framing indicator, control data
// and header section.
func appendHead(b []byte, framing byte, c control, fields []field) []byte {
	b = append(b, framing)
	if framing == knownRequest || framing == streamedRequest {
		for _, s := range []string{c.method, c.scheme, c.authority, c.path} {
			b = appendString(b, s)
		}
	} else {
		b = appendVarint(b, uint64(c.status))
	}
	return appendSection(b, framing, fields)
}

// source is where a binary message is read from: the plaintext of a sealed one.
type source interface {
	io.Reader
	io.ByteReader
}

// message is a binary HTTP message read up to its content, which follows as an
// io.Reader: it gives io.EOF only after the trailer section was read and the rest
// of the source proved to be padding, at the source's own end.
type message struct {
	control
	fields  []field
	length  int64 // of the content; -1 if it will be known at its end
	trailer []field

	src    source
	known  bool
	budget int   // what maxFields has left
	pos    int64 // octets read so far, the content's excepted
	left   int64 // octets left of the content, or of its current chunk
	first  bool  // no chunk of the content was read
	err    error // sticky
	small  [128]byte
}

// readMessage reads a request or a response up to its content.
func readMessage(src source, request bool) (*message, error) {
	framing, err := readVarint(src)
	if err != nil {
		return nil, noEOF(err)
	}
	m := &message{src: src, budget: maxFields, first: true, length: -1}
	switch {
	case request && framing == knownRequest, !request && framing == knownResponse:
		m.known = true
	case request && framing == streamedRequest, !request && framing == streamedAnswer:
	default:
		return nil, malformed("framing indicator")
	}
	if request {
		err = m.readRequestControl()
	} else {
		err = m.readStatus()
	}
	if err != nil {
		return nil, err
	}
	if m.fields, err = m.section(true); err != nil {
		return nil, err
	}
	if !m.known {
		return m, nil
	}
	n, err := readVarint(m)
	if err == io.EOF {
		n, err = 0, nil // truncated, as RFC 9292 section 3.8 allows
	} else if err != nil {
		return nil, err
	}
	if n > math.MaxInt64/2 {
		return nil, errTooLarge
	}
	m.length, m.left = int64(n), int64(n)
	return m, nil
}

func (m *message) readRequestControl() (err error) {
	for _, s := range []*string{&m.method, &m.scheme, &m.authority, &m.path} {
		n, err := readVarint(m)
		if err != nil {
			return noEOF(err)
		}
		if *s, err = m.text(n); err != nil {
			return err
		}
	}
	return nil
}

// readStatus reads the status of a response, past any informational ones.
func (m *message) readStatus() error {
	for {
		status, err := readVarint(m)
		if err != nil {
			return noEOF(err)
		}
		if status < 100 || status > 599 {
			return malformed("status code")
		}
		if status >= 200 {
			m.status = int(status)
			return nil
		}
		if err := m.spend(fieldCost); err != nil {
			return err
		}
		if _, err := m.section(false); err != nil {
			return err
		}
	}
}

// spend takes n octets from the budget.
func (m *message) spend(n uint64) error {
	if n > uint64(m.budget) {
		return errTooLarge
	}
	m.budget -= int(n)
	return nil
}

// text reads n octets as a string.
func (m *message) text(n uint64) (string, error) {
	if err := m.spend(n); err != nil {
		return "", err
	}
	b := m.small[:min(n, uint64(len(m.small)))]
	if n > uint64(len(m.small)) {
		b = make([]byte, n)
	}
	if _, err := io.ReadFull(m.src, b); err != nil {
		if err == io.ErrUnexpectedEOF {
			err = io.EOF
		}
		return "", noEOF(err)
	}
	m.pos += int64(n)
	return string(b), nil
}

// ReadByte reads one octet that is not content.
func (m *message) ReadByte() (byte, error) {
	m.pos++
	return m.src.ReadByte()
}

// section reads a field section. With mayEnd the message may end in its place,
// which stands for an empty one.
func (m *message) section(mayEnd bool) (fields []field, err error) {
	n, err := readVarint(m)
	if err == io.EOF && mayEnd {
		return nil, nil
	} else if err != nil {
		return nil, noEOF(err)
	}
	if !m.known {
		// n is the length of the first name, or 0.
		for n > 0 {
			f, err := m.line(n)
			if err != nil {
				return nil, err
			}
			fields = append(fields, f)
			if n, err = readVarint(m); err != nil {
				return nil, noEOF(err)
			}
		}
		return fields, nil
	}
	if n > uint64(m.budget) {
		return nil, errTooLarge
	}
	end := m.pos + int64(n)
	for m.pos < end {
		n, err := readVarint(m)
		if err != nil {
			return nil, noEOF(err)
		}
		f, err := m.line(n)
		if err != nil {
			return nil, err
		}
		fields = append(fields, f)
	}
	if m.pos != end {
		return nil, malformed("field section length")
	}
	return fields, nil
}

// line reads a field line whose name has n octets.
func (m *message) line(n uint64) (f field, err error) {
	if n == 0 {
		return f, malformed("empty field name")
	}
	if err := m.spend(fieldCost); err != nil {
		return f, err
	}
	if f.name, err = m.text(n); err != nil {
		return f, err
	}
	if n, err = readVarint(m); err != nil {
		return f, noEOF(err)
	}
	if f.value, err = m.text(n); err != nil {
		return f, err
	}
	if !validName(f.name) {
		return f, malformed("field name")
	}
	if !validValue(f.value) {
		return f, malformed("field value")
	}
	return f, nil
}

// Read reads the content.
func (m *message) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if m.err == nil && m.left == 0 {
		m.err = m.advance()
	}
	if m.err != nil {
		return 0, m.err
	}
	n, err := m.src.Read(p[:min(int64(len(p)), m.left)])
	m.left -= int64(n)
	if m.err = noEOF(err); n > 0 {
		return n, nil
	}
	return 0, m.err
}

// advance goes on to the next chunk of the content, or to the message's end.
func (m *message) advance() error {
	if m.known {
		return m.end()
	}
	n, err := readVarint(m)
	switch {
	case err == io.EOF && m.first:
		return m.end()
	case err != nil:
		return noEOF(err)
	case n == 0:
		return m.end()
	case n > math.MaxInt64/2:
		return errTooLarge
	}
	m.first, m.left = false, int64(n)
	return nil
}

// end reads trailer section and padding, and returns io.EOF if all is well.
func (m *message) end() (err error) {
	if m.trailer, err = m.section(true); err != nil {
		return err
	}
	block := make([]byte, 512)
	for {
		n, err := m.src.Read(block)
		for _, c := range block[:n] {
			if c != 0 {
				return malformed("padding is not zero")
			}
		}
		if err != nil {
			return err
		}
	}
}

// isToken marks the octets of a token, RFC 9110 section 5.6.2.
var isToken = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" {
		t[c] = true
	}
	return t
}()

// validName reports whether s is a field name (or a method). It refuses
// pseudo-fields, all of which are unknown to us.
func validName(s string) bool {
	for i := range len(s) {
		if !isToken[s[i]] {
			return false
		}
	}
	return s != ""
}

// validValue reports whether s is a field value: RFC 9113 section 8.2.1, and no
// other control characters, which no HTTP/1.1 engine would be sent.
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return s == "" || s[0] != ' ' && s[0] != '\t' && s[len(s)-1] != ' ' && s[len(s)-1] != '\t'
}
