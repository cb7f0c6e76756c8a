package openai

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
)

// MaxEvent bounds the data of one event and the length of one line, in bytes.
// Images stream as base64 in a single line.
const MaxEvent = 16 << 20

// ErrTooLong is what Events.Next returns for an event over MaxEvent.
var ErrTooLong = errors.New("read event: it is too long")

// Event is one event of a stream (HTML, server-sent events).
type Event struct {
	Name string // the event field, or "": chat/completions has none
	Data []byte // lines are joined by LF
}

// Done reports whether this is the "[DONE]" that ends a stream of
// chat/completions or completions.
func (e Event) Done() bool { return string(e.Data) == "[DONE]" }

// Events reads a stream of events. Its memory is at most twice MaxEvent, and a
// few KiB for streams as they are.
type Events struct {
	r          io.Reader
	buf        []byte
	start, end int  // of what is read and not yet used in buf
	scanned    int  // no line end is before it
	skipLF     bool // the last line ended in CR: an LF after it belongs to it
	begun      bool
	name       string
	data       []byte
	err        error
}

// NewEvents returns a reader of the events in r.
func NewEvents(r io.Reader) *Events { return &Events{r: r, buf: make([]byte, 4<<10)} }

// Next returns the next event that has data; comments are skipped. The data is
// valid until the next call. At the end of the stream it returns io.EOF, or
// io.ErrUnexpectedEOF in the middle of an event. It does not know which event
// is the last: without Event.Done, or what the endpoint has instead, a stream
// that ends was cut off.
func (e *Events) Next() (Event, error) {
	e.data = e.data[:0]
	name, hasData := "", false
	for {
		line, err := e.line()
		if err != nil {
			if err == io.EOF && (len(line) > 0 || hasData) {
				err = io.ErrUnexpectedEOF
			}
			return Event{}, err
		}
		if len(line) == 0 {
			if hasData {
				return Event{Name: name, Data: e.data}, nil
			}
			name = ""
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "data":
			if hasData {
				e.data = append(e.data, '\n')
			}
			if len(e.data)+len(value) > MaxEvent {
				e.err = ErrTooLong
				return Event{}, e.err
			}
			e.data, hasData = append(e.data, value...), true
		case "event":
			// A stream has few names, often the same: most need no allocation.
			if string(value) != e.name {
				e.name = string(value)
			}
			name = e.name
		}
	}
}

// line returns the next line without its end. At the end of the stream it
// returns what is left, with the error.
func (e *Events) line() ([]byte, error) {
	for {
		if e.skipLF && e.start < e.end {
			if e.skipLF = false; e.buf[e.start] == '\n' {
				e.start++
			}
			e.scanned = max(e.scanned, e.start)
		}
		window := e.buf[e.scanned:e.end]
		n := bytes.IndexByte(window, '\n')
		if n < 0 {
			n = len(window)
		}
		if cr := bytes.IndexByte(window[:n], '\r'); cr >= 0 {
			n = cr
		}
		if n < len(window) {
			line := e.buf[e.start : e.scanned+n]
			e.skipLF = window[n] == '\r'
			e.start = e.scanned + n + 1
			e.scanned = e.start
			if !e.begun {
				e.begun, line = true, bytes.TrimPrefix(line, []byte("\uFEFF"))
			}
			return line, nil
		}
		e.scanned = e.end
		if e.err != nil {
			return e.buf[e.start:e.end], e.err
		}
		e.fill()
	}
}

// fill reads more, having made room for it.
func (e *Events) fill() {
	if e.start > 0 {
		copy(e.buf, e.buf[e.start:e.end])
		e.end -= e.start
		e.scanned -= e.start
		e.start = 0
	}
	if e.end == len(e.buf) {
		if len(e.buf) >= MaxEvent {
			e.err = ErrTooLong
			return
		}
		e.buf = append(e.buf, make([]byte, len(e.buf))...)
	}
	for range 100 {
		n, err := e.r.Read(e.buf[e.end:])
		if e.end, e.err = e.end+n, err; n > 0 || err != nil {
			return
		}
	}
	e.err = io.ErrNoProgress
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// WriteEvent writes an event with this data, in one Write. Line ends in data,
// which JSON never has, become LF for the reader.
func WriteEvent(w io.Writer, data []byte) error { return writeLines(w, "data: ", data) }

// WriteComment writes a comment, which readers skip, in one Write. It keeps a
// connection alive while an engine thinks.
func WriteComment(w io.Writer, comment string) error { return writeLines(w, ": ", []byte(comment)) }

func writeLines(w io.Writer, prefix string, text []byte) error {
	p := buffers.Get().(*[]byte)
	defer buffers.Put(p)
	b := (*p)[:0]
	for more := true; more; {
		line, n := text, bytes.IndexAny(text, "\r\n")
		if more = n >= 0; more {
			end := n + 1
			if bytes.HasPrefix(text[n:], []byte("\r\n")) {
				end++
			}
			line, text = text[:n], text[end:]
		}
		b = append(append(append(b, prefix...), line...), '\n')
	}
	b = append(b, '\n')
	if cap(b) <= 64<<10 {
		*p = b
	}
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}
