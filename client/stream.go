package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"sync"
	"time"

	"token.place/openai"
)

const mediaEvents = "text/event-stream"

// shownHeaders are the fields of a node's answer that reach the app. Cookies,
// redirects and permissions for web pages are not a node's to give.
var shownHeaders = []string{"Content-Type", "Retry-After", NodeHeader}

// stream writes one answer to an app. While the app waits for events and none
// come it writes comments, which no parser of events sees, so that nobody
// between takes the connection for dead.
type stream struct {
	rc    *http.ResponseController
	every time.Duration

	mu      sync.Mutex // guards what follows, and the answer
	w       http.ResponseWriter
	timer   *time.Timer // nil if there is nothing to keep alive
	begun   bool        // the status is out
	between bool        // what was written ends with a whole event
	tail    [3]byte     // its last bytes
}

// newStream begins to keep an answer alive, if the app asked for events.
func newStream(w http.ResponseWriter, events bool, every time.Duration) *stream {
	s := &stream{w: w, rc: http.NewResponseController(w), every: every, between: true}
	if events && every > 0 {
		s.mu.Lock()
		s.timer = time.AfterFunc(every, s.beat)
		s.mu.Unlock()
	}
	return s
}

// stop ends the comments: when it returns, only the caller writes.
func (s *stream) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

func (s *stream) beat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer == nil {
		return
	}
	if !s.begun {
		s.begin(http.StatusOK, http.Header{"Content-Type": {mediaEvents}})
	}
	// Inside an event a comment would be harmless to most parsers, not to all.
	if s.between && openai.WriteComment(s.w, "waiting for the node") == nil {
		s.rc.Flush() // an app that is gone ends the request's context
	}
	s.timer.Reset(s.every)
}

// begin sends the status. s.mu is held.
func (s *stream) begin(status int, from http.Header) {
	h := s.w.Header()
	for _, name := range shownHeaders {
		if v := from[name]; len(v) > 0 {
			h[name] = v
		}
	}
	h.Set("Cache-Control", "no-store")
	s.begun = true
	s.w.WriteHeader(status)
}

// fail answers with an error: as such, or as an event if comments went before it.
func (s *stream) fail(r *http.Request, err error) {
	s.stop()
	if !s.begun {
		writeError(s.w, r, err)
		return
	}
	s.breakOff(asError(err))
}

// breakOff ends an answer that is not whole: with an error event where one can
// stand, and always with the connection, so that nothing takes it for whole.
func (s *stream) breakOff(e *Error) {
	if s.between && e != nil {
		wire := openai.Error{Message: e.Message, Code: e.Code, Type: "server_error"}
		if e.Status < 500 {
			wire.Type = "invalid_request_error"
		}
		if data, err := json.Marshal(wire); err == nil && openai.WriteEvent(s.w, data) == nil {
			s.rc.Flush()
		}
	}
	panic(http.ErrAbortHandler)
}

// copy passes the node's answer on as it comes.
func (s *stream) copy(r *http.Request, resp *http.Response) {
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	events := media == mediaEvents
	if !events {
		s.stop()
	}
	s.mu.Lock()
	begun := s.begun
	if !begun {
		// Comments, and an error event, would count towards the length of events: a
		// short answer could end up with the right one.
		if resp.ContentLength >= 0 && !events {
			s.w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
		}
		s.begin(resp.StatusCode, resp.Header)
	}
	s.mu.Unlock()
	if begun && (!events || resp.StatusCode != http.StatusOK) {
		s.stop()
		s.breakOff(asEvent(resp))
	}
	// A whole JSON document is of use only at its end; the rest, events and
	// speech, is of use at once.
	err := s.pipe(resp.Body, media != "application/json")
	s.stop()
	if err == nil {
		return
	}
	if isCut(r) && events {
		s.breakOff(errStopping)
	}
	if !events || r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	s.breakOff(failf(http.StatusBadGateway, "broken_answer", "the connection to the node broke: this answer is not whole. Send the request again"))
}

// asEvent makes an error of an answer that came after comments had been sent as
// the beginning of a stream.
func asEvent(resp *http.Response) *Error {
	if e, ok := openai.ReadError(resp.Body); ok && resp.StatusCode >= 400 {
		return &Error{Status: resp.StatusCode, Code: e.Code, Message: e.Message}
	}
	return failf(http.StatusBadGateway, "bad_answer", "the node answered a request for a stream with status %d and no stream: ask for it without stream", resp.StatusCode)
}

var buffers = sync.Pool{New: func() any { return new([16 << 10]byte) }}

// pipe copies until the end of src.
func (s *stream) pipe(src io.Reader, flush bool) error {
	buf := buffers.Get().(*[16 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if e := s.write(buf[:n], flush); e != nil {
				return e
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *stream) write(p []byte, flush bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Reset(s.every)
	}
	_, err := s.w.Write(p)
	end := p[max(0, len(p)-len(s.tail)):]
	copy(s.tail[:], s.tail[len(end):])
	copy(s.tail[len(s.tail)-len(end):], end)
	s.between = bytes.HasSuffix(s.tail[:], []byte("\n\n")) || bytes.HasSuffix(s.tail[:], []byte("\n\r\n"))
	if err == nil && flush {
		err = s.rc.Flush()
	}
	if errors.Is(err, http.ErrNotSupported) { // a writer that never holds back
		err = nil
	}
	return err
}
