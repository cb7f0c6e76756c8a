package node

import (
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"token.place/identity"
)

// loadEvery is the least time between two reports of the load on one tunnel.
const loadEvery = 250 * time.Millisecond

// snapshot is what relays are told.
type snapshot struct {
	bundle   identity.Bundle
	models   []identity.Model
	inFlight int
}

// state is the node's current snapshot, with a channel that tells of the next.
type state struct {
	capacity int

	mu      sync.Mutex // guards the fields below
	now     snapshot
	changed chan struct{} // closed and replaced at each change
}

func (s *state) init(capacity int) {
	s.capacity, s.changed = capacity, make(chan struct{})
}

// get returns the snapshot and a channel that is closed when it is out of date.
func (s *state) get() (snapshot, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, s.changed
}

// tell wakes everybody who waits for a change; s.mu is held.
func (s *state) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *state) setBundle(b identity.Bundle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.bundle = b
	s.tell()
}

// setModels reports whether models differ from what was known. They reach the
// relays with the next bundle.
func (s *state) setModels(models []identity.Model) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(s.now.models, models) && (s.now.models == nil) == (models == nil) {
		return false
	}
	s.now.models = models
	return true
}

// take counts an exchange in, unless the node is full.
func (s *state) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now.inFlight >= s.capacity {
		return false
	}
	s.now.inFlight++
	s.tell()
	return true
}

// full tells whether take would refuse.
func (s *state) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now.inFlight >= s.capacity
}

func (s *state) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.inFlight--
	s.tell()
}

// statusLine is one line of GET /status, see spec/tunnel.md.
type statusLine struct {
	Bundle   *identity.Bundle `json:"bundle,omitempty"`
	Load     *load            `json:"load,omitempty"`
	Draining bool             `json:"draining,omitempty"`
}

type load struct {
	InFlight int `json:"in_flight"`
	Capacity int `json:"capacity"`
}

// serveStatus tells a relay who this node is, and then whatever changes, until
// the tunnel drains.
func (n *Node) serveStatus(w http.ResponseWriter, r *http.Request, draining <-chan struct{}) {
	w.Header().Set("Content-Type", "application/jsonl")
	var told snapshot
	for first := true; ; first = false {
		s, changed := n.state.get()
		var line statusLine
		if first || s.bundle != told.bundle {
			line.Bundle = &s.bundle
		}
		if first || s.inFlight != told.inFlight {
			line.Load = &load{s.inFlight, n.state.capacity}
		}
		if line != (statusLine{}) {
			if tell(w, line) != nil {
				return
			}
			told = s
		}
		select {
		case <-changed:
		case <-draining:
			tell(w, statusLine{Draining: true})
			return
		case <-r.Context().Done():
			return
		}
		// The load of a busy node changes all the time: tell it now and then.
		pause := time.NewTimer(loadEvery)
		select {
		case <-pause.C:
		case <-draining:
		case <-r.Context().Done():
		}
		pause.Stop()
	}
}

// pieceSize is the most of a line that is flushed at once. net/http's HTTP/2
// client keeps the last piece of a stream in a buffer of the piece's size class,
// for as long as the stream is silent: 1 KiB rather than 4 for each node that a
// relay has.
const pieceSize = 1 << 10

// tell sends one line.
func tell(w http.ResponseWriter, line statusLine) error {
	text, err := json.Marshal(line)
	if err != nil {
		return err
	}
	flush := http.NewResponseController(w)
	for piece := range slices.Chunk(append(text, '\n'), pieceSize) {
		if _, err := w.Write(piece); err != nil {
			return err
		}
		if err := flush.Flush(); err != nil {
			return err
		}
	}
	return nil
}
