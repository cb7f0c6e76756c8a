package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Two parsers that disagree on where a request ends let one client's bytes be
// taken for another's request. net/http accepts some requests that others read
// differently (RFC 9112 §11.2), so strictConn reads before it and passes on only
// heads and framings that have a single reading. What it refuses:

const (
	badRequestLine = iota
	badHeaderLine
	badLineEnd
	foldedLine
	bothLengths
	badLength
	badCoding
	codingIn10
	badHost
	longHead
)

// refusals says what each one means to who sent it.
var refusals = [...]string{
	badRequestLine: "the request line is not METHOD target HTTP/1.1, parted by single spaces",
	badHeaderLine:  "a header line is not \"Name: value\", or has a control character in it",
	badLineEnd:     "a line does not end in CR LF",
	foldedLine:     "a header line is folded: begin no header line with white space",
	bothLengths:    "Content-Length and Transfer-Encoding exclude each other",
	badLength:      "Content-Length must be given once, in digits",
	badCoding:      "Transfer-Encoding must be given once and be \"chunked\"",
	codingIn10:     "HTTP/1.0 has no Transfer-Encoding",
	badHost:        "Host must be given once",
	longHead:       "the header is larger than 32 KiB",
}

const (
	maxHead   = 32 << 10
	headSize  = 4 << 10       // what a connection keeps for heads and chunk sizes
	maxDigits = 15            // of a chunk's size in hexadecimal, and no more than int64 holds
	lineLimit = maxDigits + 2 // a chunk's size and CR LF

	// refusedMethod is that of the request which stands in for a refused one,
	// so that the answer takes its turn behind those before it. Its path is the
	// number of the refusal.
	refusedMethod = "REFUSED"

	// lingerTime is how long a connection stays after an answer that came
	// before its request had been read: closing it then resets it, which may
	// destroy the answer before the client has it (RFC 9112 §9.6).
	lingerTime = 500 * time.Millisecond
)

var errFraming = errors.New("malformed chunked body")

// A state is what the next byte that is not approved yet belongs to.
type state int

const (
	inHead      state = iota
	inBody            // of known length, or a chunk: left bytes of it
	inChunkSize       // the line before a chunk
	inChunkEnd        // CR LF after a chunk
	inLast            // CR LF after the last chunk; trailers are refused
	dead              // the stand-in for a refused request, then no more
)

// strictConn is a client's HTTP/1 connection. Bytes leave Read only when they
// are approved: a head whole, a body as it comes. Writes are the connection's.
type strictConn struct {
	net.Conn
	hurry <-chan struct{} // closed when nobody may linger

	buf     []byte         // approved bytes, then ones that are not yet
	store   [headSize]byte // where buf begins
	ok      int            // how many are approved
	scanned int            // how many of a head were looked at
	state   state
	chunked bool
	left    int64
	err     error       // for when nothing is left to deliver
	unread  atomic.Bool // part of a body has not arrived
	refused atomic.Bool // its owner wants no more of it

	testingOnlyHead func(framing) // called for each head that is approved
}

// framing says where the body after a head ends.
type framing struct {
	length  int64 // unless chunked
	chunked bool
}

// Read delivers what has been approved. It is called by one goroutine at a time.
func (c *strictConn) Read(p []byte) (int, error) {
	for len(p) > 0 {
		switch {
		case c.refused.Load():
			return 0, net.ErrClosed
		case c.ok > 0:
			n := copy(p, c.buf[:c.ok])
			c.buf, c.ok = c.buf[n:], c.ok-n
			return n, nil
		case c.err != nil:
			return 0, c.err
		case c.state == inBody && len(c.buf) == 0:
			// The common bytes by far go straight through.
			n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
			c.took(int64(n))
			return n, err
		}
		if !c.approve() && c.err == nil {
			if err := c.fill(); err != nil {
				return 0, err
			}
		}
	}
	return 0, nil
}

// fill reads more of a head or of a chunk's framing. Its error is not kept:
// net/http interrupts a Read with a deadline and reads on.
func (c *strictConn) fill() error {
	switch n := len(c.buf); {
	case n > headSize/2 && cap(c.buf)-n < headSize/4:
		c.buf = append(make([]byte, 0, 2*n), c.buf...)
	case n == 0 || n <= headSize/2 && cap(c.buf)-n < headSize/2:
		c.buf = append(c.store[:0], c.buf...)
	}
	n, err := c.Conn.Read(c.buf[len(c.buf):cap(c.buf)])
	c.buf = c.buf[:len(c.buf)+n]
	if n > 0 {
		return nil
	}
	return err
}

// approve approves at least one more byte of buf, or returns false if it needs
// more to decide. Nothing in buf is approved yet.
func (c *strictConn) approve() bool {
	switch c.state {
	case inHead:
		return c.approveHead()
	case inBody:
		c.ok = int(min(int64(len(c.buf)), c.left))
		c.took(int64(c.ok))
	case inChunkSize:
		end := bytes.IndexByte(c.buf[:min(len(c.buf), lineLimit)], '\n')
		if end < 0 {
			return c.malformed(len(c.buf) >= lineLimit)
		}
		size, ok := chunkSize(c.buf[:end])
		if !ok {
			return c.malformed(true)
		}
		c.ok, c.left, c.state = end+1, size, inBody
		if size == 0 {
			c.state = inLast
		}
	case inChunkEnd, inLast:
		if len(c.buf) < 2 {
			return c.malformed(len(c.buf) == 1 && c.buf[0] != '\r')
		}
		if c.buf[0] != '\r' || c.buf[1] != '\n' {
			return c.malformed(true)
		}
		c.ok = 2
		if c.state == inChunkEnd {
			c.state = inChunkSize
		} else {
			c.enter(framing{})
		}
	case dead:
		c.err = io.EOF
	}
	return c.ok > 0
}

// malformed ends a body that is; the request was answered or will be by who
// reads it. It returns false for approve.
func (c *strictConn) malformed(yes bool) bool {
	if yes {
		c.err = errFraming
	}
	return false
}

// took counts bytes of a body or a chunk.
func (c *strictConn) took(n int64) {
	if c.left -= n; c.left > 0 {
		return
	}
	if c.state = inChunkEnd; !c.chunked {
		c.enter(framing{})
	}
}

// enter turns to the body that f describes, or to the next head.
func (c *strictConn) enter(f framing) {
	c.chunked, c.left, c.scanned = f.chunked, f.length, 0
	switch {
	case f.chunked:
		c.state = inChunkSize
	case f.length > 0:
		c.state = inBody
	default:
		c.state = inHead
	}
	c.unread.Store(c.state != inHead)
}

// approveHead looks for the end of a head line by line, so that a bare LF is
// found at once and a head that comes in pieces is looked at once.
func (c *strictConn) approveHead() bool {
	for at := c.scanned; ; {
		i := bytes.IndexByte(c.buf[at:min(len(c.buf), maxHead)], '\n')
		if i < 0 {
			if len(c.buf) >= maxHead {
				return c.refuseHead(longHead)
			}
			c.scanned = len(c.buf)
			return false
		}
		at += i + 1
		if at < 2 || c.buf[at-2] != '\r' {
			return c.refuseHead(badLineEnd)
		}
		if at == 2 || c.buf[at-3] != '\n' {
			if at == 2 {
				return c.refuseHead(badRequestLine) // an empty line before it
			}
			continue
		}
		f, refusal := checkHead(c.buf[:at])
		if refusal >= 0 {
			return c.refuseHead(refusal)
		}
		if c.testingOnlyHead != nil {
			c.testingOnlyHead(f)
		}
		c.ok = at
		c.enter(f)
		return true
	}
}

// refuseHead puts a request of our own in the place of the one that came.
func (c *strictConn) refuseHead(refusal int) bool {
	c.buf = []byte(refusedMethod + " /" + strconv.Itoa(refusal) + " HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
	c.ok, c.state = len(c.buf), dead
	c.unread.Store(true)
	return true
}

// refuse makes Read fail from now on, one in progress included, so that
// net/http does not go on reading what nobody wants. The answer still leaves.
func (c *strictConn) refuse() {
	c.refused.Store(true)
	c.unread.Store(true)
	c.SetReadDeadline(time.Unix(1, 0))
}

// Close closes the connection; if bytes are on their way that will not be
// read, it first says goodbye and gives the client lingerTime to hear it.
func (c *strictConn) Close() error {
	if t, ok := c.Conn.(interface{ CloseWrite() error }); ok && c.unread.Load() {
		c.SetWriteDeadline(time.Now().Add(lingerTime))
		if t.CloseWrite() == nil {
			wait := time.NewTimer(lingerTime)
			defer wait.Stop()
			select {
			case <-wait.C:
			case <-c.hurry:
			}
		}
	}
	return c.Conn.Close()
}

// checkHead reads a head, which ends in an empty line and whose lines end in
// CR LF. It returns -1, or the refusal.
func checkHead(head []byte) (f framing, refusal int) {
	line, rest, _ := bytes.Cut(head, crlf)
	old, ok := checkRequestLine(line)
	if !ok {
		return f, badRequestLine
	}
	lengths, codings, hosts := 0, 0, 0
	for {
		if line, rest, _ = bytes.Cut(rest, crlf); len(line) == 0 {
			break
		}
		if line[0] == ' ' || line[0] == '\t' {
			return f, foldedLine
		}
		name, value, ok := cutHeader(line)
		if !ok {
			return f, badHeaderLine
		}
		switch {
		case equalFold(name, "content-length"):
			if f.length, ok = decimal(value); !ok || lengths > 0 {
				return f, badLength
			}
			lengths++
		case equalFold(name, "transfer-encoding"):
			if f.chunked = equalFold(value, "chunked"); !f.chunked || codings > 0 {
				return f, badCoding
			}
			codings++
		case equalFold(name, "host"):
			hosts++
		}
	}
	switch {
	case codings > 0 && lengths > 0:
		return f, bothLengths
	case codings > 0 && old:
		return f, codingIn10
	case hosts > 1 || hosts == 0 && !old:
		return f, badHost
	}
	return f, -1
}

var crlf = []byte("\r\n")

// checkRequestLine also tells whether the version is HTTP/1.0.
func checkRequestLine(line []byte) (old, ok bool) {
	method, rest, _ := bytes.Cut(line, []byte(" "))
	target, version, _ := bytes.Cut(rest, []byte(" "))
	if len(method) == 0 || !all(method, inToken) || len(target) == 0 || !all(target, inTarget) {
		return false, false
	}
	old = string(version) == "HTTP/1.0"
	return old, old || string(version) == "HTTP/1.1"
}

// cutHeader returns the name and the value without white space around it.
func cutHeader(line []byte) (name, value []byte, ok bool) {
	name, value, ok = bytes.Cut(line, []byte(":"))
	return name, bytes.Trim(value, " \t"), ok && len(name) > 0 && all(name, inToken) && all(value, inText)
}

// equalFold compares ASCII; s is lower case.
func equalFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range b {
		c := b[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

func decimal(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 { // 18 nines fit into an int64
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int64(c-'0')
	}
	return n, true
}

// chunkSize reads the line before a chunk, without its LF. Extensions, which
// nobody sends and parsers disagree on, are refused.
func chunkSize(line []byte) (n int64, ok bool) {
	digits, ok := bytes.CutSuffix(line, []byte("\r"))
	if !ok || len(digits) == 0 {
		return 0, false
	}
	for _, c := range digits {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		n = n<<4 | int64(c)
	}
	return n, true
}

// What a byte may be part of: RFC 9110 §5.6.2 and §5.5, and RFC 3986 for
// targets, which have only visible ASCII.
const (
	inToken = 1 << iota
	inText
	inTarget
)

var classes = func() (t [256]uint8) {
	for i := range t {
		c := byte(i)
		if 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 {
			t[i] |= inToken
		}
		if c == '\t' || c >= ' ' && c != 0x7f {
			t[i] |= inText
		}
		if c > ' ' && c < 0x7f {
			t[i] |= inTarget
		}
	}
	return t
}()

// all tells whether every byte of b may be part of class.
func all(b []byte, class uint8) bool {
	for _, c := range b {
		if classes[c]&class == 0 {
			return false
		}
	}
	return true
}
